"""Prompts that do not fit: dropped before the run, and counted."""

from dataclasses import replace

from skyrl_kernel.data.dataset import Dataset
from skyrl_kernel.errors import DataError
from skyrl_kernel.protocols import Tokenizer
from skyrl_kernel.records import Prompt


def filter_long(
    dataset: Dataset, tokenizer: Tokenizer, max_prompt_tokens: int
) -> tuple[Dataset, int]:
    """Drop the prompts that are longer than ``max_prompt_tokens`` in the chat template.

    Each distinct prompt is tokenised once.

    Args:
        dataset: What to look at; its order is kept.
        tokenizer: Formats and counts, the header of the completion included.
        max_prompt_tokens: ``trainer.max_prompt_length``.

    Returns:
        The data set of those that stay, with their ``lengths``, and how many were dropped.

    Raises:
        DataError: All would be dropped.
    """
    measured: dict[tuple[object, ...], int] = {}
    kept: list[Prompt] = []
    lengths: list[int] = []
    for prompt in dataset:
        key = tuple(tuple(message.items()) for message in prompt.messages)
        if key not in measured:
            tokens = tokenizer.encode_chat(prompt.messages, add_generation_prompt=True)
            measured[key] = len(tokens)
        if measured[key] <= max_prompt_tokens:
            kept.append(prompt)
            lengths.append(measured[key])
    if dataset and not kept:
        raise DataError(
            f"all {len(dataset)} prompts of {dataset.title} are longer than "
            f"trainer.max_prompt_length={max_prompt_tokens} tokens; the shortest has "
            f"{min(measured.values())}: raise trainer.max_prompt_length"
        )
    dropped = len(dataset) - len(kept)
    return replace(dataset, prompts=tuple(kept), lengths=tuple(lengths)), dropped
