"""What programs may use, and which Python runs them."""

from typing import Annotated

from pydantic import Field

from skyrl_kernel.config import Section


class LcbConfig(Section):
    """``environment.lcb``: limits of the programs that are judged."""

    timeout_s: Annotated[float, Field(gt=0)] = 6.0
    """Processor time of one test, rounded up to whole seconds. All tests of an answer together have four
    fifths of ``environment.timeout_s`` on the clock."""
    memory_mb: Annotated[int, Field(ge=64)] = 1024
    """Memory of a program."""
    python: str | None = None
    """Interpreter of the programs; default: the one that runs this, without its packages."""
    packages: list[str] = Field(default_factory=lambda: ["numpy"])
    """Installed packages that programs may import; leave none where ``python`` has its own."""
