"""What stands for a trainer of one or more ranks in the controller's process."""

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skyrl_kernel.protocols import Loss
from skyrl_kernel.ray.calls import answers_of, get, get_all
from skyrl_kernel.ray.packets import Rows, Samples
from skyrl_kernel.ray.parcels import tensors
from skyrl_kernel.ray.ranks import Asked, Ranks, answers
from skyrl_kernel.ray.shares import share_out, share_samples
from skyrl_kernel.records import FloatArray, IntArray, TrainingSample, UpdateResult

if TYPE_CHECKING:
    import torch

CRITIC = "value"
"""The role that may be trained in processes of its own."""


class RayTrainer:
    """Keeps the `skyrl_kernel.protocols.Trainer` protocol.

    Rows and samples are shared out by tokens, whole atoms to one rank; results come back in
    the order of what was asked. Folders are told by their absolute path: ranks may have another
    working folder than the controller.

    Args:
        policy: Ranks with the policy and every role that is not in ``others``.
        others: Role → ranks with that model alone, such as the critic.
    """

    def __init__(self, policy: Ranks, others: Mapping[str, Ranks]) -> None:
        self._policy, self._others = policy, dict(others)

    @property
    def policy(self) -> Ranks:
        """Those with the policy."""
        return self._policy

    def wait(self) -> None:
        """Return when all ranks have loaded their models."""
        for ranks in self._groups:
            ranks.wait()

    def score(self, role: str, rows: Sequence[IntArray], *, temperature: float) -> list[FloatArray]:
        """[T] log-probs or values of each row; see the protocol."""
        ranks = self._others.get(role, self._policy)
        parts = share_out([len(row) for row in rows], ranks.shares)
        packets = [Rows.of(rows[place] for place in part) for part in parts]
        [found] = answers(ranks.deal("score", role, temperature, parts=packets))
        scores: list[FloatArray] = [None] * len(rows)  # type: ignore[list-item]  # all are filled
        for part, packed in zip(parts, found, strict=True):
            for place, score in zip(part, packed.unpack(), strict=True):
                scores[place] = score
        return scores

    def update(
        self, batch: Sequence[TrainingSample], loss: Loss, *, temperature: float
    ) -> UpdateResult:
        """One optimizer step of each trained role; each rank applies its own build of ``loss``.

        A critic with ranks of its own takes its step at the same time. If one of the two
        fails, the other may have made its step: after an error there is nothing to save or to
        go on with, and the loop does neither.
        """

        def step(ranks: Ranks) -> Asked:
            parts = share_samples(batch, loss.atom, ranks.shares)
            packets = [Samples.of(part) for part in parts]
            return ranks.deal("update", temperature, parts=packets)

        steps = [step(self._policy)]
        if loss.critic is not None and CRITIC in self._others:
            steps.append(step(self._others[CRITIC]))
        return _joined(*(of_shares[0] for of_shares in answers(*steps)))

    def weights(self, role: str = "policy") -> "Weights":
        """Every tensor, in parcels that stay where engines can fetch them."""
        return Weights(self._others.get(role, self._policy), role)

    def save(self, folder: Path) -> None:
        """Write all that `load` needs; of what is trained alone."""
        answers(*(ranks.ask("save", folder.absolute()) for ranks in self._trained))

    def load(self, folder: Path) -> None:
        """Continue from what `save` wrote."""
        answers(*(ranks.ask("load", folder.absolute()) for ranks in self._trained))

    def export(self, folder: Path) -> None:
        """Write the policy as a Hugging Face directory."""
        answers(self._policy.ask("export", folder.absolute()))

    def offload(self) -> None:
        """Give the accelerators' memory back."""
        answers(*(ranks.ask("offload") for ranks in self._groups))

    def onload(self) -> None:
        """Undo `offload`."""
        answers(*(ranks.ask("onload") for ranks in self._groups))

    def close(self) -> None:
        """End all ranks."""
        for ranks in self._groups:
            ranks.close()

    @property
    def _groups(self) -> list[Ranks]:
        return [self._policy, *self._others.values()]

    @property
    def _trained(self) -> list[Ranks]:
        return [self._policy, *(ranks for role, ranks in self._others.items() if role == CRITIC)]


def _joined(policy: UpdateResult, *others: UpdateResult) -> UpdateResult:
    """Of the whole mini-batch, from those who each computed all of it with models of their own.

    The objective is the sum of theirs; weights that changed are the policy's.
    """
    metrics = dict(policy.metrics)
    for other in others:
        total = metrics["final_loss"] + other.metrics["final_loss"]
        metrics = {**other.metrics, **metrics, "final_loss": total}
    return replace(policy, metrics=metrics)


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
        answers(self._ranks.ask("begin_weights", self._role))
        for asked in self._asked():
            more = get_all([more for _, more in asked], self._ranks.names)
            parcel = get(asked[0][0], self._ranks.names[0])
            yield from tensors(parcel or [])
            if not more[0]:
                return

    async def parcels(self) -> AsyncIterator[Any]:
        """References to parcels, each to be let go before the one after the next is asked for."""
        begun = self._ranks.ask("begin_weights", self._role)
        await answers_of(begun.references, begun.names)
        asked_for = self._asked()
        asked = next(asked_for)
        while True:
            is_more, *_ = await answers_of([more for _, more in asked], self._ranks.names)
            following = next(asked_for) if is_more else None
            yield asked[0][0]
            if following is None:
                return
            asked = following

    def _asked(self) -> Iterator[list[tuple[Any, Any]]]:
        """For each parcel: of each rank, references to (parcel, whether there are more)."""
        while True:
            yield [
                actor.parcel.options(num_returns=2).remote(place == 0)
                for place, actor in enumerate(self._ranks.actors)
            ]
