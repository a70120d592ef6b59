"""Judges a GSM8K answer by the number after the first ``####``."""

import re
from collections.abc import Mapping
from typing import Any

from skyrl_kernel.env import EnvStep, TextEnv, require_ground_truth

_MARKED = re.compile(r"#### (-?[0-9.,]+)")


def extract_answer(text: str) -> str | None:
    """What follows the first ``####``, one space and a number, commas removed; None without one.

    Everything but the commas stays, a final full stop included: ``42.`` is not ``42``.

    Example:
        >>> extract_answer("3 boxes of 400. #### 1,200"), extract_answer("####42")
        ('1200', None)
    """
    match = _MARKED.search(text)
    return match.group(1).replace(",", "") if match else None


class Gsm8kEnv(TextEnv):
    """One answer: reward 1.0 if its number equals the reference as a string, else 0.0.

    Args:
        extras: Columns of the row; ``reward_spec.ground_truth`` is the reference.

    Example:
        >>> env = Gsm8kEnv({"reward_spec": {"ground_truth": "72"}})
        >>> env.step("48 + 24 = 72 #### 72")["reward"]
        1.0
    """

    instant = True

    def __init__(self, extras: Mapping[str, Any]) -> None:
        super().__init__({}, max_turns=1)
        self._ground_truth = require_ground_truth(extras, "gsm8k")
        self._reward = 0.0

    def step(self, action: str) -> EnvStep:
        """Judge the completion; the episode ends."""
        self.turns += 1
        parsed = extract_answer(action)
        self._reward = float(parsed == self._ground_truth)
        return EnvStep(
            observations=[],
            reward=self._reward,
            done=True,
            metadata={"parsed_answer": parsed},
        )

    def get_metrics(self) -> Mapping[str, float]:
        """``exact_match``: 1 if the answer was right."""
        return {"exact_match": self._reward}
