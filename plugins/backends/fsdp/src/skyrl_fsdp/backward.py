"""The gradient of one mini-batch: every micro-batch forward, through the loss, and back.

All ranks make equally many passes, since each gathers the layers of all: one that has fewer
micro-batches computes along with nobody's rows, and an objective of 0.
"""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from skyrl_fsdp.critic import Critic
from skyrl_fsdp.finite import require_finite
from skyrl_fsdp.microbatch import IDLE, forward, forward_values
from skyrl_fsdp.ranks import Ranks
from skyrl_fsdp.ulysses import Partners
from skyrl_kernel.protocols import Loss
from skyrl_kernel.records import TrainingSample
from skyrl_kernel.torch import (
    LossTerms,
    MetricSums,
    objective,
    pack,
    pack_values,
    value_objective,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Backward:
    """What the passes of one mini-batch have in common."""

    policy: PreTrainedModel | None
    """None where it is in other processes."""
    critic: Critic | None
    """None where it is in other processes, or the loss trains none."""
    loss: Loss
    temperature: float
    seed: int
    """Key of the loss's random choices."""
    packs: bool
    """As in `skyrl_fsdp.microbatch.forward`."""
    precision: Callable[[], contextlib.AbstractContextManager[object]]
    """What models compute in."""
    ranks: Ranks
    partners: Partners
    """The policy's, …"""
    critic_partners: Partners
    """… and the critic's."""

    def run(self, micro_batches: Sequence[Sequence[TrainingSample]]) -> tuple[float, MetricSums]:
        """Leave the gradient of the mini-batch in the models' parameters.

        Args:
            micro_batches: This rank's; those without rows compute along. As many on all ranks.

        Returns:
            The objective, and what is told of the tokens: of all ranks.

        Raises:
            NonFiniteError: NaN or infinity in log-probs, values or loss.
            ValueError: A sample lacks what the loss needs.
        """
        columns = self._prepare(micro_batches)
        total, sums = 0.0, MetricSums()
        for rows in micro_batches:
            with self.precision():
                said = self._forward(rows, entropy_has_gradient="entropy" in self.loss.coefficients)
                values = self._values(rows)
            scalar = self.ranks.agree(
                lambda: self._objective(rows, said, values, columns, sums)  # noqa: B023
            )
            scalar.backward()  # type: ignore[no-untyped-call]
            total += float(scalar.detach())
        totals = self.ranks.of_shares((total, sums))
        everything = MetricSums()
        for _, of_share in totals:
            everything.include(of_share)
        return sum(of_share for of_share, _ in totals), everything

    def _forward(
        self, rows: Sequence[TrainingSample], *, entropy_has_gradient: bool
    ) -> tuple[Tensor, Tensor] | None:
        """Log-probs and entropies."""
        if self.policy is None:
            return None
        return forward(
            self.policy,
            rows or [IDLE],
            self.temperature,
            entropy_has_gradient=entropy_has_gradient,
            packs=self.packs,
            device=self.ranks.device,
            partners=self.partners,
        )

    def _values(self, rows: Sequence[TrainingSample]) -> Tensor | None:
        if self.critic is None:
            return None
        return forward_values(
            self.critic,
            rows or [IDLE],
            packs=self.packs,
            device=self.ranks.device,
            partners=self.critic_partners,
        )

    def _objective(
        self,
        rows: Sequence[TrainingSample],
        said: tuple[Tensor, Tensor] | None,
        values: Tensor | None,
        columns: dict[str, Tensor],
        sums: MetricSums,
    ) -> Tensor:
        """The scalar of one micro-batch, its metrics added to ``sums``."""
        if not rows:
            computed = [tensor for tensor in (said and said[0], values) if tensor is not None]
            return 0.0 * torch.stack([tensor.sum() for tensor in computed]).sum()
        parts = []
        if said is not None:
            parts.append(self._of_policy(rows, *said, columns, sums))
        if values is not None:
            parts.append(self._of_critic(rows, values, sums))
        return torch.stack(parts).sum()

    def _of_policy(
        self,
        rows: Sequence[TrainingSample],
        logprobs: Tensor,
        entropy: Tensor,
        columns: dict[str, Tensor],
        sums: MetricSums,
    ) -> Tensor:
        require_finite({"log-probs": logprobs}, rows)
        inputs, weights = pack(
            rows, logprobs, entropy, needs=self.loss.needs, minibatch=columns, seed=self.seed
        )
        scalar, out = objective(self.loss, inputs, weights)
        _require_finite_terms(out, rows)
        sums.add(inputs, out, weights)
        return scalar

    def _of_critic(
        self, rows: Sequence[TrainingSample], values: Tensor, sums: MetricSums
    ) -> Tensor:
        require_finite({"values": values}, rows)
        inputs, weights = pack_values(rows, values, needs=self.loss.needs)
        scalar, out = value_objective(self.loss, inputs, weights)
        _require_finite_terms(out, rows)
        sums.add(inputs, out, weights)
        return scalar

    @torch.no_grad()
    def _prepare(self, micro_batches: Sequence[Sequence[TrainingSample]]) -> dict[str, Tensor]:
        """What ``loss.prepare`` returns, joined over the mini-batch; empty without one or a policy."""
        if self.loss.prepare is None or self.policy is None:
            return {}
        columns: dict[str, list[Tensor]] = {}
        for rows in micro_batches:
            with self.precision():
                said = self._forward(rows, entropy_has_gradient=False)
            assert said is not None, "there is a policy"
            for name, column in self.ranks.agree(
                lambda: self._columns(rows, *said)  # noqa: B023
            ).items():
                columns.setdefault(name, []).append(column)
        mine = {name: torch.cat(parts).cpu() for name, parts in columns.items()}
        shares = self.ranks.of_shares(mine)
        return {
            name: torch.cat([share[name] for share in shares if name in share]).to(
                self.ranks.device
            )
            for name in dict.fromkeys(name for share in shares for name in share)
        }

    def _columns(
        self, rows: Sequence[TrainingSample], logprobs: Tensor, entropy: Tensor
    ) -> dict[str, Tensor]:
        if not rows:
            return {}
        require_finite({"log-probs": logprobs}, rows)
        inputs, _ = pack(rows, logprobs, entropy, needs=self.loss.needs, seed=self.seed)
        assert self.loss.prepare is not None
        return dict(self.loss.prepare(inputs))


def _require_finite_terms(out: LossTerms, rows: Sequence[TrainingSample]) -> None:
    require_finite({f"the loss terms '{name}'": term for name, term in out.terms.items()}, rows)
