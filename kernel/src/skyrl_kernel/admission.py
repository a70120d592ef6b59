"""When a group may begin: the one rule behind synchronous and asynchronous training.

Groups are numbered in the order in which they begin and are trained on in that
order, ``target`` to a step. A group begun while the weights had version v is
trained on at a step that sees version at most v + max_staleness, because it is
only begun if fewer than (v + 1 + max_staleness) × target undropped groups were
begun before it. With ``max_staleness=0`` that is synchronous training.
"""

import asyncio


class Admission:
    """Counts begun and dropped groups against the policy version.

    Args:
        target: Groups of one step.
        max_staleness: Most versions between a group's first token and its training.
        most_running: Most groups that run at a time; None: as many as may begin.
        total: Undropped groups of the whole run; no more are begun.
        version: Policy version now.
        begun: Groups begun so far, over the whole run.
        dropped: Those of them that `select` dropped.

    Example:
        >>> admission = Admission(target=2, max_staleness=0, total=4)
        >>> admission.begin(), admission.begin(), admission.capacity
        (0, 1, 0)
        >>> admission.advance(); admission.capacity
        2
    """

    def __init__(
        self,
        *,
        target: int,
        max_staleness: int,
        total: int,
        most_running: int | None = None,
        version: int = 0,
        begun: int = 0,
        dropped: int = 0,
    ) -> None:
        self.target = target
        self.total = total
        self.max_staleness = max_staleness
        self.most_running = most_running
        self.running = 0
        self.version = version
        self.begun = begun
        self.dropped = dropped
        self._changed = asyncio.Event()

    @property
    def capacity(self) -> int:
        """Groups that may begin now."""
        allowed = min((self.version + 1 + self.max_staleness) * self.target, self.total)
        capacity = allowed + self.dropped - self.begun
        if self.most_running is not None:
            capacity = min(capacity, self.most_running - self.running)
        return max(capacity, 0)

    async def wait(self) -> None:
        """Return when a group may begin."""
        while not self.capacity:
            self._changed.clear()
            await self._changed.wait()

    def begin(self) -> int:
        """Count one group as begun; returns its index."""
        assert self.capacity, "wait() first"
        self.begun += 1
        self.running += 1
        return self.begun - 1

    def end(self) -> None:
        """One begun group has been generated, or was given up."""
        self.running -= 1
        self._changed.set()

    def drop(self, count: int) -> None:
        """``count`` begun groups will not be trained on; as many others may begin."""
        self.dropped += count
        self._changed.set()

    def advance(self) -> None:
        """The weights have a new version."""
        self.version += 1
        self._changed.set()
