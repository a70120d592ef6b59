"""What a person sees while something long is going on.

On a terminal: a live display of the steps done, the stages that are running,
the latest numbers and how the first of them went. Elsewhere (a file, a pipe,
``TERM=dumb``, ``SKYRL_NO_PROGRESS=1``): plain lines without control characters.

Who prints what, so that nothing is said twice: while there is a live display
(`is_live`) it shows the steps, and nobody prints lines for them. Where there is
none, the console logger prints one line per step; `Progress` prints lines of
its own only where it was made with ``lines=True``, that is where no logger
watches (the warm start, the preparation of data, a run without loggers).

All of them write to `console`, so a message appears above the live display.
"""

import functools
import os
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

from skyrl_kernel.headline import format_headline, format_number, headline, sparkline

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

REFRESH_PER_SECOND = 4
"""Drawing took 2 ms, so this costs under 1 % of one core."""
_RATE_STEPS = 20
"""The time left is judged by this many latest steps."""
_NAME_WIDTH = 16
"""Room for the names of stages, so that the bars stay in place when stages change."""
_BAR_WIDTH = 30
_CURVE_WIDTH = 40

_shown: list["Progress"] = []
"""Live displays, outermost first. The outermost draws them all."""


@functools.cache
def console() -> "Console":
    """The console of this process: standard output, shared by all that print for people."""
    from rich.console import Console

    return Console(highlight=False, markup=False, emoji=False)


def use_stderr() -> None:
    """Move `console` to standard error: standard output is for a program."""
    console().stderr = True


def is_live() -> bool:
    """True while a live display is on the screen; it shows the steps."""
    return bool(_shown)


def say(text: str, *, style: str | None = None, to: "Console | None" = None) -> None:
    """Print a line, above the live display if there is one; never wrapped or cut."""
    (to or console()).print(text, style=style, soft_wrap=True, markup=False, highlight=False)


def knows_unicode(target: "Console") -> bool:
    """True if the console's stream can hold block characters and arrows."""
    return target.encoding.lower().startswith("utf")


class Stage:
    """Part of a step, with a count of its own. Made by `Progress.stage`."""

    def __init__(self, name: str, total: int | None) -> None:
        self.name = name
        self.total = total
        self.done = 0
        self.began = time.monotonic()
        self._lock = threading.Lock()

    def advance(self, n: int = 1) -> None:
        """Count ``n`` more. Cheap, and safe from any thread."""
        with self._lock:
            self.done += n


class Progress:
    """Shows how far something is; use it as a context manager.

    One inside another's block is drawn below it. Entering the same one again
    changes nothing: who is handed one may use it as its own.

    Args:
        title: What is going on, such as the run's name.
        total_steps: Steps until it is done.
        console: Default: that of the process.
        unit: What a step is called.
        start_step: Steps done before, where a run is continued.
        live: True or False to decide; default: live on a terminal.
        lines: Print a plain line per step where the display is not live. False
            where a logger does (see the module's rule).
        line_interval_s: Least seconds between those lines; the last step always
            gets one.

    Example:
        >>> with Progress("warm start", 2, live=False) as progress:
        ...     for step in (1, 2):
        ...         with progress.stage("generate", total=4) as stage:
        ...             stage.advance(4)
        ...         progress.step(step, {"loss": 1 / step})
        warm start: step 1/2  loss 1.00
        warm start: step 2/2  loss 0.500
    """

    def __init__(
        self,
        title: str,
        total_steps: int,
        *,
        console: "Console | None" = None,
        unit: str = "step",
        start_step: int = 0,
        live: bool | None = None,
        lines: bool = True,
        line_interval_s: float = 0.0,
    ) -> None:
        self.title = title
        self.total_steps = total_steps
        self.unit = unit
        self.done = start_step
        self.console = console if console is not None else _process_console()
        self._wants_live = _is_terminal(self.console) if live is None else live
        self._lines = lines
        self._line_interval_s = line_interval_s
        self._last_line = float("-inf")
        self._live: Live | None = None
        self._entered = 0
        self._stages: list[Stage] = []
        self._latest: Mapping[str, float] = {}
        self._history: dict[str, list[float]] = {}
        self._began = time.monotonic()
        self._marks: deque[tuple[float, int]] = deque(maxlen=_RATE_STEPS + 1)

    def __enter__(self) -> Self:
        self._entered += 1
        if self._entered > 1:
            return self
        self._began = time.monotonic()
        self._marks.append((self._began, self.done))
        if self._wants_live:
            _shown.append(self)
            if len(_shown) == 1:
                self._start_live()
        return self

    def __exit__(self, *_: object) -> None:
        self._entered -= 1
        if self._entered:
            return
        self._stages.clear()
        try:
            if self._live is not None:
                self._live.stop()
        finally:
            self._live = None
            if self in _shown:
                _shown.remove(self)

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Stage]:
        """Show a stage while the block runs; several may run at once.

        Args:
            name: Such as ``generate``.
            total: How much there is to `Stage.advance`, if that is known.
        """
        stage = Stage(name, total)
        self._stages.append(stage)
        try:
            yield stage
        finally:
            if stage in self._stages:
                self._stages.remove(stage)

    def advance(self, n: int = 1) -> None:
        """Count ``n`` more in the stage that began last."""
        if self._stages:
            self._stages[-1].advance(n)

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """A step is done.

        Args:
            step: Its number, from 1.
            metrics: Its numbers, by metric name; the watched ones are shown (see
                `skyrl_kernel.headline`), and as a curve the first that changes.
        """
        now = time.monotonic()
        self.done = step
        self._marks.append((now, step))
        self._latest = metrics
        for name, value in headline(metrics).items():
            self._history.setdefault(name, []).append(value)
        is_due = now - self._last_line >= self._line_interval_s or step >= self.total_steps
        if self._lines and not self._wants_live and is_due:
            self._last_line = now
            self.message(
                f"{self.title}: {self.unit} {step}/{self.total_steps}  {format_headline(metrics)}"
            )

    def message(self, text: str) -> None:
        """Print a line that stays."""
        say(text, to=self.console)

    def warning(self, text: str) -> None:
        """Print a line that stays and stands out."""
        say(f"warning: {text}", style="yellow", to=self.console)

    # --- the live display -----------------------------------------------------------

    def _start_live(self) -> None:
        from rich.console import Group
        from rich.live import Live

        self._live = Live(
            get_renderable=lambda: Group(*(one._render() for one in tuple(_shown))),
            console=self.console,
            refresh_per_second=REFRESH_PER_SECOND,
        )
        try:
            self._live.start()
        except BaseException:
            self.__exit__()
            raise

    def _render(self) -> "RenderableType":
        """The display as it is now; called by rich's thread."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        now = time.monotonic()
        bars = Table.grid(padding=(0, 2))
        bars.add_column(no_wrap=True, min_width=_NAME_WIDTH)
        bars.add_column(width=_BAR_WIDTH)
        bars.add_column(no_wrap=True)
        times = f"{_clock(now - self._began)} elapsed"
        left = self._seconds_left()
        bars.add_row(
            Text(self.title, style="bold"),
            ProgressBar(total=max(self.total_steps, 1), completed=self.done, width=_BAR_WIDTH),
            f"{self.unit} {self.done}/{self.total_steps}  {times}"
            + (f", {_clock(left)} left" if left is not None else ""),
        )
        for stage in tuple(self._stages):
            seconds = f"{now - stage.began:.0f} s"
            if stage.total is None:
                bars.add_row(f"  {stage.name}", "", seconds)
            else:
                done = min(stage.done, stage.total)
                bar = ProgressBar(total=max(stage.total, 1), completed=done, width=_BAR_WIDTH)
                bars.add_row(f"  {stage.name}", bar, f"{stage.done}/{stage.total}  {seconds}")
        lines = [
            Text(f"  {text}", no_wrap=True, overflow="ellipsis")
            for text in (format_headline(self._latest), self._curve())
            if text
        ]
        return Group(bars, *lines)

    def _curve(self) -> str:
        """The first watched number that changes over the steps, between its ends."""
        for name, values in tuple(self._history.items()):
            if len(set(values)) > 1:
                unicode = knows_unicode(self.console)
                curve = sparkline(values, _CURVE_WIDTH, unicode=unicode)
                return f"{name} {format_number(values[0])} {curve} {format_number(values[-1])}"
        return ""

    def _seconds_left(self) -> float | None:
        """Judged by the latest steps; the first one, with its start-up, only while it is alone."""
        marks = list(self._marks)
        if len(marks) < 2:
            return None
        (then, first), (now, last) = marks[1 if len(marks) > 2 else 0], marks[-1]
        return (self.total_steps - last) * (now - then) / (last - first) if last > first else None


def _process_console() -> "Console":
    return console()


def _is_terminal(target: "Console") -> bool:
    """True where a display that redraws itself is welcome."""
    return (
        target.is_interactive
        and target.file.isatty()
        and not target.is_dumb_terminal
        and not os.environ.get("SKYRL_NO_PROGRESS")
    )


def _clock(seconds: float) -> str:
    """Seconds as ``0:41`` or ``2:05:09``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
