"""An episode with tools: calls in ``<tool>``, their results back, the reply in ``<solution>``."""

import re
from collections.abc import Mapping
from typing import Any

from skyrl_kernel.env import EnvStep, TextEnv, require_ground_truth
from skyrl_searchcode.tools import Call, Tools

_MARKED = re.compile(r"#### (-?[0-9.,]+)")
MAX_TURNS = 2
"""Turns where nobody says how many."""


class SearchcodeEnv(TextEnv):
    """Runs tools until the model gives its solution, or its turns are used up.

    The last reply earns 1.0 if the first number after ``#### `` in the whole conversation
    is the reference, else 0.0.

    Args:
        extras: Columns of the row; ``reward_spec.ground_truth`` is the reference,
            ``max_turns`` may limit the episode.
        tools: By name.
        max_turns: Turns where the row does not say.
        cap: ``generator.max_turns``.

    Example:
        >>> env = SearchcodeEnv({"reward_spec": {"ground_truth": "42"}}, {})
        >>> env.step("<solution>6 * 7 = #### 42</solution>")["reward"]
        1.0
    """

    def __init__(
        self,
        extras: Mapping[str, Any],
        tools: Tools,
        max_turns: int = MAX_TURNS,
        cap: int | None = None,
    ) -> None:
        super().__init__(extras, max_turns=max_turns, cap=cap)
        self._ground_truth = require_ground_truth(extras, "searchcode")
        self._tools = tools
        self._conversation: list[str] = []
        self._calls = 0
        self._is_right = False

    def step(self, action: str) -> EnvStep:
        """Run the tool, or judge the conversation."""
        self.turns += 1
        self._conversation.append(action)
        if self.turns >= self.max_turns or ("<solution>" in action and "</solution>" in action):
            answer = extract_answer("\n".join(self._conversation))
            self._is_right = answer == self._ground_truth
            return EnvStep(
                observations=[],
                reward=float(self._is_right),
                done=True,
                metadata={"parsed_answer": answer},
            )
        tool, reply = self._run(action)
        self._conversation.append(reply)
        return EnvStep(
            observations=[{"role": "user", "content": reply}],
            reward=0.0,
            done=False,
            metadata={"tool": tool},
        )

    def _run(self, action: str) -> tuple[str | None, str]:
        try:
            call = Call.parse(action)
        except ValueError as error:
            return None, str(error)
        if call.tool not in self._tools:
            return None, f"There is no tool '{call.tool}'; there are: {', '.join(self._tools)}."
        self._calls += 1
        return call.tool, self._tools[call.tool](call.input)

    def get_metrics(self) -> Mapping[str, float]:
        """``exact_match``: 1 if the answer was right; ``steps``; ``tool_calls``."""
        return {
            "exact_match": float(self._is_right),
            "steps": float(self.turns),
            "tool_calls": float(self._calls),
        }


def extract_answer(conversation: str) -> str | None:
    """The number after the first ``#### ``, commas removed; None without one.

    Example:
        >>> extract_answer("#### 1,200 and not #### 3")
        '1200'
    """
    match = _MARKED.search(conversation)
    return match.group(1).replace(",", "") if match else None
