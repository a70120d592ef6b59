"""Small pieces of error messages that several modules share."""

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str], likeness: float = 0.6) -> str:
    """A question with a leading space if something known is close to ``name``, else nothing.

    Of several that are close, one with the same letters goes first: letters are often swapped.
    ``likeness`` is what counts as close, from 0 to 1 for the same word.

    Example:
        >>> did_you_mean("gpro", ["grpo", "gspo", "sft"])
        " Did you mean 'grpo'?"
        >>> did_you_mean("zzz", ["grpo", "sft"])
        ''
    """
    close = difflib.get_close_matches(name, sorted(set(known)), cutoff=likeness)
    close.sort(key=lambda one: sorted(one) != sorted(name))
    return f" Did you mean '{close[0]}'?" if close else ""


def listed(names: Iterable[str], *, nothing: str = "none") -> str:
    """Comma-separated, or ``nothing``."""
    return ", ".join(names) or nothing
