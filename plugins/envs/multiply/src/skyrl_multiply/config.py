"""What can be set about the problems and about how answers are judged."""

import re
from typing import Annotated

from pydantic import Field, field_validator

from skyrl_kernel.config import Section


class ProblemOptions(Section):
    """Which problems there are: the options of ``skyrl data multiply``."""

    num_digits: str = "2"
    """Digits of both factors (``2``), or of each (``3x1``)."""
    train_size: Annotated[int, Field(ge=1)] = 10_000
    """Training rows. Distinct while there are any; then all are repeated in another order."""
    test_size: Annotated[int, Field(ge=1)] = 200
    """Held-out rows, all distinct."""
    seed: int = 42
    """Decides which problems are drawn, and their order."""

    @field_validator("num_digits")
    @classmethod
    def _is_readable(cls, text: str) -> str:
        if not re.fullmatch(r"[1-9][0-9]?(x[1-9][0-9]?)?", text):
            raise ValueError(
                f"'{text}' is not a number of digits from 1 to 99, nor two such as 3x1"
            )
        return text

    @property
    def digits(self) -> tuple[int, int]:
        """Digits of the first and of the second factor.

        Example:
            >>> ProblemOptions(num_digits="3x1").digits
            (3, 1)
        """
        first, _, second = self.num_digits.partition("x")
        return int(first), int(second or first)


class MultiplyConfig(ProblemOptions):
    """``environment.multiply``: the env, and what ``multiply:train`` and ``:validation`` hold."""

    max_turns: Annotated[int, Field(ge=1)] = 5
    """Answers that the model may give, unless the row says; ``generator.max_turns`` caps both."""
    wrong_box_reward: float = 0.5
    """Reward of a boxed but wrong answer on the last turn (a right one has 1, none at all 0)."""
