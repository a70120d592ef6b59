"""Small pieces of error messages that several modules share."""

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A question with a leading space if something known is close to ``name``, else nothing.

    Example:
        >>> did_you_mean("grop", ["grpo", "sft"])
        " Did you mean 'grpo'?"
        >>> did_you_mean("zzz", ["grpo", "sft"])
        ''
    """
    close = difflib.get_close_matches(name, sorted(set(known)), n=1)
    return f" Did you mean '{close[0]}'?" if close else ""


def listed(names: Iterable[str], *, nothing: str = "none") -> str:
    """Comma-separated, or ``nothing``."""
    return ", ".join(names) or nothing
