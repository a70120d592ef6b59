"""Which engine or server a request goes to, where there are several.

The rule: to the server with the fewest running requests; but to the one that
has most of the prompt in its prefix cache already, as long as that runs at most
`SLACK` requests more and no server is idle. So samples of one prompt, and turns
of one episode, share a cache at a price that is bounded: a step of decoding
takes hardly longer with a few more requests in it, while a server that waits
for the next batch costs all that it could have done.
"""

from collections import OrderedDict

from skyrl_kernel.records import IntArray

SLACK = 4
"""Most requests that a server runs more than the least busy one, for the sake of its cache."""
_BLOCK = 16
"""Tokens that a cache shares or does not share: vLLM's default."""
_REMEMBERED = 2**16
"""Blocks whose server is known; the oldest are forgotten first."""


class LoadBalancer:
    """Counts what runs where.

    Args:
        servers: How many there are, at least 1.

    Example:
        >>> import numpy as np
        >>> balancer = LoadBalancer(2)
        >>> prompt, other = np.arange(32), np.arange(100, 132)
        >>> balancer.acquire(prompt), balancer.acquire(other), balancer.acquire(prompt)
        (0, 1, 0)
    """

    def __init__(self, servers: int) -> None:
        self.running = [0] * servers
        """[servers] requests."""
        self._last = servers - 1
        self._home: OrderedDict[int, int] = OrderedDict()

    def acquire(self, tokens: IntArray) -> int:
        """The server for a request with this prompt; `release` when it has ended."""
        if len(self.running) == 1:
            self.running[0] += 1
            return 0
        blocks = _blocks(tokens)
        place = self._with_prefix(blocks)
        if place is None or not self._is_affordable(place):
            place = self._least_busy()
        for block in blocks:
            self._home[block] = place
            self._home.move_to_end(block)
        while len(self._home) > _REMEMBERED:
            self._home.popitem(last=False)
        self.running[place] += 1
        return place

    def add(self, place: int) -> None:
        """One more request goes there, as the group that it belongs to does; `release` as ever."""
        self.running[place] += 1

    def release(self, place: int) -> None:
        """A request that went there has ended."""
        self.running[place] -= 1

    def _with_prefix(self, blocks: list[int]) -> int | None:
        """Where half of the prompt or more was computed before; less is not worth a wait."""
        for block in reversed(blocks[len(blocks) // 2 :]):
            if block in self._home:
                return self._home[block]
        return None

    def _is_affordable(self, place: int) -> bool:
        least = min(self.running)
        return self.running[place] == least or 0 < least >= self.running[place] - SLACK

    def _least_busy(self) -> int:
        """Equals take turns, so that one request at a time does not always meet the same server."""
        servers = len(self.running)
        order = [(self._last + 1 + i) % servers for i in range(servers)]
        self._last = min(order, key=self.running.__getitem__)
        return self._last


def _blocks(tokens: IntArray) -> list[int]:
    """A number for each whole block of a prompt, which stands for all tokens up to its end."""
    found, before = [], 0
    for end in range(_BLOCK, len(tokens) + 1, _BLOCK):
        before = hash((before, tokens[end - _BLOCK : end].tobytes()))
        found.append(before)
    return found
