"""The few numbers of a step that people watch, in few characters.

The live display and the console logger both show these, under the same names.
"""

import math
from collections.abc import Mapping, Sequence

HEADLINE: Mapping[str, tuple[str, ...]] = {
    "reward": ("reward/avg_raw_reward",),
    "exact_match": ("environment/exact_match", "reward/exact_match"),
    "tokens": ("generate/avg_num_tokens",),
    "loss": ("policy/policy_loss",),
    "kl": ("policy/policy_kl",),
    "entropy": ("policy/policy_entropy",),
    "seconds": ("timing/step",),
}
"""Name shown → the metrics that it may stand for, the first one found counts."""

_BLOCKS = "▁▂▃▄▅▆▇█"
_ASCII_BLOCKS = "_.-~=+*#"


def headline(metrics: Mapping[str, float]) -> dict[str, float]:
    """The watched numbers among ``metrics``; all of them if none is watched.

    Example:
        >>> headline({"policy/grad_norm": 1.0, "timing/step": 2.5, "reward/avg_raw_reward": 0.5})
        {'reward': 0.5, 'seconds': 2.5}
        >>> headline({"train/loss": 3.25})
        {'train/loss': 3.25}
    """
    found = {
        label: next(metrics[name] for name in names if name in metrics)
        for label, names in HEADLINE.items()
        if any(name in metrics for name in names)
    }
    return found or dict(metrics)


def format_number(value: float) -> str:
    """Three or four significant digits, at most eight characters where that suffices.

    Example:
        >>> [format_number(x) for x in (0.41249, 12, 7.125, 1234.5, -0.0000123, float("nan"))]
        ['0.412', '12', '7.12', '1234', '-1.2e-05', 'nan']
    """
    if isinstance(value, int) or not math.isfinite(value):
        return str(value)
    size = abs(value)
    if size != 0 and size < 1e-3:
        return f"{value:.1e}"
    if size >= 1e6:
        return f"{value:.2e}"
    decimals = 3 if size < 1 else 2 if size < 10 else 1 if size < 1000 else 0
    return f"{value:.{decimals}f}"


def format_headline(metrics: Mapping[str, float]) -> str:
    """The watched numbers on one line, two spaces between.

    Example:
        >>> format_headline({"reward/avg_raw_reward": 0.5, "policy/policy_kl": 0.0004})
        'reward 0.500  kl 4.0e-04'
    """
    return "  ".join(f"{name} {format_number(x)}" for name, x in headline(metrics).items())


def sparkline(values: Sequence[float], width: int = 40, *, unicode: bool = True) -> str:
    """A line of blocks between the least and the greatest value.

    More values than ``width`` are averaged in equal stretches; what is not
    finite leaves a gap.

    Example:
        >>> sparkline([0.0, 1.0, 2.0, 7.0]), sparkline([0.0, 2.0, 7.0, 7.0], width=2)
        ('▁▂▃█', '▁█')
    """
    blocks = _BLOCKS if unicode else _ASCII_BLOCKS
    count = min(width, len(values))
    stretches = [
        values[len(values) * i // count : len(values) * (i + 1) // count] for i in range(count)
    ]
    points = [_mean([x for x in stretch if math.isfinite(x)]) for stretch in stretches]
    finite = [point for point in points if point is not None]
    if not finite:
        return ""
    low, high = min(finite), max(finite)
    scale = (len(blocks) - 1) / (high - low) if high > low else 0.0
    return "".join(" " if x is None else blocks[round((x - low) * scale)] for x in points)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
