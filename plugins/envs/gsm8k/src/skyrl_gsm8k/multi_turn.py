"""GSM8K over several turns: each is judged by itself, and a right answer ends the episode."""

from collections.abc import Mapping
from typing import Any

from skyrl_gsm8k.env import extract_answer
from skyrl_kernel.env import EnvStep, TextEnv, read_turns, require_ground_truth

MAX_TURNS = 5
FORMAT_REWARD = 0.2
"""What an episode of well-formed wrong answers earns altogether."""

_GO_ON = (
    "Please provide your step-by-step reasoning, and also include a tentative numeric answer "
    "at the end in the exact format: '#### ANSWER'."
)
_LAST = "Now provide only the final numeric answer in the exact format: '#### ANSWER'."


class Gsm8kMultiTurnEnv(TextEnv):
    """Asks until the number after the first ``####`` is right, or the turns are used up.

    ================= ====================== ====================
    number            reward of the turn     done
    ================= ====================== ====================
    right             1.0                    yes
    wrong             0.2 / ``max_turns``    if no turns are left
    none after `####` 0.0                    if no turns are left
    ================= ====================== ====================

    Args:
        extras: Columns of the row. ``max_turns``, or else ``extra_info.max_turns``,
            or else 5, is how many answers are allowed.
        cap: ``generator.max_turns``.

    Raises:
        ValueError: The row has no reference, or a number of turns that is none.

    Example:
        >>> env = Gsm8kMultiTurnEnv({"reward_spec": {"ground_truth": "72"}})
        >>> [env.step(f"#### {answer}")["reward"] for answer in (71, "x", 72)]
        [0.04, 0.0, 1.0]
    """

    instant = True

    def __init__(self, extras: Mapping[str, Any], cap: int | None = None) -> None:
        info = extras.get("extra_info")
        own = info.get("max_turns") if isinstance(info, Mapping) else None
        turns = MAX_TURNS if own is None else read_turns(own, "extra_info.max_turns")
        super().__init__(extras, max_turns=turns, cap=cap)
        self._ground_truth = require_ground_truth(extras, "gsm8k_multi_turn")
        self._is_solved = False

    def step(self, action: str) -> EnvStep:
        """Judge one completion."""
        self.turns += 1
        parsed = extract_answer(action)
        self._is_solved = parsed == self._ground_truth
        left = self.max_turns - self.turns
        if self._is_solved:
            reward = 1.0
        else:
            reward = 0.0 if parsed is None else FORMAT_REWARD / self.max_turns
        done = self._is_solved or left <= 0
        reply = _GO_ON if left > 1 else _LAST
        return EnvStep(
            observations=[] if done else [{"role": "user", "content": reply}],
            reward=reward,
            done=done,
            metadata={"parsed_answer": parsed},
        )

    def get_metrics(self) -> Mapping[str, float]:
        """``exact_match``: 1 if the last answer was right; ``avg_steps``: answers given."""
        return {"exact_match": float(self._is_solved), "avg_steps": float(self.turns)}
