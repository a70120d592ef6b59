"""What Ray remarks of its processes goes into the run's log, not across its display.

Ray prints such remarks, a paragraph for each process that dies, whatever ``log_to_driver`` says,
and has no setting that stops it (2.60). The function that prints them is replaced here; a Ray
that has no such function prints as it likes.
"""

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
