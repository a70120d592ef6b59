"""The one place where a loss becomes a scalar, called by every training backend.

The controller has put into ``TrainingSample.loss_weights`` one weight per token
and term, computed from the whole mini-batch. The objective of a micro-batch is
Σ coefficient × weight × term over its tokens, so that the sum over micro-batches
and ranks is the objective of the mini-batch whatever the split.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from skyrl_kernel.torch.records import LossInputs, LossTerms, ValueInputs

if TYPE_CHECKING:
    from skyrl_kernel.protocols import Loss
    from skyrl_kernel.records import TrainingSample


def pack(
    samples: Sequence["TrainingSample"],
    logprobs: Tensor,
    entropy: Tensor,
    *,
    needs: frozenset[str],
    minibatch: Mapping[str, Tensor] | None = None,
    seed: int = 0,
) -> tuple[LossInputs, dict[str, Tensor]]:
    """Put a micro-batch into the form that a loss reads.

    Args:
        samples: The rows of the micro-batch.
        logprobs: [N] current log-probs of the rows' trained tokens, in row order.
        entropy: [N] entropies of the same tokens.
        needs: ``Loss.needs``: the scores to pass on.
        minibatch: Name → [M], what ``Loss.prepare`` gave.
        seed: Key of the step's random choices.

    Returns:
        The inputs, and the weight of each term, [N].

    Raises:
        ValueError: A row lacks a score that the loss needs; names the trajectory.
    """
    rows = _Rows(samples, logprobs.device)
    inputs = LossInputs(
        logprobs=logprobs,
        entropy=entropy,
        advantages=rows.gather([sample.advantages for sample in samples]),
        **rows.places(),
        old_logprobs=rows.score("old_logprobs", needs),
        ref_logprobs=rows.score("ref_logprobs", needs),
        teacher_logprobs=rows.score("teacher_logprobs", needs),
        sampler_logprobs=rows.optional([sample.sampler_logprobs for sample in samples]),
        returns=rows.optional([sample.returns for sample in samples]),
        minibatch=minibatch or {},
        seed=seed,
    )
    return inputs, rows.weights()


def pack_values(
    samples: Sequence["TrainingSample"], values: Tensor, *, needs: frozenset[str]
) -> tuple[ValueInputs, dict[str, Tensor]]:
    """Put a micro-batch into the form that the critic's loss reads; see `pack`.

    Args:
        samples: The rows of the micro-batch.
        values: [N] current values before the rows' trained tokens, in row order.
        needs: ``Loss.needs``.

    Returns:
        The inputs, and the weight of each term, [N].

    Raises:
        ValueError: As `pack`.
    """
    rows = _Rows(samples, values.device)
    inputs = ValueInputs(
        values=values,
        **rows.places(),
        old_values=rows.score("values", needs),
        returns=rows.optional([sample.returns for sample in samples]),
    )
    return inputs, rows.weights()


@dataclass(frozen=True, slots=True)
class _Rows:
    """Columns of a micro-batch's trained tokens, packed."""

    samples: Sequence["TrainingSample"]
    device: torch.device

    def gather(self, rows: Sequence[np.ndarray]) -> Tensor:
        kept = [row[sample.loss_mask] for row, sample in zip(rows, self.samples, strict=True)]
        flat = np.concatenate(kept) if kept else np.zeros(0, dtype=np.float32)
        return torch.from_numpy(np.ascontiguousarray(flat)).to(self.device)

    def score(self, name: str, needs: frozenset[str]) -> Tensor | None:
        if name not in needs:
            return None
        rows = []
        for sample in self.samples:
            row = getattr(sample.scores, name)
            if row is None:
                raise ValueError(
                    f"the loss needs {name}, which trajectory {sample.trajectory_id} lacks"
                )
            rows.append(row)
        return self.gather(rows)

    def optional(self, rows: Sequence[np.ndarray | None]) -> Tensor | None:
        present = [row for row in rows if row is not None]
        return self.gather(present) if present and len(present) == len(rows) else None

    def places(self) -> dict[str, Tensor]:
        """``trajectory``, ``group`` and ``position`` of each token."""
        counts = torch.tensor(
            [int(sample.loss_mask.sum()) for sample in self.samples], dtype=torch.int64
        )

        def owner(numbers: Sequence[int]) -> Tensor:
            found = torch.tensor(numbers, dtype=torch.int64).repeat_interleave(counts)
            return found.to(self.device)

        return {
            "trajectory": owner([sample.trajectory for sample in self.samples]),
            "group": owner([sample.group for sample in self.samples]),
            "position": self.gather(
                [np.arange(len(sample.loss_mask), dtype=np.int64) for sample in self.samples]
            ),
        }

    def weights(self) -> dict[str, Tensor]:
        """Of each term."""
        names = self.samples[0].loss_weights if self.samples else {}
        return {
            name: self.gather([sample.loss_weights[name] for sample in self.samples])
            for name in names
        }


def objective(
    loss: "Loss", inputs: LossInputs, weights: Mapping[str, Tensor]
) -> tuple[Tensor, LossTerms]:
    """Scalar to minimise in the policy: Σ coefficient × weight × term over tokens and terms.

    Args:
        loss: The stage's loss.
        inputs: [N] packed micro-batch.
        weights: Term name → [N].

    Returns:
        The scalar, and the terms it came from.

    Raises:
        ValueError: The loss returned a term of another shape, or one that has no
            coefficient or no weights.
    """
    out = loss(inputs)
    return _weighted(loss, out, inputs.logprobs, weights), out


def value_objective(
    loss: "Loss", inputs: ValueInputs, weights: Mapping[str, Tensor]
) -> tuple[Tensor, LossTerms]:
    """`objective`, of the critic."""
    assert loss.critic is not None, "asked for where the loss trains a critic"
    out = loss.critic(inputs)
    return _weighted(loss, out, inputs.values, weights), out


def _weighted(loss: "Loss", out: object, like: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    if not isinstance(out, LossTerms):
        raise ValueError(
            f"the loss returned a {type(out).__name__}; it must return LossTerms with per-token terms"
        )
    total = like.new_zeros(())
    for name, term in out.terms.items():
        if term.shape != like.shape:
            raise ValueError(
                f"the loss returned the term '{name}' with shape {tuple(term.shape)}; "
                f"per-token terms have shape {tuple(like.shape)}"
            )
        if name not in loss.coefficients:
            raise ValueError(
                f"the loss returned the term '{name}'; its coefficients are for: "
                f"{', '.join(loss.coefficients)}"
            )
        if name not in weights:
            raise ValueError(
                f"the loss returned the term '{name}', for which the samples carry no weights; "
                f"they carry: {', '.join(weights) or 'none'}"
            )
        total = total + loss.coefficients[name] * (weights[name] * term).sum()
    return total


_TERM_METRICS = {"kl": "policy_kl", "value": "critic/critic_loss"}
"""Where SkyRL has a name for a term's weighted sum; others are ``<term>_loss``."""


_MISMATCH = "minibatch_rollout_logprobs_abs_diff"
"""SkyRL's name of |log-prob of the weights being updated − sampler's|."""


class MetricSums:
    """Collects per-token metrics over micro-batches and ranks, and reduces each as it declared.

    Pickles, so that ranks can send each other theirs.
    """

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._squares: dict[str, float] = {}
        self._counts: dict[str, int] = {}
        self._reductions: dict[str, str] = {}

    def add(
        self, inputs: LossInputs | ValueInputs, out: LossTerms, weights: Mapping[str, Tensor]
    ) -> None:
        """Count one micro-batch: each term's weighted sum, and the loss's own metrics."""
        for name, term in out.terms.items():
            self._add(
                _TERM_METRICS.get(name, f"{name}_loss"), "sum", (weights[name] * term).detach()
            )
        if isinstance(inputs, LossInputs):
            self._add_policy(inputs)
        for name, metric in out.metrics.items():
            self._add(name, metric.reduction, metric.values.detach())

    def _add_policy(self, inputs: LossInputs) -> None:
        self._add("policy_entropy", "mean", inputs.entropy.detach())
        if inputs.sampler_logprobs is not None:
            difference = (inputs.logprobs.detach() - inputs.sampler_logprobs).abs()
            for reduction in ("mean", "std", "min", "max"):
                self._add(f"{_MISMATCH}_{reduction}", reduction, difference)

    def _add(self, name: str, reduction: str, values: Tensor) -> None:
        self._reductions[name] = reduction
        if not values.numel():
            return
        if reduction in {"mean", "std", "sum"}:
            self._sums[name] = self._sums.get(name, 0.0) + float(values.sum(dtype=torch.float64))
            self._counts[name] = self._counts.get(name, 0) + values.numel()
            if reduction == "std":
                square = float((values.double() ** 2).sum())
                self._squares[name] = self._squares.get(name, 0.0) + square
        else:
            choose = max if reduction == "max" else min
            extreme = float(values.max() if reduction == "max" else values.min())
            self._sums[name] = choose(self._sums.get(name, extreme), extreme)

    def include(self, other: "MetricSums") -> None:
        """Count what another one has collected, of other tokens of the same mini-batch."""
        for name, reduction in other._reductions.items():
            self._reductions[name] = reduction
            if name not in other._sums:
                continue
            theirs = other._sums[name]
            if reduction in {"max", "min"}:
                choose = max if reduction == "max" else min
                self._sums[name] = choose(self._sums.get(name, theirs), theirs)
                continue
            self._sums[name] = self._sums.get(name, 0.0) + theirs
            self._counts[name] = self._counts.get(name, 0) + other._counts[name]
            if reduction == "std":
                self._squares[name] = self._squares.get(name, 0.0) + other._squares[name]

    def result(self) -> dict[str, float]:
        """Metric name → value over everything added; metrics without tokens are left out."""
        found = {}
        for name, total in self._sums.items():
            reduction = self._reductions[name]
            found[name] = total / self._counts[name] if reduction in {"mean", "std"} else total
            if reduction == "std":
                variance = self._squares[name] / self._counts[name] - found[name] ** 2
                found[name] = max(variance, 0.0) ** 0.5
        return found
