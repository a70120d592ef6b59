"""KL against the frozen reference as part of the reward, around any advantage.

Each trained token pays ``β · KL``; β is fixed, or follows a target (Ziegler et
al. 2019, "Fine-Tuning Language Models from Human Preferences", arXiv:1909.08593,
§2.2). The KL is that of the policy before the step's updates.
"""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from skyrl_kernel.config.algorithm import AlgorithmConfig, KLControllerConfig
from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.protocols import Advantage, CreditedGroup, Settings
from skyrl_kernel.records import FloatArray, Scored, TokenAdvantages
from skyrl_kernel.score_metrics import KL_ESTIMATORS

NAME = "kl_in_reward"
MAX_ERROR = 0.2
"""Relative error of the KL that moves β at most, as in Ziegler et al."""


@hookimpl(wrapper=True)
def advantage(settings: Settings) -> Generator[None, Advantage | None, Advantage | None]:
    """Take the KL from the reward, where ``trainer.algorithm.use_kl_in_reward`` asks for it."""
    inner = yield
    algorithm = settings[AlgorithmConfig]
    if inner is None or not algorithm.use_kl_in_reward:
        return inner
    controller = KLController(algorithm.kl_loss_coef, algorithm.kl_ctrl)
    return with_kl(inner, algorithm.kl_estimator_type, controller)


class KLController:
    """The coefficient β, fixed or after a target.

    Args:
        coefficient: The first β.
        config: ``trainer.algorithm.kl_ctrl``.
    """

    def __init__(self, coefficient: float, config: KLControllerConfig) -> None:
        self.coefficient = coefficient
        self._config = config

    def update(self, kl: float, count: int) -> None:
        """Move β towards the target: ``β ← β · (1 + clip(kl / target - 1, ±0.2) · count / horizon)``.

        Args:
            kl: Of the batch, in nats per token.
            count: Trajectories that it is of.

        Example:
            >>> config = KLControllerConfig(type="adaptive", kl_target=0.1, horizon=100)
            >>> controller = KLController(0.2, config)
            >>> controller.update(0.2, 10)
            >>> round(controller.coefficient, 6)
            0.204
        """
        if self._config.type == "fixed":
            return
        error = float(np.clip(kl / self._config.kl_target - 1, -MAX_ERROR, MAX_ERROR))
        self.coefficient *= max(1 + error * count / self._config.horizon, 0.0)

    def state_dict(self) -> dict[str, Any]:
        """β."""
        return {"coefficient": self.coefficient}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the β of the checkpoint, unless it is fixed: then with that of the config."""
        if self._config.type == "adaptive":
            self.coefficient = float(state["coefficient"])


def with_kl(inner: Advantage, estimator: str, controller: KLController) -> Advantage:
    """``inner``, of rewards from which the KL of each token was taken.

    Metrics: ``loss/kl_loss_coef`` is the β that the step was credited with.
    """
    numbers: dict[str, float] = {}

    def fn(groups: Sequence[Sequence[Scored]]) -> list[list[tuple[TokenAdvantages, ...]]]:
        numbers["loss/kl_loss_coef"] = controller.coefficient
        kls = [[token_kl(one, estimator) for one in group] for group in groups]
        credited = inner(
            [
                [penalised(one, kl, controller.coefficient) for one, kl in zip(*pair, strict=True)]
                for pair in zip(groups, kls, strict=True)
            ]
        )
        means = [
            float(np.mean(kept))
            for group, rows in zip(groups, kls, strict=True)
            for one, kl in zip(group, rows, strict=True)
            if len(kept := _trained(one, kl))
        ]
        if means:
            controller.update(float(np.mean(means)), len(means))
        return credited

    def measure(groups: Sequence[CreditedGroup]) -> Mapping[str, float]:
        return {**inner.measure(groups), **numbers}

    return replace(
        inner,
        fn=fn,
        needs=inner.needs | {"old_logprobs", "ref_logprobs"},
        measure=measure,
        state={**inner.state, NAME: controller},
    )


def token_kl(scored: Scored, estimator: str) -> tuple[FloatArray, ...]:
    """[T] nats per segment: the estimate of each token, masked ones included."""
    rows = []
    for scores in scored.scores:
        assert scores.old_logprobs is not None, "declared in needs"
        assert scores.ref_logprobs is not None, "declared in needs"
        rows.append(KL_ESTIMATORS[estimator](scores.old_logprobs, scores.ref_logprobs))
    return tuple(rows)


def penalised(scored: Scored, kl: Sequence[FloatArray], coefficient: float) -> Scored:
    """The trajectory, each token's reward less ``coefficient`` × its KL."""
    before = scored.token_rewards or tuple(np.zeros_like(row) for row in kl)
    return replace(
        scored,
        token_rewards=tuple(
            rewards - np.float32(coefficient) * row for rewards, row in zip(before, kl, strict=True)
        ),
    )


def _trained(scored: Scored, rows: Sequence[FloatArray]) -> FloatArray:
    masks = [segment.loss_mask for segment in scored.trajectory.segments]
    return np.concatenate([row[mask] for row, mask in zip(rows, masks, strict=True)])
