"""Random mini-batches, and what a loss does to each of their tokens however they are cut.

For the invariances that `skyrl_kernel.testing.contracts.algorithm` checks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from skyrl_kernel.batch import trajectory_mean
from skyrl_kernel.defaults.token_mean import token_mean
from skyrl_kernel.protocols import Loss
from skyrl_kernel.records import FloatArray, Scores, TrainingSample

if TYPE_CHECKING:
    from torch import Tensor

SEED = 5
"""Of an update's random choices."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Minibatch:
    """Samples, and what the models of today say of their tokens."""

    samples: Sequence[TrainingSample]
    logprobs: Sequence[FloatArray]
    """[T] per sample, under the current policy."""
    values: Sequence[FloatArray]
    """[T] per sample, of the current critic."""

    def parts(self, atom: str, number: int) -> list["Minibatch"]:
        """Cut between atoms, dealt out in turn to ``number`` parts; fewer if there are fewer."""
        owners = [getattr(sample, atom) for sample in self.samples]
        dealt = {owner: place % number for place, owner in enumerate(dict.fromkeys(owners))}
        chosen = [[i for i, owner in enumerate(owners) if dealt[owner] == k] for k in range(number)]
        return [self.rows(rows) for rows in chosen if rows]

    def rows(self, places: Sequence[int]) -> "Minibatch":
        """These samples, in this order."""
        return Minibatch(
            samples=[self.samples[i] for i in places],
            logprobs=[self.logprobs[i] for i in places],
            values=[self.values[i] for i in places],
        )


def random_minibatch(
    loss: Loss,
    *,
    seed: int,
    groups: Sequence[Sequence[int]],
    spread: float = 1.0,
    advantage: float | None = None,
) -> Minibatch:
    """A mini-batch with random masks and numbers; each trajectory has one advantage.

    Args:
        loss: Its coefficients say which weights are needed.
        seed: Of all numbers.
        groups: Rows of each trajectory of each group.
        spread: How far the current log-probs are from the old ones, nats.
        advantage: Of every trajectory; None draws them.
    """
    rng = np.random.default_rng(seed)
    owners = [
        (number, place)
        for place, (number, rows) in enumerate(
            (number, rows) for number, group in enumerate(groups) for rows in group
        )
        for _ in range(rows)
    ]
    credit = [rng.normal() if advantage is None else advantage for _ in owners]
    masks = [np.append(False, rng.random(rng.integers(1, 6)) < 0.7) for _ in owners]
    places = [place for _, place in owners]
    weights = {"policy": token_mean(masks, places, [number for number, _ in owners])}
    weights |= dict.fromkeys(
        [term for term in loss.coefficients if term != "policy"],
        trajectory_mean(masks, places, 1 + max(places, default=0)),
    )

    def row(mask: np.ndarray, low: float, high: float) -> FloatArray:
        return rng.uniform(low, high, len(mask)).astype(np.float32)

    samples = []
    for i, ((group, place), mask) in enumerate(zip(owners, masks, strict=True)):
        old = row(mask, -3, -0.1)
        samples.append(
            TrainingSample(
                trajectory_id=f"0:{group}/{place}",
                group=group,
                trajectory=place,
                tokens=rng.integers(0, 50, len(mask)).astype(np.int32),
                loss_mask=mask,
                advantages=np.full(len(mask), credit[place], np.float32),
                returns=row(mask, -1, 1),
                sampler_logprobs=old + row(mask, -0.1, 0.1) * np.float32(spread),
                scores=Scores(
                    old_logprobs=old,
                    ref_logprobs=old + row(mask, -0.5, 0.5),
                    teacher_logprobs=old + row(mask, -0.5, 0.5),
                    values=row(mask, -1, 1),
                ),
                loss_weights={term: weights[term][i] for term in weights},
            )
        )
    return Minibatch(
        samples=samples,
        logprobs=[
            np.asarray(one.scores.old_logprobs) + row(one.loss_mask, -1, 1) * np.float32(spread)
            for one in samples
        ],
        values=[row(one.loss_mask, -1, 1) for one in samples],
    )


Gradients = Mapping[tuple[int, int], tuple[float, float]]
"""(trajectory, token id × 100 + place) → gradients of its log-prob and of its value."""


def gradients(loss: Loss, parts: Sequence[Minibatch]) -> Gradients:
    """The gradient of the objective at every trained token, over micro-batches as they come.

    Micro-batches of one rank and of several are the same here: gradients add up.
    """
    import torch

    from skyrl_kernel.torch import objective, pack, pack_values, value_objective

    columns: dict[str, list[Tensor]] = {}
    if loss.prepare is not None:
        for part in parts:
            with torch.no_grad():
                inputs, _ = pack(part.samples, *_current(part), needs=loss.needs, seed=SEED)
                for name, column in loss.prepare(inputs).items():
                    columns.setdefault(name, []).append(column)
    minibatch = {name: torch.cat(found) for name, found in columns.items()}
    found: dict[tuple[int, int], tuple[float, float]] = {}
    for part in parts:
        logprobs, entropy = _current(part)
        values = _flat(part, part.values)
        logprobs.requires_grad_()
        values.requires_grad_()
        inputs, weights = pack(
            part.samples,
            logprobs,
            entropy,
            needs=loss.needs,
            minibatch=minibatch,
            seed=SEED,
        )
        scalar, _ = objective(loss, inputs, weights)
        if loss.critic is not None:
            scalar = (
                scalar
                + value_objective(loss, *pack_values(part.samples, values, needs=loss.needs))[0]
            )
        if scalar.requires_grad:
            scalar.backward()  # type: ignore[no-untyped-call]
        names = [
            (sample.trajectory, int(token) * 100 + place)
            for sample in part.samples
            for place, (token, kept) in enumerate(zip(sample.tokens, sample.loss_mask, strict=True))
            if kept
        ]
        pairs = zip(_gradient(logprobs), _gradient(values), strict=True)
        found |= dict(zip(names, pairs, strict=True))
    return found


def _current(part: Minibatch) -> "tuple[Tensor, Tensor]":
    logprobs = _flat(part, part.logprobs)
    return logprobs, logprobs.detach().abs()


def _flat(part: Minibatch, rows: Sequence[FloatArray]) -> "Tensor":
    import torch

    kept = [row[one.loss_mask] for row, one in zip(rows, part.samples, strict=True)]
    return torch.from_numpy(np.concatenate([np.zeros(0, np.float32), *kept]))


def _gradient(tensor: "Tensor") -> list[float]:
    found: list[float] = ([0.0] * tensor.numel()) if tensor.grad is None else tensor.grad.tolist()
    return found
