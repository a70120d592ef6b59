"""The client: what it asks, when it asks again, and how it gives up."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from skyrl_kernel.errors import FailureKind, TrajectoryError
from skyrl_search.client import Retriever, is_loopback

GOOD = json.dumps({"result": [[{"document": {"contents": "a pear"}, "score": 1.0}]]})


class Scripted(BaseHTTPRequestHandler):
    """Answers with the server's next (status, body); hangs up where the status is 0."""

    server: Any
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append(json.loads(body))
        script = self.server.script
        status, text = script.pop(0) if len(script) > 1 else script[0]
        if status == 0:
            self.close_connection = True
            return
        if status == -1:
            self.server.released.wait(20)
            self.close_connection = True
            return
        self.send_response(status)
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def scripted(*script: tuple[int, str]) -> Iterator[Any]:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Scripted)
    server.daemon_threads = True
    server.script, server.asked, server.released = list(script), [], threading.Event()
    with server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield server
        finally:
            server.released.set()
            server.shutdown()


@contextmanager
def asking(server: Any, **settings: Any) -> Iterator[tuple[Retriever, list[float]]]:
    """A retriever for the server, and the pauses that it made (none is waited for)."""
    pauses: list[float] = []
    sleep: Callable[[float], None] = pauses.append
    url = server if isinstance(server, str) else f"http://127.0.0.1:{server.server_port}/retrieve"
    retriever = Retriever(url, sleep=sleep, **settings)
    try:
        yield retriever, pauses
    finally:
        retriever.close()


def lost(retriever: Retriever) -> str:
    with pytest.raises(TrajectoryError) as caught:
        retriever.search("pear")
    assert caught.value.kind is FailureKind.INFRASTRUCTURE
    assert caught.value.plugin == "search"
    return str(caught.value)


def test_the_request_is_skyrls() -> None:
    with scripted((200, GOOD)) as server, asking(server, topk=5) as (retriever, _):
        assert retriever.search("pear") == ["a pear"]
        assert server.asked == [{"query": "pear", "topk": 5, "return_scores": True}]


def test_a_query_that_is_no_utf8_can_be_asked() -> None:
    with scripted((200, GOOD)) as server, asking(server) as (retriever, _):
        retriever.search("\ud800 日本")
        assert server.asked[0]["query"] == "\ud800 日本"


@pytest.mark.parametrize(
    "failure", [(500, ""), (502, ""), (503, "busy"), (504, ""), (429, ""), (0, "")]
)
def test_what_may_pass_is_tried_again_after_longer_and_longer_pauses(
    failure: tuple[int, str],
) -> None:
    with (
        scripted(failure, failure, failure, (200, GOOD)) as server,
        asking(server) as (retriever, pauses),
    ):
        assert retriever.search("pear") == ["a pear"]
        assert pauses == [1, 2, 3]


def test_ten_attempts_are_all() -> None:
    with scripted((503, "busy")) as server, asking(server) as (retriever, pauses):
        message = lost(retriever)
        assert len(server.asked) == 10
        assert pauses == [1, 2, 3, 4, 5, 6, 7, 8, 9]
        assert "did not answer a search: 10 attempts in " in message
        assert "the last gave status 503: 'busy'" in message
        assert "Start one with 'python -m skyrl_search.server --corpus FILE'" in message


def test_the_deadline_ends_it_before_a_pause_that_would_pass_it() -> None:
    with scripted((503, "")) as server, asking(server, deadline_s=2.5) as (retriever, pauses):
        lost(retriever)  # nothing is waited for here, so the pauses of 1 and 2 seconds fit
        assert pauses == [1, 2]


def test_after_a_lost_search_others_are_tried_once_until_one_succeeds() -> None:
    script = [(503, "busy")] * 11 + [(200, GOOD)] + [(503, "busy")] * 3 + [(200, GOOD)]
    with scripted(*script) as server, asking(server) as (retriever, pauses):
        lost(retriever)
        assert "did not answer a search: 1 attempt in " in lost(retriever)
        assert len(server.asked) == 11
        assert retriever.search("pear") == ["a pear"]
        pauses.clear()
        assert retriever.search("pear") == ["a pear"]
        assert pauses == [1, 2, 3]


def test_nobody_listening_is_told_as_that() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with asking(f"http://127.0.0.1:{port}/retrieve", deadline_s=2) as (retriever, _):
        assert f"127.0.0.1:{port}/retrieve did not answer a search: 2 attempts" in lost(retriever)


def test_a_request_has_a_deadline_of_its_own() -> None:
    with (
        scripted((-1, "")) as server,
        asking(server, timeout_s=0.1, deadline_s=2) as (retriever, _),
    ):
        assert "ReadTimeout" in lost(retriever)
        assert len(server.asked) == 2


@pytest.mark.parametrize("status", [301, 400, 401, 404])
def test_what_cannot_pass_is_not_tried_again(status: int) -> None:
    with scripted((status, "no such path")) as server, asking(server) as (retriever, pauses):
        message = lost(retriever)
        assert f"refused a search with status {status}: 'no such path'" in message
        assert (len(server.asked), pauses) == (1, [])


@pytest.mark.parametrize(
    "body",
    [
        *("", "<html>", "[]", "{}", '{"result": null}', '{"result": [["x"]]}'),
        *('{"result": [[{"document": null}]]}', '{"result": [[{"document": {}}]]}'),
    ],
)
def test_an_answer_that_is_none_of_a_retriever_is_a_failure(body: str) -> None:
    with scripted((200, body)) as server, asking(server) as (retriever, _):
        assert "gave another answer than" in lost(retriever)


@pytest.mark.parametrize("result", ["[]", "[[]]"])
def test_nothing_found_is_an_answer(result: str) -> None:
    with scripted((200, f'{{"result": {result}}}')) as server, asking(server) as (retriever, _):
        assert retriever.search("pear") == []


def test_threads_share_one_retriever() -> None:
    with scripted((200, GOOD)) as server, asking(server) as (retriever, _):
        found: list[list[str]] = []
        threads = [
            threading.Thread(target=lambda: found.append(retriever.search("pear")))
            for _ in range(16)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [["a pear"]] * 16


def test_a_proxy_is_not_asked_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with scripted((200, GOOD)) as server, asking(server) as (retriever, _):
        assert retriever.search("pear") == ["a pear"]
    assert [is_loopback(host) for host in ("localhost", "::1", "127.0.0.2", "10.0.0.1", "a.b")] == [
        *(True, True, True, False, False)
    ]
