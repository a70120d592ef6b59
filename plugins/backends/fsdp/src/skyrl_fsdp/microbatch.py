"""Cuts a mini-batch into micro-batches, and runs one through the model.

What a loss must see whole (its atom) is never split. Counted in rows, rows of
similar length share a micro-batch, so that little is padded; counted in tokens
(`skyrl_fsdp.budget`), short rows fill up what long ones leave.

Shapes: B rows of one micro-batch, T tokens, N trained tokens, V vocabulary.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from skyrl_fsdp.budget import fill
from skyrl_fsdp.critic import Critic
from skyrl_fsdp.packing import Layout, lay_out
from skyrl_fsdp.ulysses import Partners
from skyrl_kernel.records import IntArray, Scores, TrainingSample
from skyrl_kernel.torch import entropy, selected_logprobs

_ENTROPY_TOKENS = 1024
"""Tokens whose entropy is computed at once where no gradient is kept: bounds the memory."""

_NOTHING = np.zeros(2, np.float32)
IDLE = TrainingSample(
    trajectory_id="idle",
    group=-1,
    trajectory=-1,
    tokens=np.zeros(2, np.int32),
    loss_mask=np.array([False, True]),
    advantages=_NOTHING,
    returns=None,
    sampler_logprobs=None,
    scores=Scores(),
    loss_weights={},
)
"""Nobody's row, for a pass that a rank without rows of its own computes along with the others: each
gathers the layers of all. Its objective is 0."""


def trained(batch: Sequence[TrainingSample]) -> list[TrainingSample]:
    """The samples that have a trained token.

    Raises:
        ValueError: A sample trains on its first token, which nothing predicts.
    """
    for sample in batch:
        if len(sample.loss_mask) and sample.loss_mask[0]:
            raise ValueError(
                f"trajectory {sample.trajectory_id} has loss_mask True at its first token, which "
                "no token precedes and so nothing predicts; start the row with a prompt"
            )
    return [sample for sample in batch if sample.loss_mask.any()]


def split(
    samples: Sequence[TrainingSample],
    atom: Literal["trajectory", "group"],
    *,
    max_rows: int,
    max_tokens: int | None = None,
    packs: bool = False,
) -> list[list[TrainingSample]]:
    """Micro-batches within a bound; an atom that exceeds it is one by itself.

    Args:
        samples: Rows of a mini-batch, each with a trained token.
        atom: What stays together.
        max_rows: ``trainer.micro_train_batch_size_per_gpu``.
        max_tokens: ``trainer.max_tokens_per_microbatch``: counts instead of ``max_rows``.
        packs: As in `forward`: what is counted is what it computes.

    Returns:
        Every sample once.
    """
    atoms: dict[int, list[TrainingSample]] = defaultdict(list)
    for sample in samples:
        atoms[sample.trajectory if atom == "trajectory" else sample.group].append(sample)
    together = sorted(atoms.values(), key=lambda rows: max(map(_computed, rows)))
    if max_tokens is not None:
        lengths = [[_computed(row) for row in rows] for rows in together]
        filled = fill(lengths, max_tokens, packs=packs)
        return [[row for place in places for row in together[place]] for places in filled]
    batches: list[list[TrainingSample]] = []
    for rows in together:
        if batches and len(batches[-1]) + len(rows) <= max_rows:
            batches[-1].extend(rows)
        else:
            batches.append(list(rows))
    return batches


def forward(
    module: PreTrainedModel,
    samples: Sequence[TrainingSample],
    temperature: float,
    *,
    entropy_has_gradient: bool,
    packs: bool = False,
    device: torch.device | None = None,
    partners: Partners | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies of a micro-batch's trained tokens.

    One call of the root module, so that the hooks of a sharded module run. What
    stands after a row's last trained token is not computed, and logits only at
    the places where some row trains.

    Args:
        module: The policy.
        samples: [B] rows, each with a trained token.
        temperature: Divides the logits.
        entropy_has_gradient: False saves the memory of its backward pass.
        packs: Whether rows may share a row of the forward pass; changes nothing but rounding.
        device: Where it computes; default: where the weights are.
        partners: Have the same rows, and compute a part of each; default: this process alone.

    Returns:
        [N] and [N] float32 nats, packed in row order.
    """
    device, partners = device or module.device, partners or Partners()
    layout = _laid_out(samples, device, packs)
    rows, predicting = _predicting(samples, layout)
    part = partners.part(layout, predicting)
    targets = np.concatenate([sample.tokens[sample.loss_mask] for sample in samples])[part.mine]
    places, which = np.unique(part.places, return_inverse=True)
    with partners.at(layout):
        logits = module(
            input_ids=part.ids,
            **part.extra,
            logits_to_keep=torch.from_numpy(places).to(device),
            use_cache=False,
        ).logits[torch.from_numpy(rows[part.mine]).to(device), torch.from_numpy(which).to(device)]
    logprobs = selected_logprobs(
        logits, torch.from_numpy(targets.astype(np.int64)).to(device), temperature
    )
    if entropy_has_gradient:
        entropies = entropy(logits, temperature)
    else:
        chunks = logits.detach().split(_ENTROPY_TOKENS)
        entropies = torch.cat([entropy(chunk, temperature) for chunk in chunks])
    return partners.join(logprobs, part), partners.join(entropies, part)


def forward_values(
    critic: Critic,
    samples: Sequence[TrainingSample],
    *,
    packs: bool = False,
    device: torch.device | None = None,
    partners: Partners | None = None,
) -> Tensor:
    """The critic's values before the trained tokens of a micro-batch.

    Args:
        critic: One call of the root module, as in `forward`.
        samples: [B] rows, each with a trained token.
        packs: As in `forward`.
        device: As in `forward`.
        partners: As in `forward`.

    Returns:
        [N] float32 task units, packed in row order; they carry the gradient.
    """
    device, partners = device or critic.device, partners or Partners()
    layout = _laid_out(samples, device, packs)
    rows, predicting = _predicting(samples, layout)
    part = partners.part(layout, predicting)
    with partners.at(layout):
        values: Tensor = critic(part.ids, **part.extra)
    row, place = (torch.from_numpy(one).to(device) for one in (rows[part.mine], part.places))
    return partners.join(values[row, place], part)


def _laid_out(samples: Sequence[TrainingSample], device: torch.device, packs: bool) -> Layout:
    """The ids of everything that predicts a trained token."""
    return lay_out([sample.tokens[: _computed(sample)] for sample in samples], device, packs=packs)


def _predicting(samples: Sequence[TrainingSample], layout: Layout) -> tuple[IntArray, IntArray]:
    """[N] and [N]: row and place of what predicts each trained token: the token before it."""
    counts = [np.count_nonzero(sample.loss_mask) for sample in samples]
    places = np.concatenate([np.flatnonzero(sample.loss_mask) - 1 for sample in samples])
    return np.repeat(layout.row, counts), places + np.repeat(layout.start, counts)


def _computed(sample: TrainingSample) -> int:
    """Tokens of a row that are computed: those before its last trained one."""
    return int(np.flatnonzero(sample.loss_mask)[-1])
