"""The console logger's lines, as text: what `skyrl_console.plugin` prints."""

from collections.abc import Mapping, Sequence
from typing import Any

from skyrl_kernel.headline import format_number, headline
from skyrl_kernel.protocols import RunEnd, RunInfo, StepInfo
from skyrl_kernel.records import Trajectory

EVALUATED = ("exact_match", "avg_score", "success_at_", "pass_at_", "mean_positive_reward")
"""What an evaluation's table shows, in order; ``…_at_`` stands for every n."""

_WIDTH = 8
"""Of a number in a step line: fits ``-1.2e-05``."""


def start_line(run: RunInfo) -> str:
    """Name, folder, plugins and steps; where a run continues, from where."""
    plugins = f"{len(run.plugins)} plugin{'' if len(run.plugins) == 1 else 's'}"
    if run.start_step > 0:
        steps = f"continues after step {run.start_step} of {run.total_steps}"
    else:
        steps = f"{run.total_steps} steps"
    return f"run {run.name}: {steps}, {plugins}, folder {run.folder}"


def step_line(step: StepInfo) -> str:
    """The watched numbers, one below the other from step to step."""
    number = str(step.step).rjust(len(str(step.total_steps)))
    numbers = (
        f"{name} {format_number(value).ljust(_WIDTH)}"
        for name, value in headline(step.metrics).items()
    )
    return f"step {number}/{step.total_steps}  {'  '.join(numbers)}".rstrip()


def example_lines(step: int, trajectory: Trajectory) -> list[str]:
    """One trajectory as people read it: the conversation, and what each turn earned."""
    reward = format_number(trajectory.reward.total) if trajectory.reward is not None else "none"
    lines = [
        f"example of step {step}: trajectory {trajectory.id}, reward {reward}, "
        f"ended by {trajectory.stop_reason}"
    ]
    for message in trajectory.prompt.messages:
        lines.append(f"  {message['role']}: {_indented(str(message['content']))}")
    for turn in trajectory.turns:
        earned = f" ({format_number(turn.reward)})" if len(trajectory.turns) > 1 else ""
        lines.append(f"  assistant{earned}: {_indented(turn.action)}")
    return lines


def by_source(metrics: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """``eval/<source>/<name>`` → source → the names that the table shows; ``all`` last.

    Where no known name is there, whatever stands directly under a source is shown.
    """
    sources: dict[str, dict[str, float]] = {}
    for key, value in metrics.items():
        parts = key.split("/")
        if len(parts) == 3 and parts[0] == "eval":
            sources.setdefault(parts[1], {})[parts[2]] = value
    known = {source: _known(names) for source, names in sources.items()}
    shown = known if any(known.values()) else sources
    return dict(sorted(shown.items(), key=lambda item: (item[0] == "all", item[0])))


def score(metrics: Mapping[str, float]) -> tuple[str, float] | None:
    """The one number of an evaluation, as (name, value).

    Exact match, else the average score; of rows that were read accuracy, else the loss.
    """
    for name in ("exact_match", "avg_score", "accuracy", "loss"):
        if (value := metrics.get(f"eval/all/{name}")) is not None:
            return name, value
    return None


def first_evaluation(
    lines: Sequence[Mapping[str, Any]],
) -> tuple[int, Mapping[str, float]] | None:
    """Step and metrics of the first line of ``metrics.jsonl`` that has an evaluation."""
    return next(((int(line["step"]), line) for line in lines if score(line)), None)


def end_lines(
    end: RunEnd,
    first: tuple[int, Mapping[str, float]] | None,
    last: tuple[int, Mapping[str, float]] | None,
    arrow: str,
) -> list[str]:
    """How it ended, the held-out score before and after, and every warning.

    Args:
        end: The end.
        first: Step and metrics of the first evaluation, if there was one.
        last: The same of the last one.
        arrow: Stands between before and after.
    """
    if end.status in ("failed", "interrupted"):
        # Why is raised, and told by whoever began the run.
        kept = (
            f"after the checkpoint of step {end.step}"
            if end.step
            else "before the first checkpoint"
        )
        lines = [f"{end.status} {kept}"]
    else:
        lines = [f"{end.status} at step {end.step}" + (f": {end.message}" if end.message else "")]
    after = score(last[1]) if last else None
    if first and last and after:
        name, value = after
        before = first[1].get(f"eval/all/{name}")
        if last[0] > first[0] and before is not None:
            change = (
                f"{format_number(before)} (step {first[0]}) {arrow} "
                f"{format_number(value)} (step {last[0]})"
            )
            lines.append(f"held-out {name}: {change}")
        else:
            lines.append(f"held-out {name}: {format_number(value)} (step {last[0]})")
    return [*lines, *(f"warning: {warning}" for warning in _once(end.warnings))]


def _known(names: Mapping[str, float]) -> dict[str, float]:
    return {
        name: value
        for wanted in EVALUATED
        for name, value in names.items()
        if name == wanted or (wanted.endswith("_") and name.startswith(wanted))
        if not (name == "success_at_1" and "exact_match" in names)  # which is the same
    }


def _indented(text: str) -> str:
    """``text``, its further lines below its first one."""
    return text.strip().replace("\n", "\n    ")


def _once(warnings: Sequence[str]) -> list[str]:
    """Each warning once, and how often it was given."""
    counts: dict[str, int] = {}
    for warning in warnings:
        counts[warning] = counts.get(warning, 0) + 1
    return [text if n == 1 else f"{text} ({n} times)" for text, n in counts.items()]
