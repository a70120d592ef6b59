"""Who judges, and what it is asked."""

import contextlib
from collections.abc import Iterable
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from skyrl_kernel.config import Section
from skyrl_llm_as_a_judge.verdict import PLACES, PROMPT, places_of

_OWN = frozenset({"model", "messages", "stream", "n"})
"""Parts of a request that are not ``additional_kwargs``."""


class JudgeConfig(Section):
    """``environment.llm_as_a_judge``: the model that judges."""

    model: str = "gpt-4o-mini"
    """Name of the judge, as its server knows it."""
    base_url: str | None = None
    """Address before ``/chat/completions``, such as ``http://127.0.0.1:8000/v1``; null: the environment
    variable OPENAI_BASE_URL, or OpenAI's own."""
    key_variable: str | None = "OPENAI_API_KEY"
    """Environment variable that holds the key; null, or a variable that is not set, sends none."""
    timeout: Annotated[float, Field(gt=0)] = 30.0
    """Seconds that one request may take; all attempts together have ``environment.timeout_s``."""
    additional_kwargs: dict[str, Any] = Field(default_factory=lambda: {"temperature": 0.0})
    """Sent along in every request."""
    prompt: str = PROMPT
    """The question to the judge, with ``{question}``, ``{ground_truth}`` and ``{completion}`` in it."""

    @field_validator("base_url")
    @classmethod
    def _is_an_address(cls, url: str | None) -> str | None:
        if url is None:
            return None
        with contextlib.suppress(ValueError):  # a port that is no number
            parts = urlsplit(url)
            if parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0:
                return url.rstrip("/")
        raise ValueError(f"'{url}' is no address of a server; write http://HOST:PORT/v1")

    @field_validator("additional_kwargs")
    @classmethod
    def _leaves_the_rest_alone(cls, values: dict[str, Any]) -> dict[str, Any]:
        taken = sorted(values.keys() & _OWN)
        if taken:
            raise ValueError(
                f"additional_kwargs: {', '.join(taken)} cannot be set here; the env says what is sent there"
            )
        return values

    @field_validator("prompt")
    @classmethod
    def _shows_the_completion(cls, prompt: str) -> str:
        found = places_of(prompt)
        if not {"completion"} <= found <= set(PLACES):
            raise ValueError(
                f"the prompt has the places {_braced(found)}; there are {_braced(PLACES)}, "
                "and {completion} must be among them"
            )
        return prompt


def _braced(places: Iterable[str]) -> str:
    return ", ".join(f"{{{place}}}" for place in sorted(places)) or "none"
