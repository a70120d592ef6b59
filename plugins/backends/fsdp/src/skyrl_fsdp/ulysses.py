"""Sequence parallelism: partners have the same rows, and each computes a part of every one.

A token's path through a layer needs no other token, but for attention. There, each
partner gives away its tokens' queries, keys and values of most heads, and gets those of
all tokens for a few heads; what attention makes of them goes the same way back:

    tokens of one part, all heads  →  all tokens, heads of one part  →  back

Rotary embeddings whose frequencies depend on the largest position (rope types ``dynamic`` and
``longrope``) see that of whole rows as well.

What is computed of each token, its log-prob above all, is joined at the end, so that the
loss sees whole rows on every partner. The gradient of what others computed ends there:
each has that of its own tokens, and what is summed over ranks is the whole.

Source:
    Jacobs et al. 2023, DeepSpeed Ulysses, arXiv:2309.14509.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module
from transformers import AttentionInterface, PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import (
    AttentionMaskInterface,
    and_masks,
    find_packed_sequence_indices,
    packed_sequence_mask_function,
    sdpa_mask,
)

from skyrl_fsdp.collectives import exchanged, gathered
from skyrl_fsdp.critic import Critic
from skyrl_fsdp.packing import Layout, computed, lay_out
from skyrl_kernel.errors import ConfigError
from skyrl_kernel.records import BoolArray, IntArray

_ACTIVE: "WeakValueDictionary[str, Partners]" = WeakValueDictionary()
"""Name of an attention implementation → whose it is; transformers keeps functions for ever."""
_NUMBERS = itertools.count()
_TOLERANCE = 0.05
"""Root mean square, relative, when a model is tried: bfloat16 rounds by 0.01, another kind of layer is
off by 0.3."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """What one partner computes of a layout, and which of N chosen places are there.

    Example: 2 partners, a layout of one row of T = 5 places, of which [0, 2, 3] are chosen. It is
    filled up to 6; the second partner has places 3 to 5, and of the chosen ones the last:

        mine   = [False, False, True]
        places = [0]
        owner  = [0, 0, 1]
    """

    ids: Tensor
    """[B, T / partners] int64."""
    extra: dict[str, Tensor]
    """What the model takes beside the ids."""
    mine: BoolArray
    """[N] which of the chosen places this partner computes."""
    places: IntArray
    """[n] where those are in its own part."""
    owner: IntArray
    """[N] which partner computes each."""


class Partners:
    """This rank and those that have the same rows. All of them call the same methods.

    Args:
        group: Of the partners; None for one without any, to whom a part is the whole.
        key: Config key of their number, for messages.
        copies: Groups of partners that have the same rows, and so the same gradient: a part of
            it each, since gradients are summed.
    """

    def __init__(
        self, group: dist.ProcessGroup | None = None, *, key: str = "", copies: int = 1
    ) -> None:
        self._group = group
        self._key = key
        self._copies = copies
        self.size = 1 if group is None else dist.get_world_size(group)
        self._index = 0 if group is None else dist.get_rank(group)
        self._positions: Tensor | None = None
        self._largest = 0
        """Position in whole rows, as one process sees them."""
        self._name = f"ulysses_{next(_NUMBERS)}"

    @torch.no_grad()
    def divide(
        self, module: PreTrainedModel | Critic, device: torch.device, *, packs: bool = False
    ) -> None:
        """Let a model compute parts from now on, in `at` alone; for one without partners nothing changes.

        Whether it can is found out by trying, since no config says which layers look
        along a row in other ways than by torch's attention.

        Args:
            module: In eval mode. Called whole, as it is until then.
            device: Where it computes.
            packs: Rows will share rows.

        Raises:
            ConfigError: Its heads cannot be divided, or it computes otherwise in parts.
        """
        if self._group is None:
            return
        body = module.body if isinstance(module, Critic) else module
        self._refuse_heads(body.config)
        ids = np.arange(12, dtype=np.int32) % body.config.get_text_config().vocab_size
        rows = [ids[:count] for count in (12, 7, 5)]
        layout = lay_out(rows, device, packs=packs)
        whole = computed(module, layout.ids, **layout.extra)
        _ACTIVE[self._name] = self
        AttentionInterface.register(self._name, _attention)
        AttentionMaskInterface.register(self._name, _mask)
        body.config._attn_implementation = self._name
        for rotary in filter(_depends_on_largest, body.modules()):
            rotary.register_forward_pre_hook(self._with_largest, with_kwargs=True)
            rotary.register_forward_hook(_without_last)
        parts = self.whole(
            layout, lambda part: computed(module, part.ids, **part.extra)[:, : len(part.places)]
        )
        pairs = [
            (parts[row, start : start + length], whole[row, start : start + length])
            for row, start, length in zip(layout.row, layout.start, map(len, rows), strict=True)
        ]
        difference = torch.cat([found - expected for found, expected in pairs])
        if not float(difference.square().mean().sqrt()) <= _TOLERANCE * float(whole.std()):
            raise ConfigError(
                f"{self._key}={self.size}: a {type(body).__name__} computes other numbers when its rows are "
                "divided, since some of its layers look along them by themselves; set it to 1"
            )

    def _refuse_heads(self, config: PreTrainedConfig) -> None:
        heads = config.get_text_config().num_attention_heads
        if heads % self.size:
            fits = ", ".join(str(size) for size in range(1, heads + 1) if heads % size == 0)
            raise ConfigError(
                f"{self._key}={self.size} does not divide the {heads} attention heads of the model; it may "
                f"be {fits}"
            )
        if config._attn_implementation not in ("sdpa", self._name):
            raise ConfigError(
                f"{self._key}={self.size} divides the attention of torch ('sdpa'), and the model computes "
                f"'{config._attn_implementation}'; set it to 1"
            )

    def part(self, layout: Layout, chosen: IntArray) -> Part:
        """This partner's part of every row.

        Args:
            layout: The same on all partners.
            chosen: [N] places in rows of the layout, whose numbers are to be joined.
        """
        if self._group is None:
            everything, nobody = np.ones(len(chosen), bool), np.zeros(len(chosen), np.int32)
            return Part(
                ids=layout.ids,
                extra=layout.extra,
                mine=everything,
                places=chosen,
                owner=nobody,
            )
        ids, positions = self._filled(layout)
        width = ids.shape[1] // self.size
        first = self._index * width
        own = ids[:, first : first + width]
        mine = chosen // width == self._index
        return Part(
            ids=own,
            extra={
                "position_ids": positions[:, first : first + width],
                # Told that there is a mask, transformers does not look for rows that share a row.
                "attention_mask": torch.ones_like(own),
            },
            mine=mine,
            places=chosen[mine] - first,
            owner=(chosen // width).astype(np.int32),
        )

    def _filled(self, layout: Layout) -> tuple[Tensor, Tensor]:
        """Ids and positions, as long as divides among all; no token sees what stands behind it."""
        rows, length = layout.ids.shape
        more = -length % self.size
        if layout.positions is None:
            positions = torch.arange(length + more, device=layout.ids.device).expand(rows, -1)
            return F.pad(layout.ids, (0, more)), positions
        behind = layout.positions[:, -1:] + 1 + torch.arange(more, device=layout.ids.device)
        return F.pad(layout.ids, (0, more)), torch.cat([layout.positions, behind], dim=1)

    @contextlib.contextmanager
    def at(self, layout: Layout) -> Iterator[None]:
        """A model that `divide` got is called in here with its part of this layout."""
        if self._group is not None:
            self._positions = self._filled(layout)[1]
            last = layout.ids.shape[1] - 1
            self._largest = last if layout.positions is None else int(layout.positions.max())
        try:
            yield
        finally:
            self._positions = None

    def join(self, values: Tensor, part: Part) -> Tensor:
        """[n, …] numbers of a partner's own chosen places → [N, …] those of all, in order.

        The gradient goes to the partner that computed each; all have the same one.
        """
        if self._copies > 1 and values.requires_grad:
            values.register_hook(  # type: ignore[no-untyped-call]
                lambda gradient: gradient / self._copies
            )
        if self._group is None:
            return values
        counts = np.bincount(part.owner, minlength=self.size)
        number = np.empty(len(part.owner), np.int64)
        for partner in range(self.size):
            number[part.owner == partner] = np.arange(counts[partner]) + partner * counts.max()
        everything = gathered(values, int(counts.max()), self._group, self._index)
        return everything[torch.from_numpy(number).to(values.device)]

    def whole(self, layout: Layout, compute: Callable[[Part], Tensor]) -> Tensor:
        """[B, T, …] numbers of all places, of which ``compute`` gives [B, n, …]: those in the part.

        They are its first ones; what follows fills it up.
        """
        part = self.part(layout, np.arange(layout.ids.shape[1], dtype=np.int32))
        with self.at(layout):
            own = compute(part)
        return self.join(own.transpose(0, 1), part).transpose(0, 1)

    def _with_largest(
        self, _: Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What a rotary embedding is called with, and one more place that has the largest position.

        No place has a larger one: those that fill rows up count as that.
        """
        hidden, *named = args
        kwargs = kwargs | dict(zip(("position_ids", "layer_type"), named, strict=False))
        positions = kwargs["position_ids"].clamp(max=self._largest)
        return (hidden,), kwargs | {"position_ids": F.pad(positions, (0, 1), value=self._largest)}

    def mask(self, mask_function: Callable[..., Any], arguments: dict[str, Any]) -> Tensor | None:
        """[B, 1, T, T] which tokens see which, of whole rows; None if all see all before them."""
        positions = self._positions
        assert positions is not None, "the model is called outside of `at`"
        packed = find_packed_sequence_indices(positions)
        if packed is not None:
            mask_function = and_masks(mask_function, packed_sequence_mask_function(packed))
            arguments = {**arguments, "allow_is_causal_skip": False}
        length = positions.shape[1]
        found: Tensor | None = sdpa_mask(
            **{**arguments, "q_length": length, "kv_length": length, "attention_mask": None},
            mask_function=mask_function,
        )
        return found

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None
    ) -> Tensor:
        """Attention over whole rows: [B, heads, T / partners, D] in, the same out."""
        heads, groups = query.shape[1], query.shape[1] // key.shape[1]
        copies = next(n for n in range(1, groups + 1) if key.shape[1] * n % self.size == 0)
        query, key, value = (
            self._whole_rows(one)
            for one in (query, _repeated(key, copies), _repeated(value, copies))
        )
        more = query.shape[1] // key.shape[1]
        out = F.scaled_dot_product_attention(
            query,
            _repeated(key, more),
            _repeated(value, more),
            attn_mask=mask,
            scale=scale,
            is_causal=mask is None,
        )
        return self._whole_heads(out, heads)

    def _whole_rows(self, tensor: Tensor) -> Tensor:
        """[B, heads, T / s, D] → [B, heads / s, T, D]."""
        rows, heads, width, size = tensor.shape
        parts = tensor.reshape(rows, self.size, heads // self.size, width, size)
        assert self._group is not None
        parts = exchanged(parts.transpose(0, 1), self._group)
        return parts.permute(1, 2, 0, 3, 4).reshape(rows, heads // self.size, -1, size)

    def _whole_heads(self, tensor: Tensor, heads: int) -> Tensor:
        """[B, heads / s, T, D] → [B, heads, T / s, D]."""
        rows, few, length, size = tensor.shape
        parts = tensor.reshape(rows, few, self.size, length // self.size, size)
        assert self._group is not None
        parts = exchanged(parts.permute(2, 0, 1, 3, 4), self._group)
        return parts.transpose(0, 1).reshape(rows, heads, -1, size)


def _repeated(tensor: Tensor, times: int) -> Tensor:
    return tensor if times == 1 else tensor.repeat_interleave(times, dim=1)


def _depends_on_largest(module: Module) -> bool:
    """Whether it is a rotary embedding with frequencies that transformers chooses by position."""
    types = getattr(module, "rope_type", None)
    each = types.values() if isinstance(types, dict) else [types]
    return any(one == "longrope" or "dynamic" in str(one) for one in each)


def _without_last(_: Module, __: Any, out: Tensor | tuple[Tensor, ...]) -> Any:
    """What `Partners._with_largest` made longer: [B, T, D], or several."""
    return out[..., :-1, :] if isinstance(out, Tensor) else tuple(one[..., :-1, :] for one in out)


def _attention(
    module: Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in a layer."""
    config: Any = module.config
    partners = _ACTIVE[config._attn_implementation]
    out = partners.attend(query, key, value, attention_mask, scaling)
    return out.transpose(1, 2).contiguous(), None


def _mask(*, config: Any, mask_function: Callable[..., Any], **arguments: Any) -> Tensor | None:
    """What transformers calls once for each kind of layer."""
    return _ACTIVE[config._attn_implementation].mask(mask_function, arguments)
