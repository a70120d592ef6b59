"""``python -m skyrl_search.server --corpus FILE``: a retriever behind Search-R1's HTTP contract.

``POST /retrieve`` takes ``{"query": …}`` or ``{"queries": […]}``, with ``topk`` and
``return_scores``; ``GET /health`` says how many documents there are.
"""

import json
import signal
import sys
import time
from collections.abc import Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import click

from skyrl_kernel.errors import SkyrlError
from skyrl_search.client import is_loopback
from skyrl_search.index import MAX_POSTINGS, Hit, Index, open_index

_MAX_BODY_BYTES = 4 * 2**20
_MAX_TOPK = 1000
_MAX_QUERIES = 1000
_DEFAULT_TOPK = 3
_REPORT_S = 2.0


class RetrievalServer(ThreadingHTTPServer):
    """Serves an index; a thread for each connection.

    Args:
        index: What is searched.
        host: Where to listen.
        port: Where to listen; 0 takes a free one.
    """

    daemon_threads = True
    request_queue_size = 1024

    def __init__(self, index: Index, host: str = "127.0.0.1", port: int = 0) -> None:
        self.index = index
        self._host = host
        super().__init__((host, port), _Handler)

    @property
    def url(self) -> str:
        """What ``environment.search.search_url`` must be."""
        return f"http://{self._host}:{self.server_port}/retrieve"


class _Refused(Exception):
    """A request that cannot be answered: status and reason."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(status, reason)
        self.status = status
        self.reason = reason


class _Handler(BaseHTTPRequestHandler):
    server: RetrievalServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # header and body leave together
    timeout = 300  # seconds that an idle connection is kept

    def do_GET(self) -> None:
        if self.path != "/health":
            self._answer(HTTPStatus.NOT_FOUND, {"error": f"no {self.path}; there is /health"})
            return
        documents = self.server.index.num_documents
        self._answer(HTTPStatus.OK, {"status": "ok", "documents": documents})

    def do_POST(self) -> None:
        try:
            queries, topk, return_scores = _read_request(self._body())
            index = self.server.index
            found = [_shown(index.search(query, topk), return_scores) for query in queries]
        except _Refused as refused:
            self._answer(refused.status, {"error": refused.reason})
        else:
            self._answer(HTTPStatus.OK, {"result": found})

    def _body(self) -> bytes:
        if self.path != "/retrieve":
            self.close_connection = True  # its body was not read
            raise _Refused(HTTPStatus.NOT_FOUND, f"no {self.path}; there is /retrieve")
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > _MAX_BODY_BYTES:
            self.close_connection = True
            raise _Refused(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE
                if length.isdecimal()
                else HTTPStatus.LENGTH_REQUIRED,
                f"a request has a Content-Length of at most {_MAX_BODY_BYTES} bytes",
            )
        return self.rfile.read(int(length))

    def _answer(self, status: HTTPStatus, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode("ascii")
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a run asks thousands of times."""


def _read_request(body: bytes) -> tuple[Sequence[str], int, bool]:
    """(queries, topk, whether scores are wanted) of a request."""
    try:
        request = json.loads(body)
    except ValueError as error:
        raise _Refused(HTTPStatus.BAD_REQUEST, f"the body is not JSON: {error}") from error
    if not isinstance(request, dict) or ("query" in request) == ("queries" in request):
        raise _Refused(HTTPStatus.BAD_REQUEST, "the body is an object with either query or queries")
    queries = [request["query"]] if "query" in request else request["queries"]
    if (
        not isinstance(queries, list)
        or len(queries) > _MAX_QUERIES
        or not all(isinstance(query, str) for query in queries)
    ):
        raise _Refused(
            HTTPStatus.BAD_REQUEST, f"query is a text, queries a list of up to {_MAX_QUERIES} texts"
        )
    topk = request.get("topk", _DEFAULT_TOPK)
    if type(topk) is not int or not 1 <= topk <= _MAX_TOPK:
        raise _Refused(HTTPStatus.BAD_REQUEST, f"topk is a whole number from 1 to {_MAX_TOPK}")
    return queries, topk, bool(request.get("return_scores", False))


def _shown(hits: Sequence[Hit], return_scores: bool) -> list[dict[str, Any]]:
    if not return_scores:
        return [hit.document for hit in hits]
    return [{"document": hit.document, "score": hit.score} for hit in hits]


class _Report:
    """Lines about the index being made, one every two seconds."""

    def __init__(self, corpus: Path) -> None:
        self._corpus = corpus
        self._began = self._said = time.monotonic()

    def __call__(self, documents: int, read: int, size: int) -> None:
        now = time.monotonic()
        is_whole = read == size
        if not is_whole and now - self._said < _REPORT_S:
            return
        self._said = now
        rate = documents / max(now - self._began, 1e-3)
        percent = 100 * read // max(size, 1)
        _say(f"indexing {self._corpus.name}: {percent}%, {documents:,} documents, {rate:,.0f}/s")


@click.command()
@click.option(
    "--corpus",
    required=True,
    type=click.Path(path_type=Path),
    help="Documents as JSON lines: contents, or text and perhaps title.",
)
@click.option("--index", type=click.Path(path_type=Path), help="Default: beside the corpus.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8000, show_default=True, help="0 takes a free one.")
@click.option(
    "--max_postings",
    default=MAX_POSTINGS,
    show_default=True,
    type=click.IntRange(min=1),
    help="Documents that the words of a query may stand in; more is slower and finds better.",
)
def main(corpus: Path, index: Path | None, host: str, port: int, max_postings: int) -> None:
    """Serve a corpus of documents to search in, until interrupted."""
    corpus = corpus.expanduser()
    try:
        opened = open_index(corpus, index, on_progress=_Report(corpus), max_postings=max_postings)
        server = RetrievalServer(opened, host, port)
    except SkyrlError as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:
        raise click.ClickException(
            f"cannot listen on {host}:{port}: {error.strerror}; name another: --port N"
        ) from error
    if not is_loopback(host):
        _say(f"warning: {host} can be reached from other machines; whoever reaches it may search")
    _say(f"serving {opened.num_documents:,} documents of {corpus.name} at {server.url}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        _say("stopped")
    finally:
        server.server_close()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
