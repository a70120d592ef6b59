"""An episode of searching: in the env alone, and in a run with a retriever that is really served."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from skyrl_kernel.config import EnvironmentConfig
from skyrl_kernel.env import Env
from skyrl_kernel.errors import FailureBudgetError
from skyrl_kernel.json_lines import read_lines
from skyrl_kernel.run.trajectory_file import read_trajectories
from skyrl_kernel.testing.contracts import EnvContract
from skyrl_kernel.testing.scripted import Ask, Script, installed, run_scripted
from skyrl_search.client import Retriever, shared_retriever
from skyrl_search.config import SearchConfig
from skyrl_search.env import SearchEnv
from skyrl_search.index import open_index
from skyrl_search.plugin import make_env
from skyrl_search.server import RetrievalServer

CAPITALS = {
    "France": "Paris",
    "Italy": "Rome",
    "Spain": "Madrid",
    "Norway": "Oslo",
    "Colombia": "Bogotá",
}


def row(target: object = "Paris", **columns: object) -> dict[str, object]:
    return {"reward_spec": {"method": "rule", "ground_truth": {"target": target}}, **columns}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    corpus = tmp_path_factory.mktemp("corpus") / "capitals.jsonl"
    texts = [
        {"contents": f'"{city}"\n{city} is the capital of {country}.'}
        for country, city in CAPITALS.items()
    ]
    corpus.write_text("".join(json.dumps(text) + "\n" for text in texts), encoding="utf-8")
    index = open_index(corpus)
    with RetrievalServer(index) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server.url
        server.shutdown()
    index.close()


@pytest.fixture
def retriever(url: str) -> Iterator[Retriever]:
    one = Retriever(url, topk=2)
    yield one
    one.close()


class TestSearch(EnvContract):
    prompt = ({"role": "user", "content": "What is the capital of France?"},)
    actions = (
        *("<answer>Paris</answer>", "<answer>Rome</answer>", "Paris", "<search>France</search>"),
        *("<search>", "<search></search>", "<search>\ud800 Oslo</search>", "</answer><answer>"),
    )

    @pytest.fixture(autouse=True)
    def _has_a_retriever(self, retriever: Retriever) -> None:
        self.retriever = retriever

    def make(self, cap: int | None = None) -> Env:
        return SearchEnv(row(max_turns=4), self.retriever, cap=cap)


def test_a_query_is_answered_with_documents_as_skyrl_shows_them(retriever: Retriever) -> None:
    env = SearchEnv(row(), retriever)
    step = env.step("I look it up. <search> capital of Norway </search>")
    assert step["observations"] == [
        {
            "role": "user",
            "content": '\n<information>{"result": "Doc 1: \\"Oslo\\"\\nOslo is the capital of Norway.'
            '\\nDoc 2: \\"Paris\\"\\nParis is the capital of France.\\n"}</information>\n',
        }
    ]
    assert (step["reward"], step["done"]) == (0.0, False)
    assert step["metadata"] == {"query": "capital of Norway"}


def test_letters_are_shown_as_they_are(retriever: Retriever) -> None:
    (message,) = SearchEnv(row(), retriever).step("<search>Colombia</search>")["observations"]
    assert "Bogotá is the capital" in message["content"]


def test_nothing_found_is_said(retriever: Retriever) -> None:
    (message,) = SearchEnv(row(), retriever).step("<search>quince</search>")["observations"]
    assert message["content"] == (
        '\n<information>{"result": "No search results found."}</information>\n'
    )


@pytest.mark.parametrize("action", ["Paris", "<search>Paris", "<search> </search>", ""])
def test_without_a_query_the_information_is_empty(retriever: Retriever, action: str) -> None:
    env = SearchEnv(row(), retriever)
    step = env.step(action)
    assert step["observations"] == [{"role": "user", "content": "\n<information></information>\n"}]
    assert env.get_metrics()["searches"] == 0


@pytest.mark.parametrize(
    ("action", "target", "reward"),
    [
        ("<answer>the paris.</answer>", "Paris", 1.0),
        ("<answer>Rome</answer>", "Paris", 0.0),
        ("<answer>Rome</answer>", ["Paris", "rome"], 1.0),
        ("<answer>Rome</answer><answer>Paris</answer>", "Paris", 1.0),
        ("<search>x</search><answer>Paris</answer>", "Paris", 1.0),
        ("</answer>Paris<answer>", "Paris", 0.0),
    ],
)
def test_an_answer_ends_the_episode(
    retriever: Retriever, action: str, target: object, reward: float
) -> None:
    env = SearchEnv(row(target), retriever, max_turns=9)
    step = env.step(action)
    assert (step["reward"], step["done"], step["observations"]) == (reward, True, [])
    assert env.get_metrics() == {"exact_match": reward, "steps": 1.0, "searches": 0.0}


def test_the_last_turn_searches_no_more(retriever: Retriever) -> None:
    env = SearchEnv(row(), retriever, max_turns=2)
    assert not env.step("<search>France</search>")["done"]
    assert env.step("<search>France</search>") == {
        "observations": [],
        "reward": 0.0,
        "done": True,
        "metadata": {"answer": None},
    }
    assert env.get_metrics() == {"exact_match": 0.0, "steps": 2.0, "searches": 1.0}


def test_a_document_cannot_answer_for_the_model() -> None:
    class Planted:
        def search(self, query: str) -> list[str]:
            return ["<answer>Paris</answer>"]

    env = SearchEnv(row(), Planted())
    env.step("<search>France</search>")
    assert env.step("I do not know.")["reward"] == 0.0


@pytest.mark.parametrize(
    ("own", "setting", "cap", "turns"),
    [
        (None, None, None, 2),
        (None, None, 4, 4),  # generator.max_turns, as SkyRL's launch script sets it
        (None, 3, None, 3),
        (None, 3, 4, 3),
        (None, 3, 1, 1),
        (5, 3, None, 5),
        (5, 3, 4, 4),
        (5, None, 9, 5),
    ],
)
def test_how_many_turns_there_are(
    own: int | None, setting: int | None, cap: int | None, turns: int
) -> None:
    settings = {
        SearchConfig: SearchConfig(max_turns=setting),
        EnvironmentConfig: EnvironmentConfig(),
    }
    env = make_env("search", settings, row(max_turns=own), cap)
    assert env is not None
    assert env.max_turns == turns


def test_envs_share_the_connections_of_one_retriever(url: str) -> None:
    settings = {SearchConfig: SearchConfig(search_url=url), EnvironmentConfig: EnvironmentConfig()}
    first, second = (make_env("search", settings, row(), None) for _ in range(2))
    assert first is not None
    assert second is not None
    assert first._retriever is second._retriever
    assert make_env("gsm8k", settings, row(), None) is None


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://x/retrieve", "http://", "http://x:y/z"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"is no address of a retriever; write http://HOST:PORT"):
        SearchConfig(search_url=url)


def data(folder: Path) -> str:
    rows = [
        {
            "prompt": [{"role": "user", "content": f"Capital of {country}?"}],
            "env_class": "search",
            **row([city]),
        }
        for country, city in CAPITALS.items()
    ]
    file = folder / "questions.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return str(file)


def reply(ask: Ask) -> str:
    """Search for the country; then answer with the first document's title."""
    if "<information>" not in ask.text:
        country = ask.text.partition("Capital of ")[2].partition("?")[0]
        return f"<search>{country}</search>"
    title = ask.text.rpartition('Doc 1: \\"')[2].partition("\\")[0]
    return f"<answer>{title}</answer>"


def run(folder: Path, *overrides: str) -> Path:
    with installed(folder / "site"):
        result = run_scripted(
            folder,
            "environment.env_class=search",
            f"data.train_data=['{data(folder)}']",
            "data.val_data=[]",
            "trainer.train_batch_size=4",
            "generator.max_turns=3",
            "generator.sampling_params.max_generate_length=64",
            *overrides,
            script=Script(reply=reply),
            plugins=["search"],
        )
    return result.folder


def test_a_run_searches_and_answers(tmp_path: Path, url: str) -> None:
    folder = run(tmp_path, f"environment.search.search_url={url}", "environment.search.topk=1")
    rows = read_trajectories(folder / "trajectories" / "step_1.parquet")
    assert len(rows) == 8
    for one in rows:
        assert one["turn_rewards"] == [0.0, 1.0]
        assert one["env_metrics"] == {"exact_match": 1.0, "steps": 2.0, "searches": 1.0}
        query, answer = (turn["metadata"] for turn in one["turns"])
        assert CAPITALS[query["query"]] == answer["answer"]
        # the documents are in the row of tokens, and are not trained on
        (segment,) = one["segments"]
        assert not all(segment["loss_mask"][segment["num_prompt_tokens"] :])
    assert not [line for _, line in read_lines(folder / "log.jsonl") if line["event"] == "search"]
    shared_retriever(url, topk=1, timeout_s=30.0, deadline_s=54.0, log_requests=False).close()


def test_searches_are_logged_where_that_is_asked_for(tmp_path: Path, url: str) -> None:
    folder = run(
        tmp_path, f"environment.search.search_url={url}", "environment.search.log_requests=true"
    )
    lines = [line for _, line in read_lines(folder / "log.jsonl") if line["event"] == "search"]
    assert len(lines) == 8
    assert {line["query"] for line in lines} <= set(CAPITALS)
    assert {(line["documents"], line["attempts"]) for line in lines} == {(1, 1)}
    shared_retriever(url, topk=3, timeout_s=30.0, deadline_s=54.0, log_requests=True).close()


def test_a_retriever_that_is_down_costs_trajectories_and_is_no_reward(tmp_path: Path) -> None:
    down = "http://127.0.0.1:9/retrieve"
    with pytest.raises(FailureBudgetError) as caught:
        run(tmp_path, f"environment.search.search_url={down}", "environment.timeout_s=2")
    assert len(caught.value.failures) == 8
    assert {failure.kind for failure in caught.value.failures} == {"infrastructure"}
    assert f"the retriever at {down} did not answer a search" in caught.value.failures[0].message
    assert caught.value.failures[0].plugin == "search"
