"""Ranks that have the same models: one group of processes."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import ray

from skyrl_kernel.ray.calls import get_all
from skyrl_kernel.ray.errors import Process

CLOSE_S = 10.0
"""For ranks to leave their process group before they are ended."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A call of every rank of a group, which is under way."""

    references: Sequence[Any]
    """Of each rank, to its answer."""
    names: Sequence[Process]
    chosen: Sequence[int]
    """Places of the ranks whose answers are wanted."""


def answers(*asked: Asked) -> list[list[Any]]:
    """Of each call the answers that it wants, once all ranks of all groups have given theirs.

    Raises:
        SkyrlError: What a rank of any group raised, although others may still compute.
    """
    references = [reference for one in asked for reference in one.references]
    found = iter(get_all(references, [name for one in asked for name in one.names]))
    groups = [list(islice(found, len(one.references))) for one in asked]
    return [[of[place] for place in one.chosen] for one, of in zip(asked, groups, strict=True)]


class Ranks:
    """The ranks of one group: every call goes to all of them, in the same order.

    Args:
        actors: Of `skyrl_kernel.ray.rank.Rank`, being made.
        names: Of each, for messages.
        made: References to (share, shares) of each.
    """

    def __init__(
        self, actors: Sequence[Any], names: Sequence[Process], made: Sequence[Any]
    ) -> None:
        self.actors, self.names = list(actors), list(names)
        self._made = list(made)
        self._of: list[int] = []
        self._first: list[int] = []

    def wait(self) -> None:
        """Return when all are made; raise what one of them raised."""
        if self._of:
            return
        shares: list[tuple[int, int]] = get_all(self._made, self.names)
        self._of = [share for share, _ in shares]
        self._first = [self._of.index(share) for share in range(shares[0][1])]

    @property
    def shares(self) -> int:
        """Number of parts of the data."""
        self.wait()
        return len(self._first)

    def ask(self, method: str, *args: Any) -> Asked:
        """Call all with the same; every answer."""
        self.wait()
        return Asked(
            references=[getattr(actor, method).remote(*args) for actor in self.actors],
            names=self.names,
            chosen=range(len(self.actors)),
        )

    def deal(self, method: str, *args: Any, parts: Sequence[Any]) -> Asked:
        """Call each with its share of ``parts`` after ``args``; the answer for each share."""
        self.wait()
        sent = [ray.put(part) for part in parts]
        references = [
            getattr(actor, method).remote(*args, sent[share])
            for actor, share in zip(self.actors, self._of, strict=True)
        ]
        return Asked(references=references, names=self.names, chosen=self._first)

    def close(self) -> None:
        """Let them leave their process group, then end them."""
        leaving = [actor.close.remote() for actor in self.actors]
        ray.wait(leaving, num_returns=len(leaving), timeout=CLOSE_S)
        for actor in self.actors:
            ray.kill(actor)
