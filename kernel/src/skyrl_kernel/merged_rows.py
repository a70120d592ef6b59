"""Rows of one episode that continue each other, joined to one: ``generator.merge_stepwise_output``."""

from collections.abc import Sequence

import numpy as np

from skyrl_kernel.records import Segment


def merge_rows(rows: Sequence[Segment]) -> tuple[list[Segment], list[int]]:
    """Join consecutive rows of which each is the beginning of the next one's prompt.

    The joined row is the last one's, with the masks, log-probs and versions of
    all; what stands between them was not sampled. A row that the next prompt
    does not begin with starts a joined row of its own.

    Args:
        rows: In the order of the turns.

    Returns:
        The joined rows, and for each of ``rows`` the number of the joined row
        that it went into. Its tokens stand there at the places where they stood.

    Example: prompts [10] and [10, 20, 30], completions [20] and [40, 41]:

        tokens    = [10, 20, 30, 40, 41]
        loss_mask = [ F,  T,  F,  T,  T]
    """
    merged: list[Segment] = []
    owners: list[int] = []
    chain: list[Segment] = []
    for row in rows:
        if chain and not _begins(chain[-1], row):
            merged.append(_joined(chain))
            chain = []
        chain.append(row)
        owners.append(len(merged))
    if chain:
        merged.append(_joined(chain))
    return merged, owners


def _begins(row: Segment, following: Segment) -> bool:
    length = len(row.tokens)
    return (
        length <= following.num_prompt_tokens
        and (row.logprobs is None) == (following.logprobs is None)
        and np.array_equal(row.tokens, following.tokens[:length])
    )


def _joined(chain: Sequence[Segment]) -> Segment:
    last = chain[-1]
    if len(chain) == 1:
        return last
    loss_mask = last.loss_mask.copy()
    logprobs = None if last.logprobs is None else last.logprobs.copy()
    versions = None if last.versions is None else last.versions.copy()
    for row in chain[:-1]:
        own = slice(row.num_prompt_tokens, len(row.tokens))
        loss_mask[own] = row.loss_mask[own]
        if logprobs is not None and row.logprobs is not None:
            logprobs[own] = row.logprobs[own]
        if versions is not None and row.versions is not None:
            versions[own] = row.versions[own]
    return Segment(
        tokens=last.tokens,
        num_prompt_tokens=chain[0].num_prompt_tokens,
        loss_mask=loss_mask,
        logprobs=logprobs,
        versions=versions,
    )
