"""The section of RESULTS.md on layouts, and what counts as passed."""

import json
from collections.abc import Sequence
from math import sqrt
from statistics import mean, stdev
from typing import Any

from text import Numbers, machine_line, table


def passes(results: Numbers) -> bool:
    """Every mean is near that of one process."""
    return all(
        abs(_difference(one, layout)) <= one["most_difference"]
        for one in results.values()
        for layout in one["layouts"]
    )


def lines(results: Numbers) -> list[str]:
    """One line about each layout."""
    return [
        f"{'ok' if abs(_difference(one, layout)) <= one['most_difference'] else 'MISSED'} "
        f"{title}, {layout}: {_with_error(_ends(one, layout))}, {_difference(one, layout):+.3f}"
        for title, one in results.items()
        for layout in one["layouts"]
    ]


def section(results: Numbers) -> str:
    """The means and their standard errors."""
    first = next(iter(results.values()))
    problems = int(next(iter(first["layouts"][first["against"]].values()))["problems"])
    verdict = "pass" if passes(results) else "**missed**"
    begun = {title: one for title, one in results.items() if one["layouts"]}
    comparisons = "\n".join(_comparison(title, one) for title, one in begun.items())
    return f"""\
## Do several processes learn the same?

**{verdict}**: every mean within {first["most_difference"]:g} of that of {first["against"]}. \
Held-out exact match after the demo's last step, on {problems} problems, of the models \
`builtin:tiny@SEED`. Where several ranks add up, the numbers of one seed part ways after some steps, \
since sums of floats depend on their order; the error of a difference is that of the differences seed by seed.

{comparisons}"""


def _comparison(title: str, one: Numbers) -> str:
    seeds = sorted(next(iter(one["layouts"].values())), key=int)
    head = ["layout", *(f"seed {seed}" for seed in seeds), "mean ± standard error", "difference"]
    rows = [
        [
            layout,
            *(f"{end:.3f}" for end in _ends(one, layout)),
            _with_error(_ends(one, layout)),
            ""
            if layout == one["against"]
            else f"{_difference(one, layout):+.3f} ± {_paired_error(one, layout):.3f}",
        ]
        for layout in one["layouts"]
    ]
    return f"""\
### {title}

{table(head, rows)}

{_typed(one)}

{machine_line(one["machine"])} Recipe and presets: `{one["key"]}`.
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
    run = f"skyrl run {' '.join(f'--plugin {name}' for name in results['plugins'])}"
    typed = "\n".join(
        f"- **{layout}**: `{' '.join(f'{key}={_word(value)}' for key, value in values.items())}`"
        for layout, values in results["values"].items()
        if layout in results["layouts"]
    )
    return f"What was set besides `{run}`:\n\n{typed}"


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
