"""Where to search, and what programs may use."""

from typing import Annotated

from pydantic import Field

from skyrl_search.config import SearchConfig


class SearchcodeConfig(SearchConfig):
    """``environment.searchcode``: the keys of ``environment.search``, and those of Python."""

    python_timeout_s: Annotated[float, Field(gt=0)] = 10.0
    """Processor time of a program."""
    memory_mb: Annotated[int, Field(ge=64)] = 1024
    """Memory of a program."""
    python: str | None = None
    """Interpreter of the programs; default: the one that runs this, without its packages."""
    packages: list[str] = Field(default_factory=lambda: ["numpy"])
    """Installed packages that programs may import; leave none where ``python`` has its own."""
