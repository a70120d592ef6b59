"""One answer, judged by another model."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from skyrl_kernel.env import EnvStep, TextEnv, require_ground_truth
from skyrl_kernel.records import Message
from skyrl_llm_as_a_judge.verdict import PROMPT, fill, places_of, read_verdict


class Asks(Protocol):
    """What the env asks: a `skyrl_llm_as_a_judge.client.Judge`, or another."""

    def ask(self, question: str) -> str:
        """The judge's reply.

        Raises:
            TrajectoryError: The judge failed; the trajectory is lost, not judged.
        """
        ...


class JudgeEnv(TextEnv):
    """One answer: reward 1.0 if the judge says so, else 0.0.

    A reply that gives no score also means 0.0, since the answer was not confirmed;
    it is counted as ``judge_unreadable``.

    Args:
        extras: Columns of the row; ``reward_spec.ground_truth`` is needed if the
            prompt shows it.
        judge: Who is asked.
        prompt: What it is asked.
    """

    def __init__(self, extras: Mapping[str, Any], judge: Asks, prompt: str = PROMPT) -> None:
        super().__init__({})
        needs_truth = "ground_truth" in places_of(prompt)
        self._ground_truth = require_ground_truth(extras, "llm_as_a_judge") if needs_truth else ""
        self._judge = judge
        self._prompt = prompt
        self._question = ""
        self._score: float | None = None

    def init(self, prompt: Sequence[Message]) -> tuple[Sequence[Message], Mapping[str, Any]]:
        """Keep the prompt as it is; its last user message is the question."""
        asked = [str(one["content"]) for one in prompt if one["role"] == "user"]
        self._question = asked[-1] if asked else ""
        return prompt, {}

    def step(self, action: str) -> EnvStep:
        """Have the completion judged; the episode ends."""
        self.turns += 1
        reply = self._judge.ask(
            fill(
                self._prompt,
                {
                    "question": self._question,
                    "ground_truth": self._ground_truth,
                    "completion": action,
                },
            )
        )
        self._score = read_verdict(reply)
        return EnvStep(
            observations=[],
            reward=self._score or 0.0,
            done=True,
            metadata={"judge": reply, "score": self._score},
        )

    def get_metrics(self) -> Mapping[str, float]:
        """``exact_match``: 1 if judged right; ``judge_unreadable``: 1 if the reply gave no score."""
        return {
            "exact_match": self._score or 0.0,
            "judge_unreadable": float(self._score is None),
        }
