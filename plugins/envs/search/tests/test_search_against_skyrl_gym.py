"""The env beside that of the package skyrl-gym, both asking the same served retriever."""

import json
import random
import threading
from pathlib import Path

import pytest

from skyrl_search.client import Retriever
from skyrl_search.env import SearchEnv
from skyrl_search.index import open_index
from skyrl_search.judge import is_match
from skyrl_search.server import RetrievalServer

EPISODES = 1500
TARGETS = (
    *("Paris", "The Beatles", "U.S. Navy", "1,000", "an apple", "Beyoncé", "x = 3", "half-life"),
    *("a", "theatre", "World War II", "  spaces  ", "O'Neill", "«quoted»", "日本", "New York City"),
)
SPELLINGS = ("{}", " {} ", "the {}", "{}.", "'{}'", "{}!?", "{}\n", "a {} an", "({})", "{} the")
ANSWERS = (
    *("<answer>{}</answer>", "I know: <answer> {} </answer>", "<answer>\n{}\n</answer> bye"),
    *("<answer>no</answer><answer>{}</answer>", "<answer>{}</answer><answer>no</answer>"),
    *("<search>x</search><answer>{}</answer>", "<answer>It is {}</answer>", "</answer>{}<answer>"),
    "<answer><b>{}</b></answer>",
)
SEARCHES = (
    *("<search>{}</search>", "Let me see. <search> {} </search>", "<search>{}\n</search><search>x"),
    *("<search>who is {} and why</search>", "{}", "<search>{}", "{}</search>", "<information>"),
)


def completion(rng: random.Random, target: str, is_last: bool) -> str:
    if not is_last and rng.random() < 0.4:
        return rng.choice(SEARCHES).format(rng.choice((target, *TARGETS)))
    answer = target if rng.random() < 0.8 else rng.choice(TARGETS)
    spelling = SPELLINGS[0] if rng.random() < 0.3 else rng.choice(SPELLINGS)
    frame = ANSWERS[0] if rng.random() < 0.5 else rng.choice(ANSWERS)
    return frame.format(spelling.format(answer))


@pytest.mark.slow
def test_every_turn_of_search_is_as_skyrl_gyms(tmp_path: Path) -> None:
    theirs = pytest.importorskip("skyrl_gym.envs.search.env", reason="not checked: no skyrl-gym")
    corpus = tmp_path / "corpus.jsonl"
    texts = [f'"{target}"\nIt is about {target}.' for target in TARGETS if target.isascii()]
    corpus.write_text("".join(json.dumps({"contents": text}) + "\n" for text in texts))
    index = open_index(corpus)
    rng = random.Random(1)
    turns = right = searches = 0
    with RetrievalServer(index) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        retriever = Retriever(server.url)
        settings = theirs.SearchEnvConfig(search_url=server.url)
        for _ in range(EPISODES):
            target = rng.choice(TARGETS)
            wanted = rng.choice([target, [target], ["other", target]])
            row = {"reward_spec": {"method": "rule", "ground_truth": {"target": wanted}}}
            if rng.random() < 0.7:
                row["max_turns"] = rng.randint(1, 4)
            own, other = SearchEnv(row, retriever), theirs.SearchEnv(settings, row)
            done = False
            while not done:
                action = completion(rng, target, own.turns + 1 == own.max_turns)
                one, two = own.step(action), other.step(action)
                found = (
                    one["observations"] and "No search results" in one["observations"][0]["content"]
                )
                for key in ("reward", "done", *(() if found else ("observations",))):
                    assert one[key] == two[key], (row, action)
                done = one["done"]
            turns, right = turns + own.turns, right + (one["reward"] == 1.0)
            searches += int(own.get_metrics()["searches"])
        for session in theirs.SearchToolGroup._session_pool.values():
            session.close()
        theirs.SearchToolGroup._session_pool.clear()
        retriever.close()
        server.shutdown()
    index.close()
    assert EPISODES / 3 < right < EPISODES
    assert searches > EPISODES / 5


@pytest.mark.slow
def test_matching_is_skyrl_gyms_on_any_text() -> None:
    theirs = pytest.importorskip("skyrl_gym.envs.search.utils", reason="not checked: no skyrl-gym")
    rng = random.Random(2)
    pieces = (*"aA.,' -the!“é\n\t", "an ", "the ", " a", "A.", "İ", "ß", "ﬁ", "\u00a0", "cat", "1")
    right = 0
    for _ in range(20_000):
        one, two = ("".join(rng.choices(pieces, k=rng.randint(0, 6))) for _ in range(2))
        two = one.upper() + "." if rng.random() < 0.4 else two
        assert is_match(one, (two,)) == bool(theirs.em_check(one, [two])), (one, two)
        right += is_match(one, (two,))
    assert right > 20_000 / 3
