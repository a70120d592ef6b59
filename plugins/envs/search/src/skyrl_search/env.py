"""An episode of searching: queries in ``<search>``, documents back, the reply in ``<answer>``."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from skyrl_kernel.env import EnvStep, TextEnv
from skyrl_search.judge import extract_answer, extract_query, is_match, targets_of

MAX_TURNS = 2
"""Turns where nobody says how many."""


class Searches(Protocol):
    """What the env asks: a `skyrl_search.client.Retriever`, or another search engine."""

    def search(self, query: str) -> Sequence[str]:
        """The texts of the best documents, best first.

        Raises:
            TrajectoryError: The search engine failed; the trajectory is lost, not judged.
        """
        ...


class SearchEnv(TextEnv):
    """Searches until the model answers, or its turns are used up.

    ====================== ========== ============================= ====
    completion             turns left reply                         done
    ====================== ========== ============================= ====
    an answer              any        none; reward 1.0 if right     yes
    anything else          none       none; reward 0.0              yes
    a query                some       its documents                 no
    neither                some       an empty block of information no
    ====================== ========== ============================= ====

    Args:
        extras: Columns of the row; ``reward_spec.ground_truth.target`` holds the
            right answer or answers, ``max_turns`` may limit the episode.
        retriever: What is asked.
        max_turns: Turns where the row does not say.
        cap: ``generator.max_turns``.
    """

    def __init__(
        self,
        extras: Mapping[str, Any],
        retriever: Searches,
        max_turns: int = MAX_TURNS,
        cap: int | None = None,
    ) -> None:
        super().__init__(extras, max_turns=max_turns, cap=cap)
        self._targets = targets_of(extras)
        self._retriever = retriever
        self._searches = 0
        self._is_right = False

    def step(self, action: str) -> EnvStep:
        """Search for the query, or judge the answer."""
        self.turns += 1
        if self.turns >= self.max_turns or ("<answer>" in action and "</answer>" in action):
            answer = extract_answer(action)
            self._is_right = answer is not None and is_match(answer, self._targets)
            return EnvStep(
                observations=[],
                reward=float(self._is_right),
                done=True,
                metadata={"answer": answer},
            )
        query = extract_query(action)
        return EnvStep(
            observations=[{"role": "user", "content": self._reply(query)}],
            reward=0.0,
            done=False,
            metadata={"query": query},
        )

    def _reply(self, query: str | None) -> str:
        if not query:
            return "\n<information></information>\n"
        documents = self._retriever.search(query)
        self._searches += 1
        found = "".join(f"Doc {n}: {text.strip()}\n" for n, text in enumerate(documents, 1))
        result = json.dumps({"result": found or "No search results found."}, ensure_ascii=False)
        return f"\n<information>{result}</information>\n"

    def get_metrics(self) -> Mapping[str, float]:
        """``exact_match``: 1 if the answer was right; ``steps``; ``searches``: queries answered."""
        return {
            "exact_match": float(self._is_right),
            "steps": float(self.turns),
            "searches": float(self._searches),
        }
