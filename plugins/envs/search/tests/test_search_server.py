"""The retriever's HTTP contract, and the command that serves it."""

import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from skyrl_search.index import open_index
from skyrl_search.server import RetrievalServer

ROWS = [
    {"id": "7", "contents": '"Paris"\nParis is the capital of France.'},
    {"id": "8", "contents": '"Lyon"\nLyon is a city in France.'},
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("corpus") / "cities.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return file


@pytest.fixture(scope="module")
def url(corpus: Path) -> Iterator[str]:
    index = open_index(corpus)
    with RetrievalServer(index) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server.url
        server.shutdown()
    index.close()


def ask(url: str, content: bytes | str, **headers: str) -> tuple[int, Any]:
    with httpx2.Client(trust_env=False) as client:
        answer = client.post(url, content=content, headers=headers)
    return answer.status_code, answer.json()


def test_one_query_as_skyrl_asks(url: str) -> None:
    request = {"query": "capital of France", "topk": 2, "return_scores": True}
    status, answer = ask(url, json.dumps(request))
    assert status == 200
    ((first, second),) = answer["result"]
    assert first["document"] == ROWS[0]
    assert second["document"] == ROWS[1]
    assert first["score"] > second["score"] > 0


def test_several_queries_as_search_r1_asks(url: str) -> None:
    request = {"queries": ["Lyon", "quince", "Paris"], "topk": 1, "return_scores": True}
    _, answer = ask(url, json.dumps(request))
    assert [[hit["document"]["id"] for hit in hits] for hits in answer["result"]] == [
        ["8"],
        [],
        ["7"],
    ]


def test_without_scores_there_are_plain_documents(url: str) -> None:
    assert ask(url, '{"query": "Lyon"}') == (200, {"result": [[ROWS[1]]]})


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("{", "the body is not JSON"),
        ("\xff", "the body is not JSON"),
        ("[]", "either query or queries"),
        ("{}", "either query or queries"),
        ('{"query": "x", "queries": ["x"]}', "either query or queries"),
        ('{"query": 3}', "query is a text, queries a list of up to 1000 texts"),
        ('{"queries": "x"}', "query is a text, queries a list of up to 1000 texts"),
        (json.dumps({"queries": ["x"] * 1001}), "up to 1000"),
        ('{"query": "x", "topk": 0}', "topk is a whole number from 1 to 1000"),
        ('{"query": "x", "topk": true}', "topk is a whole number from 1 to 1000"),
        ('{"query": "x", "topk": 1001}', "topk is a whole number from 1 to 1000"),
    ],
)
def test_what_is_no_request_gets_a_reason(url: str, body: str, reason: str) -> None:
    status, answer = ask(url, body.encode("latin-1"))
    assert status == 400
    assert reason in answer["error"]


def test_other_paths_and_huge_bodies_are_refused(url: str) -> None:
    assert ask(url.replace("retrieve", "search"), "{}")[0] == 404
    assert ask(url, " " * (4 * 2**20 + 1))[0] == 413
    with httpx2.Client(trust_env=False) as client:
        health = client.get(url.replace("retrieve", "health"))
        assert health.json() == {"status": "ok", "documents": 2}
        assert client.get(url).status_code == 404
        assert client.post(url, content=iter([b"{}"])).status_code == 411  # chunks without length


def test_a_connection_is_used_again(url: str) -> None:
    with httpx2.Client(trust_env=False) as client:
        for _ in range(3):
            assert client.post(url, content='{"query": "Lyon"}').status_code == 200
        bad = client.post(url, content="{")
        assert bad.status_code == 400
        assert client.post(url, content='{"query": "Lyon"}').status_code == 200


class Served:
    """The command in a process of its own."""

    def __init__(self, *words: object) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "skyrl_search.server", *map(str, words)],
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip())
            if " at http" in line:
                break

    @property
    def url(self) -> str:
        return self.lines[-1].rpartition(" ")[2]

    def stop(self, how: signal.Signals) -> int:
        self.process.send_signal(how)
        assert self.process.stderr is not None
        with self.process.stderr:
            self.lines += self.process.stderr.read().splitlines()
        return self.process.wait(20)


def test_the_command_serves_a_corpus_until_it_is_stopped(tmp_path: Path) -> None:
    corpus = tmp_path / "cities.jsonl"
    corpus.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    served = Served("--corpus", corpus, "--port", 0)
    assert served.lines[0].startswith("indexing cities.jsonl: 100%, 2 documents")
    assert served.lines[-1].startswith("serving 2 documents of cities.jsonl at http://127.0.0.1:")
    assert ask(served.url, '{"query": "Lyon"}') == (200, {"result": [[ROWS[1]]]})
    assert served.stop(signal.SIGTERM) == 0
    assert served.lines[-1] == "stopped"

    again = Served("--corpus", corpus, "--port", 0)  # with the index that is there
    assert not [line for line in again.lines if line.startswith("indexing")]
    assert ask(again.url, '{"query": "Paris"}')[0] == 200
    assert again.stop(signal.SIGINT) == 0


def refusal(*words: object) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "skyrl_search.server", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    return done.stderr


def test_the_command_says_what_it_cannot_do(corpus: Path, tmp_path: Path) -> None:
    assert "no such file; name a file of JSON lines" in refusal("--corpus", tmp_path / "x.jsonl")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        message = refusal("--corpus", corpus, "--port", port)
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use; name another" in message
