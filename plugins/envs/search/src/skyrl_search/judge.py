"""Exact match of an answer, as in SQuAD and Search-R1: case, articles and punctuation do not count."""

import re
import string
from collections.abc import Mapping
from typing import Any

_SEARCH = re.compile(r"<search>(.*?)</search>", re.DOTALL)
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_ARTICLE = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def extract_query(completion: str) -> str | None:
    """Content of the first ``<search>…</search>``, without surrounding space; None without one.

    Example:
        >>> extract_query("I look it up: <search> capital of France </search>")
        'capital of France'
    """
    match = _SEARCH.search(completion)
    return match.group(1).strip() if match else None


def extract_answer(completion: str) -> str | None:
    """Content of the last ``<answer>…</answer>``, without surrounding space; None without one."""
    found = _ANSWER.findall(completion)
    return found[-1].strip() if found else None


def normalise(text: str) -> str:
    """Lower case without punctuation, articles and superfluous space.

    Example:
        >>> normalise("The  U.S. Navy")
        'us navy'
    """
    return " ".join(_ARTICLE.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def is_match(answer: str, targets: tuple[str, ...]) -> bool:
    """True if the answer equals a target, both normalised."""
    return normalise(answer) in {normalise(target) for target in targets}


def targets_of(extras: Mapping[str, Any]) -> tuple[str, ...]:
    """The row's ``reward_spec.ground_truth.target``, one text or several.

    Raises:
        ValueError: The row carries none; says what it carries.
    """
    spec = extras.get("reward_spec")
    truth = spec.get("ground_truth") if isinstance(spec, Mapping) else None
    target = truth.get("target") if isinstance(truth, Mapping) else None
    if isinstance(target, str):
        return (target,)
    if isinstance(target, list | tuple) and target and all(isinstance(t, str) for t in target):
        return tuple(target)
    found = f"reward_spec={spec!r}" if "reward_spec" in extras else "no reward_spec"
    raise ValueError(
        "env 'search' needs a text or a list of texts in reward_spec.ground_truth.target; "
        f"this row has {found[:200]} and the columns: {', '.join(sorted(extras)) or 'none'}"
    )
