"""Judges the solution of a competition problem by the last line that says ``Answer:``."""

import re
from collections.abc import Mapping
from typing import Any

from skyrl_aime.normalise import normalise
from skyrl_kernel.env import EnvStep, TextEnv

_ANSWER = re.compile(r"(?i)Answer\s*:\s*([^\n<]+)")
_TAIL_CHARACTERS = 300
"""How much of a completion's end is searched for the answer."""
NO_ANSWER = "[INVALID]"


def extract_answer(completion: str) -> str:
    r"""What the last line with an ``Answer:`` says after it, normalised.

    It ends with the line or at a ``<``. Only the last 300 characters are searched.
    Without an answer: ``[INVALID]``.

    Example:
        >>> extract_answer("Answer: 3?\nNo. Answer: 1,042 points<|im_end|>")
        '1042'
    """
    found = _ANSWER.findall(completion[-_TAIL_CHARACTERS:])
    return normalise(found[-1] if found else NO_ANSWER)


class AimeEnv(TextEnv):
    """One answer: reward 1.0 if it equals the reference, both normalised, else -1.0.

    Args:
        extras: Columns of the row; ``reward_model.ground_truth``, or else
            ``reward_spec.ground_truth``, is the reference.

    Example:
        >>> env = AimeEnv({"reward_model": {"ground_truth": "1042"}})
        >>> env.step("… so the sum is 1042. Answer: $1,042$")["reward"]
        1.0
    """

    instant = True

    def __init__(self, extras: Mapping[str, Any]) -> None:
        super().__init__({})
        self._ground_truth = normalise(_ground_truth(extras))
        self._is_right = False

    def step(self, action: str) -> EnvStep:
        """Judge the completion; the episode ends."""
        self.turns += 1
        answer = extract_answer(action)
        self._is_right = answer == self._ground_truth
        return EnvStep(
            observations=[],
            reward=1.0 if self._is_right else -1.0,
            done=True,
            metadata={"acc": self._is_right, "pred": answer},
        )

    def get_metrics(self) -> Mapping[str, float]:
        """``exact_match``: 1 if the answer was right."""
        return {"exact_match": float(self._is_right)}


def _ground_truth(extras: Mapping[str, Any]) -> str:
    for column in ("reward_model", "reward_spec"):
        spec = extras.get(column)
        if isinstance(spec, Mapping) and spec.get("ground_truth") is not None:
            return str(spec["ground_truth"])
    raise ValueError(
        "env 'aime' needs the column reward_model (or reward_spec) with a field ground_truth; "
        f"this row has the columns: {', '.join(sorted(extras)) or 'none'}"
    )
