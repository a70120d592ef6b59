"""What an env may return: chat messages, finite numbers, True or False."""

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from skyrl_kernel.env import EnvStep
from skyrl_kernel.records import Message

_STEP_KEYS = frozenset({"observations", "reward", "done", "metadata"})


class BadResult(Exception):
    """A method returned what its contract forbids; the message says what, and what it must be."""


def check_prompt(result: Any) -> Sequence[Message]:
    """The prompt of what ``init`` returned."""
    if not (isinstance(result, (tuple, list)) and len(result) == 2):
        raise BadResult(f"returned {_shown(result)}; it must return (prompt, information)")
    messages: Sequence[Message] = result[0]
    if not _are_messages(messages) or not messages:
        raise BadResult(f"returned the prompt {_shown(messages)}; it must be chat messages")
    return messages


def check_step(result: Any) -> EnvStep:
    """What ``step`` returned, with plain Python values; numpy's scalars are as good."""
    if _is_plain(result):
        return {  # half the time of EnvStep(…)
            "observations": [],
            "reward": result["reward"],
            "done": result["done"],
            "metadata": dict(result["metadata"]),  # the env may keep its own
        }
    if not _is_mapping(result):
        raise BadResult(f"returned {_shown(result)}; it must return a mapping as EnvStep")
    if not ("observations" in result and "reward" in result and "done" in result):
        missing = [key for key in ("observations", "reward", "done") if key not in result]
        raise BadResult(f"returned no {', '.join(missing)}; it returned: {', '.join(result)}")
    reward, done = result["reward"], result["done"]
    if not _is_number(reward):
        raise BadResult(f"returned the reward {_shown(reward)}; it must be a number")
    if not math.isfinite(reward):
        raise BadResult(f"returned the reward {reward}; it must be finite")
    if not isinstance(done, (bool, np.bool_)):
        raise BadResult(f"returned done={_shown(done)}; it must be True or False")
    observations = result["observations"] or []
    if not _are_messages(observations):
        raise BadResult(f"returned observations {_shown(observations)}; they must be chat messages")
    metadata = result.get("metadata") or {}
    if not _is_mapping(metadata):
        raise BadResult(f"returned metadata {_shown(metadata)}; it must be a mapping")
    processed = result.get("postprocessed_action")
    if processed is not None and not isinstance(processed, str):
        raise BadResult(f"returned postprocessed_action {_shown(processed)}; it must be text")
    return EnvStep(
        observations=observations,
        reward=float(reward),
        done=bool(done),
        metadata=dict(metadata),
        postprocessed_action=processed,
    )


def check_metrics(result: Any) -> dict[str, float]:
    """What ``get_metrics`` returned."""
    if type(result) is dict and all(
        [
            type(key) is str and type(value) is float and math.isfinite(value)
            for key, value in result.items()
        ]
    ):
        return result.copy()
    if not _is_mapping(result):
        raise BadResult(f"returned {_shown(result)}; it must be a mapping of numbers")
    for key, value in result.items():
        if not _is_number(value) and not isinstance(value, (bool, np.bool_)):
            raise BadResult(f"returned {key}={_shown(value)}; it must be a number")
        if not math.isfinite(value):
            raise BadResult(f"returned {key}={value}; it must be finite")
    return {str(key): float(value) for key, value in result.items()}


def _is_plain(result: Any) -> bool:
    """True for what most envs return at the end of an episode, so that no more need be asked."""
    return (
        type(result) is dict
        and result.keys() == _STEP_KEYS
        and type(result["reward"]) is float
        and math.isfinite(result["reward"])
        and type(result["done"]) is bool
        and result["observations"] == []
        and type(result["metadata"]) is dict
    )


def _is_mapping(value: Any) -> bool:
    return type(value) is dict or isinstance(value, Mapping)  # the second is ten times slower


def _is_number(value: Any) -> bool:
    return type(value) is float or (isinstance(value, numbers.Real) and not isinstance(value, bool))


def _are_messages(value: Any) -> bool:
    if not isinstance(value, (list, tuple)):
        return False
    for (
        one
    ) in value:  # a loop: `all` of a generator takes twice as long, and this is asked per turn
        if not (
            _is_mapping(one)
            and isinstance(one.get("role"), str)
            and isinstance(one.get("content"), str)
        ):
            return False
    return True


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{text if len(text) <= 80 else text[:77] + '...'} ({type(value).__name__})"
