"""What stands for a trainer of one or more ranks in the controller's process."""

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from skyrl_kernel.protocols import Loss
from skyrl_kernel.ray.calls import answer, get, get_all
from skyrl_kernel.ray.errors import Process
from skyrl_kernel.ray.packets import Rows, Samples
from skyrl_kernel.ray.parcels import tensors
from skyrl_kernel.ray.shares import share_out, share_samples
from skyrl_kernel.records import FloatArray, IntArray, TrainingSample, UpdateResult

if TYPE_CHECKING:
    import torch

CLOSE_S = 10.0
"""For ranks to leave their process group before they are ended."""


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

    def all(self, method: str, *args: Any) -> list[Any]:
        """Call all with the same."""
        self.wait()
        return get_all([getattr(a, method).remote(*args) for a in self.actors], self.names)

    def deal(self, method: str, *args: Any, parts: Sequence[Any]) -> list[Any]:
        """Call each with its share of ``parts`` after ``args``; the answer for each share."""
        self.wait()
        sent = [ray.put(part) for part in parts]
        references = [
            getattr(actor, method).remote(*args, sent[share])
            for actor, share in zip(self.actors, self._of, strict=True)
        ]
        answers = get_all(references, self.names)
        return [answers[place] for place in self._first]

    def close(self) -> None:
        """Let them leave their process group, then end them."""
        leaving = [actor.close.remote() for actor in self.actors]
        ray.wait(leaving, num_returns=len(leaving), timeout=CLOSE_S)
        for actor in self.actors:
            ray.kill(actor)


class RayTrainer:
    """Keeps the `skyrl_kernel.protocols.Trainer` protocol.

    Rows and samples are shared out by tokens, whole atoms to one rank; results come back in
    the order of what was asked. Folders are told by their absolute path: ranks may have another
    working folder than the controller.

    Args:
        policy: Ranks with the policy, which is trained, and every role that is not in ``others``.
        others: Role → ranks with that model alone, frozen.
    """

    def __init__(self, policy: Ranks, others: Mapping[str, Ranks]) -> None:
        self._policy, self._others = policy, dict(others)

    def wait(self) -> None:
        """Return when all ranks have loaded their models."""
        for ranks in self._groups:
            ranks.wait()

    def score(self, role: str, rows: Sequence[IntArray], *, temperature: float) -> list[FloatArray]:
        """[T] log-probs or values of each row; see the protocol."""
        ranks = self._others.get(role, self._policy)
        parts = share_out([len(row) for row in rows], ranks.shares)
        packets = [Rows.of(rows[place] for place in part) for part in parts]
        answers: list[Rows] = ranks.deal("score", role, temperature, parts=packets)
        scores: list[FloatArray] = [None] * len(rows)  # type: ignore[list-item]  # all are filled
        for part, packed in zip(parts, answers, strict=True):
            for place, found in zip(part, packed.unpack(), strict=True):
                scores[place] = found
        return scores

    def update(
        self, batch: Sequence[TrainingSample], loss: Loss, *, temperature: float
    ) -> UpdateResult:
        """One optimizer step; each rank applies its own build of ``loss``."""
        parts = share_samples(batch, loss.atom, self._policy.shares)
        packets = [Samples.of(part) for part in parts]
        results: list[UpdateResult] = self._policy.deal("update", temperature, parts=packets)
        return results[0]

    def weights(self, role: str = "policy") -> "Weights":
        """Every tensor, in parcels that stay where engines can fetch them."""
        return Weights(self._others.get(role, self._policy), role)

    def save(self, folder: Path) -> None:
        """Write all that `load` needs; of what is trained alone."""
        self._policy.all("save", folder.absolute())

    def load(self, folder: Path) -> None:
        """Continue from what `save` wrote."""
        self._policy.all("load", folder.absolute())

    def export(self, folder: Path) -> None:
        """Write the policy as a Hugging Face directory."""
        self._policy.all("export", folder.absolute())

    def offload(self) -> None:
        """Give the accelerators' memory back."""
        for ranks in self._groups:
            ranks.all("offload")

    def onload(self) -> None:
        """Undo `offload`."""
        for ranks in self._groups:
            ranks.all("onload")

    def close(self) -> None:
        """End all ranks."""
        for ranks in self._groups:
            ranks.close()

    @property
    def _groups(self) -> list[Ranks]:
        return [self._policy, *self._others.values()]


class Weights:
    """The tensors of one role: an iterator, or references to parcels for engines elsewhere.

    All ranks go through theirs in step; the first one's are handed over. The next parcel is
    packed while one is being received, and no more than these two exist.
    """

    def __init__(self, ranks: Ranks, role: str) -> None:
        self._ranks, self._role = ranks, role
        self._tensors: Iterator[tuple[str, torch.Tensor]] | None = None

    def __iter__(self) -> "Weights":
        return self

    def __next__(self) -> "tuple[str, torch.Tensor]":
        if self._tensors is None:
            self._tensors = self._all()
        return next(self._tensors)

    def _all(self) -> "Iterator[tuple[str, torch.Tensor]]":
        self._begin()
        for asked in self._asked():
            more = get_all([more for _, more in asked], self._ranks.names)
            parcel = get(asked[0][0], self._ranks.names[0])
            yield from tensors(parcel or [])
            if not more[0]:
                return

    async def parcels(self) -> AsyncIterator[Any]:
        """References to parcels, each to be let go before the one after the next is asked for."""
        self._begin()
        asked_for = self._asked()
        asked = next(asked_for)
        while True:
            for (_, more), name in zip(asked, self._ranks.names, strict=True):
                is_more = await answer(more, name)
            following = next(asked_for) if is_more else None
            yield asked[0][0]
            if following is None:
                return
            asked = following

    def _begin(self) -> None:
        self._ranks.all("begin_weights", self._role)

    def _asked(self) -> Iterator[list[tuple[Any, Any]]]:
        """For each parcel: of each rank, references to (parcel, whether there are more)."""
        while True:
            yield [
                actor.parcel.options(num_returns=2).remote(place == 0)
                for place, actor in enumerate(self._ranks.actors)
            ]
