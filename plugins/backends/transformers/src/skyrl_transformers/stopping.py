"""When a completion ends: at its limit, at an id, or at a string.

Ids and limits are checked for all rows at once. Strings need text, so only the
rows that have some are decoded, and of those only the tail that a string can
reach into.
"""

from collections.abc import Callable, Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from skyrl_kernel.records import BoolArray, IntArray, Sampling


class StopRules:
    """The rules of a sequence of requests.

    Args:
        samplings: One per request.
        eos_token_ids: Ids that end every completion.
        limits: [R] most tokens of each completion.
        decode: Ids to text, special tokens left out; called only for requests
            with stop strings.
    """

    def __init__(
        self,
        samplings: Sequence[Sampling],
        eos_token_ids: Collection[int],
        limits: NDArray[np.int64],
        decode: Callable[[IntArray], str],
    ) -> None:
        self._limits = limits
        self._decode = decode
        self._ids = _table([{*eos_token_ids, *s.stop_token_ids} for s in samplings])
        self._strings = [tuple(text for text in s.stop if text) for s in samplings]
        self._any_strings = any(self._strings)

    def stopped(self, requests: NDArray[np.int64], tokens: IntArray, count: int) -> BoolArray:
        """[B] True where the newest token, or a string that it completes, ends the completion.

        Args:
            requests: [B] the request of each row.
            tokens: [R, …] all sampled ids; the newest stand at ``count - 1``.
            count: Tokens sampled so far.
        """
        newest = tokens[requests, count - 1]
        stopped: BoolArray = (newest[:, None] == self._ids[requests]).any(1)
        if self._any_strings:
            for row in np.flatnonzero(~stopped):
                strings = self._strings[requests[row]]
                stopped[row] = bool(strings) and self._has(strings, tokens[requests[row], :count])
        return stopped

    def is_full(self, requests: NDArray[np.int64], count: int) -> BoolArray:
        """[B] True where ``count`` tokens are all that the request allows."""
        return self._limits[requests] <= count

    def _has(self, strings: tuple[str, ...], completion: IntArray) -> bool:
        # A token is at least one byte of text, or none if it is special: some room for those.
        reach = max(len(text.encode()) for text in strings) + _SPECIAL_TOKENS
        tail = self._decode(completion[-reach:])
        return any(text in tail for text in strings)


_SPECIAL_TOKENS = 4


def _table(rows: Sequence[Collection[int]]) -> NDArray[np.int64]:
    """[R, S] the ids of each row, filled up with -1, which is no token."""
    table = np.full((len(rows), max((len(row) for row in rows), default=0)), -1, dtype=np.int64)
    for target, row in zip(table, rows, strict=True):
        target[: len(row)] = sorted(row)
    return table
