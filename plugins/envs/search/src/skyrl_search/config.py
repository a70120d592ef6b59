"""What can be set about the search engine and the episode."""

import contextlib
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from skyrl_kernel.config import Section


class SearchConfig(Section):
    """``environment.search``: where to search, and how long."""

    search_url: str = "http://127.0.0.1:8000/retrieve"
    """The retriever, of this package or of Search-R1's contract."""
    topk: Annotated[int, Field(ge=1)] = 3
    """Documents that a search returns."""
    timeout: Annotated[float, Field(gt=0)] = 30.0
    """Seconds that one request may take; all attempts together have ``environment.timeout_s``."""
    log_requests: bool = False
    """Write every request into the run's log."""
    max_turns: Annotated[int, Field(ge=1)] | None = None
    """Turns of rows that name none; null: ``generator.max_turns``, or 2 where that is null too."""

    @field_validator("search_url")
    @classmethod
    def _is_an_address(cls, url: str) -> str:
        with contextlib.suppress(ValueError):  # a port that is no number
            parts = urlsplit(url)
            if parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0:
                return url
        raise ValueError(f"'{url}' is no address of a retriever; write http://HOST:PORT/retrieve")
