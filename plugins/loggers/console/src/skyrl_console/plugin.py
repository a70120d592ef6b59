"""Prints a line per step, a table per evaluation, and at the end what the run achieved.

While a live display is on the screen it shows the steps, so step lines are
printed only where there is none (`skyrl_kernel.progress`); everything else is
printed above it.
"""

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from skyrl_console.lines import (
    by_source,
    end_lines,
    example_lines,
    first_evaluation,
    start_line,
    step_line,
)
from skyrl_kernel import progress
from skyrl_kernel.headline import format_number
from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.protocols import EvalInfo, RunEnd, RunInfo, StepInfo
from skyrl_kernel.run import RunFolder


class ConsoleLogger:
    """What the logger remembers of one run.

    Args:
        console: Default: that of the process.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = progress.console() if console is None else console
        self._first: tuple[int, Mapping[str, float]] | None = None
        self._last: tuple[int, Mapping[str, float]] | None = None
        self._example_interval = 0

    def start(self, run: RunInfo) -> None:
        """One line about the run; where it is continued, its first evaluation was before."""
        if run.start_step > 0:
            self._first = first_evaluation(RunFolder(run.folder).read_metrics())
        self._example_interval = run.config.get("trainer", {}).get("print_example_interval", 0)
        self._say(start_line(run))

    def step(self, step: StepInfo) -> None:
        """One line, unless the live display shows it; an example where one is due."""
        if not progress.is_live():
            self._say(step_line(step))
        is_due = self._example_interval > 0 and step.step % self._example_interval == 0
        if is_due and step.trajectories:
            for line in example_lines(step.step, step.trajectories[0]):
                self._say(line)

    def evaluation(self, evaluation: EvalInfo) -> None:
        """One line for one data source, a table for several."""
        self._last = (evaluation.step, evaluation.metrics)
        self._first = self._first or self._last
        sources = by_source(evaluation.metrics)
        several = len(sources.keys() - {"all"}) > 1
        if several:
            self._say(f"evaluation at step {evaluation.step}:")
            self._console.print(_table(sources))
        elif sources:
            name, numbers = next(iter(sources.items()))
            text = "  ".join(f"{key} {format_number(x)}" for key, x in numbers.items())
            self._say(f"evaluation at step {evaluation.step}, {name}: {text}")

    def end(self, end: RunEnd) -> None:
        """The outcome, and what the run says about itself."""
        arrow = "→" if progress.knows_unicode(self._console) else "->"
        for line in end_lines(end, self._first, self._last, arrow):
            self._say(line, "yellow" if line.startswith("warning: ") else None)

    def _say(self, text: str, style: str | None = None) -> None:
        progress.say(text, style=style, to=self._console)


def _table(sources: Mapping[str, Mapping[str, float]]) -> Table:
    """A row per data source, ``all`` last."""
    names = list(dict.fromkeys(name for numbers in sources.values() for name in numbers))
    table = Table(box=None, pad_edge=False)
    table.add_column("data source")
    for name in names:
        table.add_column(name, justify="right")
    for source, numbers in sources.items():
        cells = (format_number(numbers[name]) if name in numbers else "" for name in names)
        table.add_row(source, *cells)
    return table


_logger: ConsoleLogger | None = None


@hookimpl
def on_run_start(run: RunInfo) -> None:
    """Begin a new run."""
    global _logger
    _logger = ConsoleLogger()
    _logger.start(run)


@hookimpl
def on_step_end(step: StepInfo) -> None:
    """Print the step."""
    if _logger is not None:
        _logger.step(step)


@hookimpl
def on_eval_end(evaluation: EvalInfo) -> None:
    """Print the evaluation."""
    if _logger is not None:
        _logger.evaluation(evaluation)


@hookimpl
def on_run_end(end: RunEnd) -> None:
    """Print the outcome."""
    if _logger is not None:
        _logger.end(end)
