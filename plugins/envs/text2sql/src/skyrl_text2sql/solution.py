"""The form that a whole answer must have, and the query in it."""

import re

_INNER_TAG = re.compile(r"</?(think|sql|observation)\b", re.IGNORECASE)
_THOUGHT = re.compile(r"<think>.*?</think>", re.DOTALL)
_OBSERVED = re.compile(r"</observation>\s*", re.IGNORECASE)
_THINKS = re.compile("<think>", re.IGNORECASE)
_SQL = re.compile(r"<sql>(.*?)</sql>", re.DOTALL)


def parse_query(action: str) -> str | None:
    """The first ``<sql>…</sql>`` of one reply, or None.

    Example:
        >>> parse_query("<think>how many?</think><sql>SELECT count(*) FROM t</sql>")
        'SELECT count(*) FROM t'
    """
    match = _SQL.search(action)
    return match.group(1) if match else None


def parse_solution(conversation: str) -> str | None:
    """The query in the one ``<solution>`` of a conversation of the right form, else None.

    The form: ``<solution>`` once, and after it ``</solution>`` once; no other tag inside;
    a complete ``<think>`` somewhere; after each observation before the solution, a
    ``<think>`` comes first.

    Args:
        conversation: All replies and observations, in order, joined by nothing.

    Example:
        >>> parse_solution("<think>easy</think><solution> SELECT 1 </solution>")
        'SELECT 1'
    """
    before, opening, after = conversation.partition("<solution>")
    solution, closing, rest = after.partition("</solution>")
    if not opening or not closing or "<solution>" in after or "</solution>" in rest:
        return None
    if _INNER_TAG.search(solution) or not _THOUGHT.search(conversation):
        return None
    if any(not _THINKS.match(before, observed.end()) for observed in _OBSERVED.finditer(before)):
        return None
    return solution.strip()
