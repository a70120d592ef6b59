"""What Ray remarks of its processes goes into the run's log, not across its display.

Ray prints such remarks, a paragraph for each process that dies, whatever ``log_to_driver`` says,
and has no setting that stops it (2.60). The function that prints them is replaced here; a Ray
that has no such function prints as it likes.

Its core in C++ writes straight to standard error while it connects, twenty lines for a wrong token.
"""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

from ray._private import worker

from skyrl_kernel.logs import get_logger

_PRINTS = "print_to_stdstream"

log = get_logger(__name__)


def quieten() -> Any:
    """Begin to log them; what `loud` takes back."""
    printed = getattr(worker, _PRINTS, None)
    if printed is not None:
        setattr(worker, _PRINTS, _log)
    return printed


def loud(printed: Any) -> None:
    """Let Ray print again."""
    if printed is not None:
        setattr(worker, _PRINTS, printed)


def _log(data: dict[str, Any], *_: Any, **__: Any) -> None:
    log.info("ray remarks", of=data.get("pid"), text="\n".join(map(str, data.get("lines", ()))))


@contextlib.contextmanager
def warnings_of_ray(found: list[str] | None = None) -> Iterator[None]:
    """While the block runs, what is written to standard error goes into the log.

    Args:
        found: Gets these lines, before an error of the block is seen outside.
    """
    sys.stderr.flush()
    with tempfile.TemporaryFile() as taken:
        before = os.dup(2)
        os.dup2(taken.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(before, 2)
            os.close(before)
            taken.seek(0)
            if lines := taken.read().decode(errors="replace").splitlines():
                log.info("ray remarks", of="core", text="\n".join(lines))
            if found is not None:
                found += lines
