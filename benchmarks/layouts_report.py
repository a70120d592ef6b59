"""The section of RESULTS.md on layouts, and what counts as passed."""

from collections.abc import Sequence
from math import sqrt
from statistics import mean, stdev

from text import Numbers, machine_line, table


def passes(results: Numbers) -> bool:
    """Every mean is near that of one process."""
    return all(
        abs(_difference(results, layout)) <= results["most_difference"]
        for layout in results["layouts"]
    )


def lines(results: Numbers) -> list[str]:
    """One line about each layout."""
    return [
        f"{'ok' if abs(_difference(results, layout)) <= results['most_difference'] else 'MISSED'} "
        f"{layout}: {_with_error(_ends(results, layout))}, {_difference(results, layout):+.3f}"
        for layout in results["layouts"]
    ]


def section(results: Numbers) -> str:
    """The means and their standard errors."""
    seeds = sorted(next(iter(results["layouts"].values())), key=int)
    head = ["layout", *(f"seed {seed}" for seed in seeds), "mean ± standard error", "difference"]
    rows = [
        [
            layout,
            *(f"{one:.3f}" for one in _ends(results, layout)),
            _with_error(_ends(results, layout)),
            ""
            if layout == results["against"]
            else f"{_difference(results, layout):+.3f} ± {_paired_error(results, layout):.3f}",
        ]
        for layout in results["layouts"]
    ]
    verdict = "pass" if passes(results) else "**missed**"
    problems = int(next(iter(results["layouts"][results["against"]].values()))["problems"])
    return f"""\
## Do several processes learn the same?

**{verdict}**: every mean within {results["most_difference"]:g} of that of {results["against"]}. \
Held-out exact match after the demo's last step, on {problems} problems, of the models \
`builtin:tiny@SEED`. The numbers of one seed part ways after some steps, since sums of floats depend \
on their order; the error of a difference is that of the differences seed by seed.

{table(head, rows)}

{_typed(results)}

{machine_line(results["machine"])} Recipe and preset: `{results["key"]}`.
"""


def _ends(results: Numbers, layout: str) -> list[float]:
    found = results["layouts"][layout]
    return [found[seed]["end"] for seed in sorted(found, key=int)]


def _difference(results: Numbers, layout: str) -> float:
    return mean(_paired(results, layout))


def _paired(results: Numbers, layout: str) -> list[float]:
    own, other = _ends(results, layout), _ends(results, results["against"])
    return [one - two for one, two in zip(own, other, strict=False)]


def _paired_error(results: Numbers, layout: str) -> float:
    return _standard_error(_paired(results, layout))


def _with_error(numbers: Sequence[float]) -> str:
    return f"{mean(numbers):.3f} ± {_standard_error(numbers):.3f}"


def _standard_error(numbers: Sequence[float]) -> float:
    return stdev(numbers) / sqrt(len(numbers)) if len(numbers) > 1 else float("nan")


def _typed(results: Numbers) -> str:
    typed = "\n".join(
        f"- **{layout}**: `{' '.join(f'{key}={value}' for key, value in values.items())}`"
        for layout, values in results["values"].items()
        if values and layout in results["layouts"]
    )
    return f"What was set besides:\n\n{typed}" if typed else ""
