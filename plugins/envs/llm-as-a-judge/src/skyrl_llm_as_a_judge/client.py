"""Asks the judge over HTTP, again and again while that may help, and fails as infrastructure."""

import functools
import ipaddress
import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from skyrl_kernel.errors import FailureKind, TrajectoryError
from skyrl_kernel.masking import MASK

if TYPE_CHECKING:
    import httpx2

OPENAI_URL = "https://api.openai.com/v1"
ATTEMPTS = 10
_PAUSE_S = 1.0
"""Before the second attempt; one more before each further one."""
_MAY_PASS = frozenset({408, 409, 429, 500, 502, 503, 504, 529})
"""Status codes after which another attempt may succeed."""
_CONNECTIONS = 256


class Judge:
    """A chat model behind a URL. One serves all envs of a process, from any thread.

    Args:
        base_url: Address before ``/chat/completions``.
        model: Its name there.
        key_variable: Environment variable of the key, read now and kept out of every message.
        timeout_s: Deadline of one request.
        deadline_s: Deadline of a verdict, with all attempts.
        additional: Sent along in every request.
        sleep: Waits between attempts.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        key_variable: str | None = None,
        timeout_s: float = 30.0,
        deadline_s: float = 54.0,
        additional: Mapping[str, Any] | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._url = f"{base_url}/chat/completions"
        self._model = model
        self._key_variable = key_variable
        self._key = os.environ.get(key_variable, "") if key_variable else ""
        self._timeout_s = timeout_s
        self._deadline_s = deadline_s
        self._additional = additional or {}
        self._sleep = sleep
        self._lock = threading.Lock()
        self._client: httpx2.Client | None = None
        self._is_down = False
        """The latest question was lost: others are tried once, or a run would wait for hours."""

    def ask(self, question: str) -> str:
        """The judge's reply to one user message; empty if it said nothing.

        Raises:
            TrajectoryError: Of kind infrastructure: no attempt succeeded, the
                deadline passed, or the answer is none of a chat model.
        """
        messages = [{"role": "user", "content": question}]
        request = {"model": self._model, "messages": messages, **self._additional}
        # ASCII: a cut-off byte sequence in a completion is no UTF-8.
        body = json.dumps(request).encode("ascii")
        began = time.monotonic()
        attempts = 1 if self._is_down else ATTEMPTS
        for attempt in range(1, attempts + 1):
            answer, problem, wanted_s = self._attempt(body, began)
            if answer is not None:
                self._is_down = False
                return self._read(answer)
            pause_s = max(_PAUSE_S * attempt, wanted_s)
            spent_s = time.monotonic() - began
            if attempt == attempts or spent_s + pause_s >= self._deadline_s:
                break
            self._sleep(pause_s)
        self._is_down = True
        times = "1 attempt" if attempt == 1 else f"{attempt} attempts"
        raise self._lost(
            f"did not answer: {times} in {time.monotonic() - began:.0f} s, the last gave "
            f"{problem}. Name another: environment.llm_as_a_judge.base_url; or give it longer: "
            "environment.timeout_s"
        )

    def close(self) -> None:
        """Close idle connections; another question opens new ones."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def _attempt(self, body: bytes, began: float) -> "tuple[httpx2.Response | None, str, float]":
        """The answer; or None, what went wrong in a way that may pass, and seconds to wait."""
        import httpx2

        left_s = self._deadline_s - (time.monotonic() - began)
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        try:
            answer = self._connected().post(
                self._url, content=body, headers=headers, timeout=min(self._timeout_s, left_s)
            )
        except httpx2.RequestError as error:
            return None, f"{type(error).__name__}: {error}", 0.0
        if answer.status_code in _MAY_PASS:
            wanted = answer.headers.get("Retry-After", "")
            wanted_s = float(wanted) if wanted.isdecimal() else 0.0
            return None, f"status {answer.status_code}: {self._start(answer.text)}", wanted_s
        if not answer.is_success:
            raise self._lost(
                f"refused with status {answer.status_code}: {self._start(answer.text)}. "
                + self._about_the_key(answer.status_code)
            )
        return answer, "", 0.0

    def _read(self, answer: "httpx2.Response") -> str:
        try:
            content = answer.json()["choices"][0]["message"]["content"]
            if content is not None and not isinstance(content, str):
                raise TypeError(content)
        except (ValueError, LookupError, TypeError) as error:
            raise self._lost(
                'gave another answer than {"choices": [{"message": {"content": …}}]}: '
                + self._start(answer.text)
            ) from error
        return content or ""

    def _connected(self) -> "httpx2.Client":
        """The client, made at the first question: its import takes a while."""
        import httpx2

        with self._lock:
            if self._client is None:
                self._client = httpx2.Client(
                    limits=httpx2.Limits(
                        max_connections=_CONNECTIONS, max_keepalive_connections=_CONNECTIONS
                    ),
                    trust_env=not _is_loopback(self._url),
                )
            return self._client

    def _about_the_key(self, status: int) -> str:
        if status not in {401, 403}:
            return "Are environment.llm_as_a_judge.model and .base_url right?"
        if self._key_variable is None:
            return "No key was sent: environment.llm_as_a_judge.key_variable is null"
        state = "which holds another" if self._key else "which is not set"
        return f"Its key is read from the environment variable {self._key_variable}, {state}"

    def _start(self, text: str) -> str:
        text = text.replace(self._key, MASK) if self._key else text
        return repr(text if len(text) <= 200 else f"{text[:200]}…")

    def _lost(self, what: str) -> TrajectoryError:
        return TrajectoryError(
            FailureKind.INFRASTRUCTURE,
            f"the judge '{self._model}' at {self._url} {what}",
            "llm_as_a_judge",
        )


@functools.cache
def shared_judge(base_url: str, model: str, additional: str, **settings: Any) -> Judge:
    """The judge of these settings in this process, so that all envs share connections.

    Args:
        base_url: See `Judge`.
        model: See `Judge`.
        additional: As JSON.
        settings: See `Judge`.
    """
    return Judge(base_url, model, additional=json.loads(additional), **settings)


def _is_loopback(url: str) -> bool:
    """True for this machine, which no proxy of the environment leads to."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
