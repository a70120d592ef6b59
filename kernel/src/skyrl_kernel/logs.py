"""The log of a run: everything into ``log.jsonl``, what matters onto the screen.

`get_logger` costs nothing until something is logged: structlog is imported by
`RunLogs` or by the first record that gets through. Records of the kernel, of
plugins, of libraries (the standard `logging`) and Python's warnings all end up
in the file, one JSON object a line, secrets masked. The screen gets warnings of
the kernel and of plugins, and errors of anybody, above the live display.

Numbers go to metrics, not to the log.
"""

import logging
import sys
import warnings
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TextIO

from skyrl_kernel.json_lines import dump_line
from skyrl_kernel.masking import known_secrets, mask_secrets

if TYPE_CHECKING:
    from rich.console import Console
    from structlog.stdlib import BoundLogger

    from skyrl_kernel.progress import Progress

__all__ = ["Logger", "RunLogs", "get_logger", "logging_to", "mask_secrets", "process_name"]

FILE_NAME = "log.jsonl"

_TAKEN = frozenset({"time", "level", "logger", "event"})
"""What every line has; a field of that name gets an underscore behind it."""


_open: list["RunLogs"] = []
"""Of this process, outermost first."""


def process_name() -> str | None:
    """What this process is called in the logs of its run, such as ``engine 0``; None of the controller."""
    name = _open[-1].process if _open else None
    return None if name is None else str(name)


def get_logger(name: str) -> "Logger":
    """A logger for the module of that name, made once at its top."""
    return Logger(name)


def logging_to(folder: Path, progress: "Progress | None" = None) -> "RunLogs":
    """Send all logs of this process into a folder while the block runs.

    Args:
        folder: ``trainer.log_path``, or the run folder; made if missing.
        progress: Its console gets what matters; default: that of the process.
    """
    return RunLogs(folder, console=None if progress is None else progress.console)


class Logger:
    """Logs an event and its fields: ``log.info("resumed", step=20)``.

    The event is a constant; what varies is a field.
    """

    def __init__(self, name: str, fields: Mapping[str, Any] | None = None) -> None:
        self._stdlib = logging.getLogger(name)
        self._fields = dict(fields or {})
        self._bound: BoundLogger | None = None

    def bind(self, **fields: Any) -> "Logger":
        """A logger that adds ``fields`` to everything it logs."""
        return Logger(self._stdlib.name, {**self._fields, **_rename(fields)})

    def debug(self, event: str, **fields: Any) -> None:
        """For the developers of the code that logs."""
        self._log(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: Any) -> None:
        """Into the file."""
        self._log(logging.INFO, event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        """Into the file and onto the screen."""
        self._log(logging.WARNING, event, fields)

    def error(self, event: str, **fields: Any) -> None:
        """Into the file and onto the screen."""
        self._log(logging.ERROR, event, fields)

    def exception(self, event: str, **fields: Any) -> None:
        """Like `error`, with the traceback of the exception being handled in the file."""
        self._log(logging.ERROR, event, {"exc_info": True, **fields})

    def _log(self, level: int, event: str, fields: Mapping[str, Any]) -> None:
        if not self._stdlib.isEnabledFor(level):
            return
        if self._bound is None:
            self._bound = _bind(self._stdlib)
        self._bound.log(level, event, **{**self._fields, **_rename(fields)})


class RunLogs:
    """Sends all logs of this process into a run's folder while it is open.

    Use it as a context manager; what it changes in `logging` and `warnings` is
    put back on leaving.

    Args:
        folder: ``trainer.log_path``, or the run folder; made if missing.
        console: Default: that of the process.
        level: Least level that is written.
        file: Its name.
        fields: What every line has beside its own, such as which process it is of.
    """

    def __init__(
        self,
        folder: Path,
        *,
        console: "Console | None" = None,
        level: int = logging.INFO,
        file: str = FILE_NAME,
        fields: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = folder / file
        self._fields = _rename(fields or {})
        self.process = (fields or {}).get("process")
        self._console = console
        self._level = level
        self._handlers: list[logging.Handler] = []
        self._adopted: list[tuple[logging.Logger, logging.Handler, bool]] = []

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        known = known_secrets()
        self._handlers = [
            _FileHandler(self.path, known, self._console, self._fields),
            _ConsoleHandler(self.path, known, self._console),
        ]
        root = logging.getLogger()
        self._root_level = root.level
        root.setLevel(self._level)
        for handler in self._handlers:
            root.addHandler(handler)
        self._showwarning = warnings.showwarning
        warnings.showwarning = _log_warning
        self.adopt_libraries()
        _open.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        _open.remove(self)
        root = logging.getLogger()
        for handler in self._handlers:
            root.removeHandler(handler)
            handler.close()
        root.setLevel(self._root_level)
        warnings.showwarning = self._showwarning
        for logger, own, propagate in reversed(self._adopted):
            logger.addHandler(own)
            logger.propagate = propagate
        self._adopted.clear()

    def adopt_libraries(self) -> None:
        """Take over libraries that print their log themselves, such as transformers.

        Call it again after something has been imported: a library that came
        later would write across the live display.
        """
        streams = (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)
        for logger in list(logging.root.manager.loggerDict.values()):
            if not isinstance(logger, logging.Logger):
                continue
            for handler in list(logger.handlers):
                if type(handler) is logging.StreamHandler and handler.stream in streams:
                    self._adopted.append((logger, handler, logger.propagate))
                    logger.removeHandler(handler)
                    logger.propagate = True


def _rename(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{key}_" if key in _TAKEN else key: value for key, value in fields.items()}


def _bind(logger: logging.Logger) -> "BoundLogger":
    """The structlog logger over a standard one; no global configuration is touched."""
    import structlog

    bound: BoundLogger = structlog.wrap_logger(
        logger,
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    return bound


def _formatter(known: tuple[str, ...], fields: Mapping[str, Any]) -> logging.Formatter:
    """Renders any record, ours or a library's, as one line of JSON."""
    import structlog

    def render(_: Any, __: str, event: MutableMapping[str, Any]) -> str:
        first = {key: event.pop(key) for key in ("time", "level", "logger", "event")}
        line: str = dump_line(mask_secrets({**first, **fields, **event}, known))
        return line.rstrip("\n")

    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[structlog.stdlib.ExtraAdder()],
        processors=[
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            render,
        ],
    )


class _FileHandler(logging.Handler):
    """Writes the file; where that fails it says so and writes no more, and the run goes on."""

    def __init__(
        self,
        path: Path,
        known: tuple[str, ...],
        console: "Console | None",
        fields: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.setFormatter(_formatter(known, fields))
        self._path = path
        self._file = path.open("ab", buffering=0)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Append one line."""
        if self._file.closed:
            return
        try:
            self._file.write(f"{self.format(record)}\n".encode())
        except OSError as error:
            from skyrl_kernel.progress import say

            self._file.close()
            say(f"warning: {self._path} is not written any more: {error}", to=self._console)
        except Exception:  # a field whose str() raises, a message with the wrong arguments
            self.handleError(record)

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()


class _ConsoleHandler(logging.Handler):
    """Prints one line per warning or error; the traceback is in the file."""

    def __init__(self, log: Path, known: tuple[str, ...], console: "Console | None") -> None:
        super().__init__(logging.WARNING)
        self._log_path = log
        self._known = known
        self._console = console

    def filter(self, record: logging.LogRecord) -> bool:
        """Keep warnings of our own loggers (their message is a mapping) and all errors."""
        return isinstance(record.msg, Mapping) or record.levelno >= logging.ERROR

    def emit(self, record: logging.LogRecord) -> None:
        """Print the event, its fields, and where to read more."""
        from skyrl_kernel.progress import say

        failed = bool(record.exc_info)
        if isinstance(record.msg, Mapping):
            fields = dict(record.msg)
            text = str(fields.pop("event", ""))
            failed = bool(fields.pop("exc_info", None)) or failed
            masked = mask_secrets(fields, self._known)
            text = " ".join([text, *(f"{key}={value}" for key, value in masked.items())])
        else:
            text = f"{record.name}: {record.getMessage()}"
        more = f" (traceback in {self._log_path})" if failed else ""
        is_error = record.levelno >= logging.ERROR
        say(
            f"{record.levelname.lower()}: {mask_secrets(text, self._known)}{more}",
            style="red" if is_error else "yellow",
            to=self._console,
        )


def _log_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Stands in for `warnings.showwarning`."""
    where = {"category": category.__name__, "file": filename, "at_line": lineno}
    logging.getLogger("py.warnings").warning("%s", message, extra=where)
