r"""Judges a multiplication by what the completion puts in its first ``\boxed{…}``."""

import re
from collections.abc import Mapping
from typing import Any

from skyrl_kernel.env import EnvStep, TextEnv, require_ground_truth

_BOXED = re.compile(r"\\boxed\{([^}]+)\}")


def parse_answer(action: str) -> str | None:
    r"""Content of the first ``\boxed{…}`` without surrounding space; None if there is none.

    Braces do not nest: the content ends at the first ``}``.

    Example:
        >>> parse_answer(r"40 + 2 = \boxed{ 42 }")
        '42'
    """
    match = _BOXED.search(action)
    return match.group(1).strip() if match else None


class MultiplyEnv(TextEnv):
    r"""Asks until the box holds the product, or the turns are used up.

    =================== ========== ==================== ====
    box                 turns left reward               done
    =================== ========== ==================== ====
    equal to the answer any        1.0                  yes
    anything else       none       ``wrong_box_reward`` yes
    no box              none       0.0                  yes
    anything else       some       0.0, and a reply     no
    no box              some       0.0, and a reply     no
    =================== ========== ==================== ====

    Equality is of strings: ``1,234`` and ``1234.0`` are not ``1234``.

    Args:
        extras: Columns of the row; ``reward_spec.ground_truth`` is the product.
        max_turns: Answers allowed where the row does not say.
        cap: ``generator.max_turns``.
        wrong_box_reward: Reward of a boxed but wrong answer on the last turn.

    Example:
        >>> env = MultiplyEnv({"reward_spec": {"ground_truth": "42"}})
        >>> env.step(r"\boxed{41}")["reward"], env.step(r"\boxed{42}")["reward"]
        (0.0, 1.0)
        >>> env.get_metrics()
        {'exact_match': 1.0, 'steps': 2.0, 'exact_match_first_turn': 0.0, 'rescued': 1.0}
    """

    instant = True

    def __init__(
        self,
        extras: Mapping[str, Any],
        max_turns: int = 5,
        cap: int | None = None,
        wrong_box_reward: float = 0.5,
    ) -> None:
        super().__init__(extras, max_turns=max_turns, cap=cap)
        self._ground_truth = require_ground_truth(extras, "multiply").strip()
        self._wrong_box_reward = wrong_box_reward
        self._is_solved = False
        self._first_is_right: bool | None = None

    def step(self, action: str) -> EnvStep:
        """Judge one completion."""
        self.turns += 1
        parsed = parse_answer(action)
        self._is_solved = parsed == self._ground_truth
        if self._first_is_right is None:
            self._first_is_right = self._is_solved
        is_last = self.turns >= self.max_turns
        if self._is_solved:
            reward = 1.0
        else:
            reward = self._wrong_box_reward if is_last and parsed is not None else 0.0
        done = self._is_solved or is_last
        return EnvStep(
            observations=[] if done else [{"role": "user", "content": _reply(parsed)}],
            reward=reward,
            done=done,
            metadata={"parsed_answer": parsed},
        )

    def get_metrics(self) -> Mapping[str, float]:
        """``exact_match``: 1 if the last answer was right; ``steps``: answers given.

        Where more than one answer is allowed also ``exact_match_first_turn``, and
        of an episode whose first answer was wrong ``rescued``: 1 if a later one
        was right. The others have no ``rescued``, so that its mean over episodes
        (`skyrl_kernel.env.mean_metrics`) is the rescue rate: right later, among
        those wrong at first.
        """
        metrics = {"exact_match": float(self._is_solved), "steps": float(self.turns)}
        if self.max_turns > 1 and self._first_is_right is not None:
            metrics["exact_match_first_turn"] = float(self._first_is_right)
            if not self._first_is_right:
                metrics["rescued"] = float(self._is_solved)
        return metrics


def _reply(parsed: str | None) -> str:
    if parsed is None:
        return r"There is no boxed answer. Give the product in \boxed{your_answer}."
    return f"{parsed} is not the product. Look for the mistake and try again."
