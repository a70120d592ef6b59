"""A run that learns nothing says so."""

from collections.abc import Sequence

from skyrl_kernel.protocols import CreditedGroup
from skyrl_kernel.records import UpdateResult


class Sentinels:
    """Watches steps for silent failures; each warning is given when it begins and as it doubles."""

    def __init__(self) -> None:
        self._streaks: dict[str, int] = {}

    def check(
        self,
        step: int,
        groups: Sequence[CreditedGroup],
        results: Sequence[UpdateResult],
        *,
        rewarded: bool,
    ) -> list[str]:
        """Warnings about this step, in full sentences.

        Args:
            step: The step.
            groups: What it trained on.
            results: Its updates.
            rewarded: False for data that no reward judged (SFT).
        """
        reward = _only_reward(groups)
        trained = any(
            entry.loss_mask.any() for group in groups for _, tokens in group for entry in tokens
        )
        credited = any(
            entry.advantages[entry.loss_mask].any()
            for group in groups
            for _, tokens in group
            for entry in tokens
        )
        found = {
            "constant rewards": rewarded and reward is not None and not credited,
            "nothing to train on": not trained,
            "unchanged weights": not any(result.weights_changed for result in results),
        }
        earned = "" if reward is None else f"{reward:g}"
        texts = {
            "constant rewards": f"every trajectory earned {earned}: no reward tells one from another, "
            "so there is nothing to learn; look at trajectories/ and at the env's reward",
            "nothing to train on": "every token of the batch is masked: the step trains on nothing",
            "unchanged weights": "the optimizer left every weight as it was; look at the learning rate, "
            "the advantages and the loss mask",
        }
        warnings = []
        for name, is_so in found.items():
            self._streaks[name] = self._streaks.get(name, 0) + 1 if is_so else 0
            streak = self._streaks[name]
            if streak and streak & (streak - 1) == 0:
                since = f" (for {streak} steps now)" if streak > 1 else ""
                warnings.append(f"step {step}: {texts[name]}{since}")
        return warnings

    def state_dict(self) -> dict[str, int]:
        """How long each has been so."""
        return dict(self._streaks)

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on counting."""
        self._streaks = dict(state)


def _only_reward(groups: Sequence[CreditedGroup]) -> float | None:
    """What every judged trajectory earned; None if they differ, or none was judged."""
    first: float | None = None
    for group in groups:
        for one, _ in group:
            reward = one.trajectory.reward
            if reward is None:
                continue
            if first is None:
                first = reward.total
            elif reward.total != first:
                return None
    return first
