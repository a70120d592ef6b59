"""What an evaluation generated, as SkyRL dumps it: JSON lines that people read.

    <folder>/<data source>.jsonl       one object per trajectory
    <folder>/aggregated_results.jsonl  one object: the metrics

A trajectory's fields are ``input_prompt``, ``output_response``, ``score``,
``stop_reason``, ``env_class``, ``env_extras`` and ``data_source``. Texts are with
their special tokens; the response of several turns holds the env's replies.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skyrl_kernel.json_lines import append_lines

if TYPE_CHECKING:
    from skyrl_kernel.protocols import Tokenizer
    from skyrl_kernel.records import IntArray, Trajectory

AGGREGATED = "aggregated_results.jsonl"


def source_name(trajectory: "Trajectory") -> str:
    """The data source as metrics and files name it: ``/`` becomes ``_``, none is ``unknown``.

    Example:
        >>> from types import SimpleNamespace as Any
        >>> [source_name(Any(prompt=Any(data_source=s))) for s in ("openai/gsm8k", None)]
        ['openai_gsm8k', 'unknown']
    """
    return (trajectory.prompt.data_source or "unknown").replace("/", "_")


def write_eval_dump(
    folder: Path,
    trajectories: "Sequence[Trajectory]",
    metrics: Mapping[str, float],
    tokenizer: "Tokenizer",
) -> None:
    """Fill an empty folder.

    Args:
        folder: Exists.
        trajectories: All that were judged.
        metrics: ``eval/<source>/<name>``.
        tokenizer: The policy's.
    """

    def decode(tokens: "IntArray") -> str:
        return tokenizer.decode(tokens, skip_special_tokens=False)

    records: dict[str, list[dict[str, Any]]] = {}
    prompts: dict[str, str] = {}
    for one in trajectories:
        uid = one.prompt.uid  # the samples of a prompt share its text
        if uid not in prompts:
            first = one.segments[0]
            prompts[uid] = decode(first.tokens[: first.num_prompt_tokens])
        records.setdefault(source_name(one), []).append(
            {
                "input_prompt": prompts[uid],
                "output_response": _response(one, decode),
                "score": one.reward.total if one.reward is not None else None,
                "stop_reason": str(one.stop_reason),
                "env_class": one.prompt.env_class,
                "env_extras": one.prompt.extras,
                "data_source": one.prompt.data_source,
            }
        )
    for source, lines in records.items():
        append_lines(folder / f"{source}.jsonl", lines)
    append_lines(folder / AGGREGATED, [metrics])


def _response(trajectory: "Trajectory", decode: "Callable[[IntArray], str]") -> str:
    """Everything behind the first prompt, from the last row if that still begins with it."""
    first, last = trajectory.segments[0], trajectory.segments[-1]
    start = first.num_prompt_tokens
    if (first.tokens[:start] == last.tokens[:start]).all():
        return decode(last.tokens[start:])
    return "".join([decode(row.tokens[row.num_prompt_tokens :]) for row in trajectory.segments])
