"""Asks a retriever over HTTP, again and again while that may help, and fails as infrastructure.

The request is ``{"query", "topk", "return_scores"}``, the answer
``{"result": [[{"document": {"contents": …}, "score": …}, …]]}``: the contract of
Search-R1's server and of skyrl-gym.
"""

import functools
import ipaddress
import json
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from skyrl_kernel.errors import FailureKind, TrajectoryError
from skyrl_kernel.logs import get_logger

if TYPE_CHECKING:
    import httpx2

ATTEMPTS = 10
"""SkyRL's number; with a pause of 1, 2, … 9 seconds between them."""
_PAUSE_S = 1.0
_MAY_PASS = frozenset({429, 500, 502, 503, 504})
"""Status codes after which another attempt may succeed."""
_CONNECTIONS = 256

log = get_logger(__name__)


class Retriever:
    """A retriever behind a URL. One serves all envs of a process, from any thread.

    Args:
        url: Where it listens.
        name: The env that asks: errors name it, and the key of its config that holds ``url``.
        topk: Documents of one search.
        timeout_s: Deadline of one request.
        deadline_s: Deadline of a search, with all its attempts.
        log_requests: Log every search.
        sleep: Waits between attempts.
    """

    def __init__(
        self,
        url: str,
        *,
        name: str = "search",
        topk: int = 3,
        timeout_s: float = 30.0,
        deadline_s: float = 54.0,
        log_requests: bool = False,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._url = url
        self._name = name
        self._topk = topk
        self._timeout_s = timeout_s
        self._deadline_s = deadline_s
        self._log_requests = log_requests
        self._sleep = sleep
        self._lock = threading.Lock()
        self._client: httpx2.Client | None = None
        self._is_down = False
        """The latest search was lost: others are tried once, or a run would wait for hours."""

    def search(self, query: str) -> list[str]:
        """The texts of the best documents, best first.

        Raises:
            TrajectoryError: Of kind infrastructure: no attempt succeeded, the
                deadline passed, or the answer is none of a retriever.
        """
        request = {"query": query, "topk": self._topk, "return_scores": True}
        # ASCII: a cut-off byte sequence in a completion is no UTF-8.
        body = json.dumps(request).encode("ascii")
        began = time.monotonic()
        attempts = 1 if self._is_down else ATTEMPTS
        for attempt in range(1, attempts + 1):
            answer, problem = self._attempt(body, began)
            if answer is not None:
                self._is_down = False
                documents = self._read(answer)
                if self._log_requests:
                    seconds = round(time.monotonic() - began, 3)
                    found = {"documents": len(documents), "attempts": attempt, "seconds": seconds}
                    log.info("search", query=query, **found)
                return documents
            pause_s = _PAUSE_S * attempt
            spent_s = time.monotonic() - began
            if attempt == attempts or spent_s + pause_s >= self._deadline_s:
                break
            if self._log_requests:
                log.info("search failed, trying again", attempt=attempt, problem=problem)
            self._sleep(pause_s)
        self._is_down = True
        raise self._lost(
            f"the retriever at {self._url} did not answer a search: {_times(attempt)} in "
            f"{time.monotonic() - began:.0f} s, the last gave {problem}. Start one with 'python -m "
            f"skyrl_search.server --corpus FILE', or name another: {self._key}"
        )

    def close(self) -> None:
        """Close idle connections; another search opens new ones."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def _attempt(self, body: bytes, began: float) -> "tuple[httpx2.Response | None, str]":
        """The answer, or None and what went wrong in a way that may pass."""
        import httpx2

        left_s = self._deadline_s - (time.monotonic() - began)
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        try:
            answer = self._connected().post(
                self._url, content=body, headers=headers, timeout=min(self._timeout_s, left_s)
            )
        except httpx2.RequestError as error:
            return None, f"{type(error).__name__}: {error}"
        if answer.status_code in _MAY_PASS:
            return None, f"status {answer.status_code}: {_start(answer.text)}"
        if not answer.is_success:
            raise self._lost(
                f"the retriever at {self._url} refused a search with status "
                f"{answer.status_code}: {_start(answer.text)}. Is {self._key} right?"
            )
        return answer, ""

    def _read(self, answer: "httpx2.Response") -> list[str]:
        try:
            return [
                str(hit["document"]["contents"]) for hits in answer.json()["result"] for hit in hits
            ]
        except (ValueError, LookupError, TypeError) as error:
            raise self._lost(
                f"the retriever at {self._url} gave another answer than "
                '{"result": [[{"document": {"contents": …}}, …]]}: ' + _start(answer.text)
            ) from error

    @property
    def _key(self) -> str:
        return f"environment.{self._name}.search_url"

    def _lost(self, message: str) -> TrajectoryError:
        return TrajectoryError(FailureKind.INFRASTRUCTURE, message, self._name)

    def _connected(self) -> "httpx2.Client":
        """The client, made at the first search: its import takes a while."""
        import httpx2

        with self._lock:
            if self._client is None:
                self._client = httpx2.Client(
                    limits=httpx2.Limits(
                        max_connections=_CONNECTIONS, max_keepalive_connections=_CONNECTIONS
                    ),
                    trust_env=not is_loopback(urlsplit(self._url).hostname or ""),
                )
            return self._client


@functools.cache
def shared_retriever(url: str, **settings: Any) -> Retriever:
    """The retriever of these settings in this process, so that all envs share connections."""
    return Retriever(url, **settings)


def is_loopback(host: str) -> bool:
    """True for this machine, which no proxy of the environment leads to."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _times(attempts: int) -> str:
    return "1 attempt" if attempts == 1 else f"{attempts} attempts"


def _start(text: str) -> str:
    return repr(text if len(text) <= 200 else f"{text[:200]}…")
