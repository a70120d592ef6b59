"""A run that learns nothing says so."""

from collections.abc import Sequence

from skyrl_kernel.credited import Credited
from skyrl_kernel.errors import LogprobsDiffError
from skyrl_kernel.records import Trajectory, UpdateResult


class Sentinels:
    """Watches steps for silent failures; each warning is given when it begins and as it doubles.

    Args:
        warn_above: ``trainer.logprobs_diff.warn_above``.
        stop_above: ``trainer.logprobs_diff.stop_above``.
    """

    def __init__(self, warn_above: float | None = None, stop_above: float | None = None) -> None:
        self._warn_above = warn_above
        self._stop_above = stop_above
        self._streaks: dict[str, int] = {}

    def check(
        self,
        step: int,
        credited: Credited,
        results: Sequence[UpdateResult],
        *,
        rewarded: bool,
        difference: float | None = None,
    ) -> list[str]:
        """Warnings about this step, in full sentences.

        Args:
            step: The step.
            credited: What it trained on.
            results: Its updates.
            rewarded: False for data that no reward judged (SFT).
            difference: Nats per trained token between engine and trainer; None if nothing was sampled.
        """
        reward = _only_reward(credited.trajectories)
        advantages = credited.trained_advantages
        found = {
            "constant rewards": rewarded and reward is not None and not advantages.any(),
            "nothing to train on": not advantages.size,
            "unchanged weights": not any(result.weights_changed for result in results),
            "log-probs differ": _exceeds(difference, self._warn_above),
        }
        earned = "" if reward is None else f"{reward:g}"
        texts = {
            "constant rewards": f"every trajectory earned {earned}: no reward tells one from another, "
            "so there is nothing to learn; look at trajectories/ and at the env's reward",
            "nothing to train on": "every token of the batch is masked: the step trains on nothing",
            "unchanged weights": "the optimizer left every weight as it was; look at the learning rate, "
            "the advantages and the loss mask",
            "log-probs differ": f"{_told(difference)}, more than trainer.logprobs_diff.warn_above="
            f"{self._warn_above}. {_CAUSES}",
        }
        warnings = []
        for name, is_so in found.items():
            self._streaks[name] = self._streaks.get(name, 0) + 1 if is_so else 0
            streak = self._streaks[name]
            if streak and streak & (streak - 1) == 0:
                since = f" (for {streak} steps now)" if streak > 1 else ""
                warnings.append(f"step {step}: {texts[name]}{since}")
        return warnings

    def refuse(self, step: int, difference: float | None) -> None:
        """End a run whose engine samples from another model than the trainer trains.

        Raises:
            LogprobsDiffError: ``difference`` is above ``stop_above``.
        """
        if _exceeds(difference, self._stop_above):
            raise LogprobsDiffError(
                f"step {step}: {_told(difference)}, more than trainer.logprobs_diff.stop_above="
                f"{self._stop_above:g}. {_CAUSES}. The last checkpoint is kept, and nothing of this step is "
                "in it; trainer.logprobs_diff.stop_above=null goes on whatever the difference"
            )

    def state_dict(self) -> dict[str, int]:
        """How long each has been so."""
        return dict(self._streaks)

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on counting."""
        self._streaks = dict(state)


_CAUSES = (
    "Likely causes: weights that did not arrive (generator.inference_engine.weight_sync_backend), an engine "
    "in another precision than trainer.bf16, log-probs at another temperature "
    "(trainer.algorithm.temperature, generator.sampling_params.temperature), or a policy that moved far in "
    "few steps (lower the learning rate or trainer.fully_async.max_staleness_steps, or set "
    "trainer.algorithm.off_policy_correction)"
)


def _exceeds(difference: float | None, bound: float | None) -> bool:
    """A difference that is no number exceeds every bound."""
    return difference is not None and bound is not None and not difference <= bound


def _told(difference: float | None) -> str:
    nats = "" if difference is None else f"{difference:.3g}"
    return (
        f"engine and trainer differ by {nats} nats per trained token on average "
        "(policy/rollout_train_logprobs_abs_diff_mean)"
    )


def _only_reward(trajectories: Sequence[Trajectory]) -> float | None:
    """What every judged trajectory earned; None if they differ, or none was judged."""
    judged = (one.reward.total for one in trajectories if one.reward is not None)
    first = next(judged, None)
    return first if all(total == first for total in judged) else None
