"""Several token rows in one row of a forward pass, none of which sees another.

Rows of a micro-batch have different lengths. Padded, all are as long as the
longest; packed, short ones share a row of that length, so there are fewer rows
and never longer ones. Positions count from 0 in each token row: from that
transformers builds attention that stays within it, given no attention mask and
no cache; `keeps_rows_apart` tries whether the model at hand does so.

Shapes: S token rows, in B rows of T places.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from skyrl_fsdp.critic import Critic
from skyrl_kernel.records import IntArray
from skyrl_kernel.torch import right_pad

_TOLERANCE = 0.1
"""Relative, when a model is tried: rounding gives 1e-6, bfloat16 1e-2, another row's tokens 1."""
_MAX_MASK = 2**26
"""Places of the attention mask that packed rows need and padded ones do not: 64 MiB of booleans.
Where it would be larger, rows are padded."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Token rows as a model takes them.

    Example: rows [5, 6, 7], [8] and [9, 9] in B = 2 rows of T = 3 places:

        ids       = [[5, 6, 7], [9, 9, 8]]
        positions = [[0, 1, 2], [0, 1, 0]]
        row       = [0, 1, 1]
        start     = [0, 2, 0]
    """

    ids: Tensor
    """[B, T] int64."""
    positions: Tensor | None
    """[B, T] int64; a row that is not full counts on behind its end, where nothing is read. None
    where each token row has a row of its own, padded."""
    row: IntArray
    """[S] which of the B rows holds each token row."""
    start: IntArray
    """[S] its first place there."""

    @property
    def extra(self) -> dict[str, Tensor]:
        """What a model takes beside the ids; nothing where rows are padded."""
        return {} if self.positions is None else {"position_ids": self.positions}


def lay_out(rows: Sequence[IntArray], device: torch.device, *, packs: bool) -> Layout:
    """Token rows packed where that is asked for, saves a row, and needs no huge mask; else padded."""
    if bins := _bins(list(map(len, rows)), packs):
        return pack_rows(rows, bins, device)
    return Layout(
        ids=right_pad(rows, device),
        positions=None,
        row=np.arange(len(rows), dtype=np.int32),
        start=np.zeros(len(rows), dtype=np.int32),
    )


def places(lengths: Sequence[int], *, packs: bool) -> int:
    """Places of the forward pass that `lay_out` makes of rows so long, B × T.

    Example:
        >>> places([3, 1, 2], packs=True), places([3, 1, 2], packs=False)
        (6, 9)
    """
    return (len(_bins(lengths, packs)) or len(lengths)) * max(lengths)


def _bins(lengths: Sequence[int], packs: bool) -> list[list[int]]:
    """Which token rows share a row; empty where they are better padded."""
    longest = max(lengths)
    bins = first_fit_decreasing(lengths, longest) if packs else []
    return bins if len(bins) < len(lengths) and len(bins) * longest**2 <= _MAX_MASK else []


def pack_rows(
    rows: Sequence[IntArray], bins: Sequence[Sequence[int]], device: torch.device | str = "cpu"
) -> Layout:
    """Token rows behind each other.

    Args:
        rows: [T] ids each, none empty.
        bins: Places in ``rows`` of those that share a row, no longer than the longest of all.
        device: Where the tensors go.
    """
    lengths = [len(row) for row in rows]
    ids = np.zeros((len(bins), max(lengths)), dtype=np.int64)
    positions = np.tile(np.arange(max(lengths)), (len(bins), 1))
    row_of, start_of = np.zeros(len(rows), np.int32), np.zeros(len(rows), np.int32)
    for number, members in enumerate(bins):
        end = 0
        for i in members:
            place = slice(end, end + lengths[i])
            ids[number, place] = rows[i]
            positions[number, end:] = np.arange(max(lengths) - end)
            row_of[i], start_of[i] = number, end
            end += lengths[i]
    return Layout(
        ids=torch.from_numpy(ids).to(device),
        positions=torch.from_numpy(positions).to(device),
        row=row_of,
        start=start_of,
    )


def first_fit_decreasing(
    lengths: Sequence[int], capacity: int, *, min_bins: int = 1, multiple: int = 1
) -> list[list[int]]:
    """Put things into bins: the longest first, each into the first bin that has room.

    Johnson 1973: never more than 11/9 of the fewest bins possible, and one. Of
    equal lengths the earlier comes first, so the answer depends on nothing else.

    Args:
        lengths: Of the things.
        capacity: Of a bin.
        min_bins: Fewest bins, for ranks that each need one.
        multiple: The number of bins is one of this. Bins that are missing take
            things from those that hold most.

    Returns:
        Places in ``lengths``, by bin; no bin is empty.

    Raises:
        ValueError: Something exceeds a bin's capacity, or there are fewer things than bins
            asked for.

    Example:
        >>> first_fit_decreasing([60, 70, 80], 100)
        [[2], [1], [0]]
        >>> first_fit_decreasing([40, 30, 20, 10, 5], 100, multiple=2)
        [[0, 1, 2, 3], [4]]
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    if order and lengths[order[0]] > capacity:
        raise ValueError(
            f"a row of {lengths[order[0]]} tokens exceeds bin capacity, which is {capacity}"
        )
    bins: list[list[int]] = []
    room: list[int] = []
    for i in order:
        place = next((b for b, left in enumerate(room) if left >= lengths[i]), len(bins))
        if place == len(bins):
            bins.append([])
            room.append(capacity)
        bins[place].append(i)
        room[place] -= lengths[i]
    wanted = -(-max(len(bins), min_bins) // multiple) * multiple if order else 0
    if wanted > len(order):
        raise ValueError(f"Cannot create {wanted} bins of {len(order)} rows: each needs one")
    while len(bins) < wanted:
        fullest = max(bins, key=len)
        bins.append([fullest.pop()])
    return bins


@torch.no_grad()
def keeps_rows_apart(
    module: PreTrainedModel | Critic, vocabulary: int, device: torch.device | None = None
) -> bool:
    """Whether a model computes packed rows as it computes them alone.

    Layers that carry a state along the row (state spaces, linear attention,
    convolutions) do not, whatever the positions say; nor do models that take no
    positions. Found out by trying, since no config says it.

    Args:
        module: In eval mode; a language model, its body, or a critic.
        vocabulary: Number of ids.
        device: Where it computes; default: where the weights are.
    """
    device = device or module.device
    numbers = np.random.default_rng(0)
    rows = [numbers.integers(0, vocabulary, count, dtype=np.int32) for count in (12, 7, 5)]
    layout = pack_rows(rows, [[0], [1, 2]], device)
    try:
        together = computed(module, layout.ids, **layout.extra)
    except TypeError:  # it has no argument for positions
        return False
    alone = [computed(module, right_pad([row], device))[0] for row in rows]
    for i, expected in enumerate(alone):
        start = int(layout.start[i])
        found = together[int(layout.row[i]), start : start + len(expected)]
        if float((found - expected).abs().max()) > _TOLERANCE * float(expected.std()):
            return False
    return True


def computed(module: PreTrainedModel | Critic, ids: Tensor, **extra: Tensor) -> Tensor:
    """[B, T, …] float32: logits of a language model, hidden states of a body or a critic's."""
    if isinstance(module, Critic):
        return module.hidden_states(ids, **extra).float()
    out = module(input_ids=ids, use_cache=False, **extra)
    found: Tensor = out.logits if hasattr(out, "logits") else out.last_hidden_state
    return found.float()
