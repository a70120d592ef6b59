"""Rows that do not fit: dropped before the run, and counted."""

from collections.abc import Callable
from dataclasses import replace

from skyrl_kernel.data.dataset import Dataset
from skyrl_kernel.errors import DataError, SkyrlError
from skyrl_kernel.protocols import Tokenizer
from skyrl_kernel.records import Prompt


def filter_long(
    dataset: Dataset,
    tokenizer: Tokenizer,
    max_prompt_tokens: int,
    measure: Callable[[Prompt, Tokenizer], int] | None = None,
) -> tuple[Dataset, int]:
    """Drop the rows whose prompt is longer than ``max_prompt_tokens``.

    Args:
        dataset: What to look at; its order is kept.
        tokenizer: Formats and counts.
        max_prompt_tokens: ``trainer.max_prompt_length``.
        measure: `skyrl_kernel.protocols.MeasureRow` of the stage `generate`; default: the
            prompt in the chat template, the header of the completion included.

    Returns:
        The data set of those that stay, with their ``lengths``, and how many were dropped.

    Raises:
        DataError: All would be dropped, or ``measure`` refuses a row; names the row.
    """
    measured = (
        [_checked(measure, prompt, tokenizer, dataset) for prompt in dataset]
        if measure
        else _prompt_lengths(dataset, tokenizer)
    )
    kept = [place for place, length in enumerate(measured) if length <= max_prompt_tokens]
    if dataset and not kept:
        raise DataError(
            f"all {len(dataset)} prompts of {dataset.title} are longer than "
            f"trainer.max_prompt_length={max_prompt_tokens} tokens; the shortest has "
            f"{min(measured)}: raise trainer.max_prompt_length"
        )
    left = replace(
        dataset,
        prompts=tuple(dataset[place] for place in kept),
        lengths=tuple(measured[place] for place in kept),
    )
    return left, len(dataset) - len(kept)


def _prompt_lengths(dataset: Dataset, tokenizer: Tokenizer) -> list[int]:
    """Tokens of each prompt; each distinct one is tokenised once."""
    known: dict[tuple[object, ...], int] = {}
    lengths = []
    for prompt in dataset:
        key = tuple(tuple(message.items()) for message in prompt.messages)
        if key not in known:
            known[key] = len(tokenizer.encode_chat(prompt.messages, add_generation_prompt=True))
        lengths.append(known[key])
    return lengths


def _checked(
    measure: Callable[[Prompt, Tokenizer], int],
    prompt: Prompt,
    tokenizer: Tokenizer,
    dataset: Dataset,
) -> int:
    try:
        return measure(prompt, tokenizer)
    except SkyrlError:
        raise
    except ValueError as error:
        raise DataError(f"data {dataset.origin(prompt)}: {error}") from error
