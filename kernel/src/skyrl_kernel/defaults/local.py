"""Runtime ``local``: controller, trainer and engine in this process."""

from collections.abc import Callable
from typing import TypeVar

from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.protocols import Runtime

T = TypeVar("T")


@hookimpl
def make_runtime(name: str) -> Runtime | None:
    """The runtime of ``trainer.runtime=local``."""
    return Local() if name == "local" else None


class Local:
    """Makes everything right here."""

    def start(self, make: Callable[[], T]) -> T:
        """Call ``make``."""
        return make()

    def close(self) -> None:
        """Nothing was started."""
