"""One process of a trainer: an actor."""

import os
import pickle
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import ray

from skyrl_kernel.errors import HookError, WeightSyncError
from skyrl_kernel.place import num_gpus
from skyrl_kernel.protocols import Loss, Ranked, Trainer
from skyrl_kernel.ray.member import Member
from skyrl_kernel.ray.packets import Rows, Samples
from skyrl_kernel.ray.parcels import Parcel, parcels
from skyrl_kernel.ray.rank_sender import RankSender, go_along
from skyrl_kernel.recipe import EngineRecipe, TrainerRecipe
from skyrl_kernel.records import UpdateResult
from skyrl_kernel.transport import RankSync


def torchrun_variables(nodes: Sequence[str], address: str, port: int) -> list[dict[str, str]]:
    """What ``torchrun`` would set in the process of each rank.

    Args:
        nodes: [ranks] the node of each; those of one node stand together.
        address: Of the first rank's machine.
        port: A free one there.

    Example:
        >>> second = torchrun_variables(["a", "b", "b"], "10.0.0.1", 29500)[2]
        >>> second["RANK"], second["LOCAL_RANK"], second["LOCAL_WORLD_SIZE"]
        ('2', '1', '2')
    """
    return [
        {
            "RANK": str(rank),
            "WORLD_SIZE": str(len(nodes)),
            "LOCAL_RANK": str(nodes[:rank].count(node)),
            "LOCAL_WORLD_SIZE": str(nodes.count(node)),
            "MASTER_ADDR": address,
            "MASTER_PORT": str(port),
        }
        for rank, node in enumerate(nodes)
    ]


class Rank(Member[TrainerRecipe]):
    """Makes its part of a trainer from a recipe, and passes calls on to it."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._trainer: Trainer | None = None
        self._loss: Loss | None = None
        self._parcels: Iterator[Parcel] = iter(())
        self._next: Parcel | None = None
        self._sender: RankSender | None = None

    def meeting_place(self) -> tuple[str, int]:
        """Address and port of this machine, for the process group of all ranks.

        The port is held as long as this process lives: nobody else gets it by chance, and a server
        that asks for it by its number, with ``SO_REUSEADDR`` as servers do, does.
        """
        self._held = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._held.bind(("", 0))
        return ray.util.get_node_ip_address(), int(self._held.getsockname()[1])

    def make(self, recipe: bytes, environment: Mapping[str, str]) -> tuple[int, int]:
        """Make the trainer; (share, shares)."""
        os.environ.update(environment)
        if num_gpus() == 1:
            os.environ["LOCAL_RANK"] = "0"  # Ray shows a rank its own GPU alone
        with self._named("make_trainer"):
            made_by = self._read(recipe)
            self._loss = made_by.loss()
            self._trainer = made_by.make()
        if isinstance(self._trainer, Ranked):
            return self._trainer.share, self._trainer.shares
        if environment["WORLD_SIZE"] != "1":
            raise HookError(
                f"the trainer '{made_by.name}' offers 'several_ranks' and does not say which share of "
                "the data it computes; see skyrl_kernel.protocols.Ranked"
            )
        return 0, 1

    def score(self, role: str, temperature: float, rows: Rows) -> Rows:
        """See `Trainer.score`."""
        with self._named("score"):
            return Rows.of(self._made.score(role, rows.unpack(), temperature=temperature))

    def update(self, temperature: float, samples: Samples) -> UpdateResult:
        """See `Trainer.update`; the loss is this process's own."""
        assert self._loss is not None, "made with the trainer"
        with self._named("loss"):
            return self._made.update(samples.unpack(), self._loss, temperature=temperature)

    def begin_weights(self, role: str) -> None:
        """Begin to iterate."""
        with self._named("weights"):
            self._parcels = parcels(self._made.weights(role))
            self._next = next(self._parcels, None)

    def parcel(self, is_wanted: bool) -> tuple[Parcel | None, bool]:
        """(the next weights, whether there are more); all ranks ask in step, one of them wants them."""
        with self._named("weights"):
            found, self._next = self._next, next(self._parcels, None)
            return (found if is_wanted else None), self._next is not None

    def attach(self, recipe: bytes) -> None:
        """Make an engine that is attached to servers, for `sync`.

        Args:
            recipe: Of an `EngineRecipe`.
        """
        assert self._recipe is not None, "the runtime calls `make` first"
        with self._named("make_engine"):
            engine: EngineRecipe = pickle.loads(recipe)
            engine.process = self._process
            self._sender = RankSender(
                self._recipe.sync_weights(), engine.make(), is_adapter=self._rank_sync.is_adapter
            )
            self._sender.start()

    def sync(self, version: int) -> None:
        """Bring the policy's weights where this rank is attached, or go along with those who do."""
        with self._named("sync_weights"):
            if self._sender is None:
                go_along(self._made, is_adapter=self._rank_sync.is_adapter)
                return
            try:
                self._sender.send(self._made, version)
            except WeightSyncError as error:
                raise WeightSyncError(f"{self._process}: {error}") from error

    def save(self, folder: Path) -> None:
        """See `Trainer.save`."""
        with self._named("save"):
            self._made.save(folder)

    def load(self, folder: Path) -> None:
        """See `Trainer.load`."""
        with self._named("load"):
            self._made.load(folder)

    def export(self, folder: Path) -> None:
        """See `Trainer.export`."""
        with self._named("export"):
            self._made.export(folder)

    def offload(self) -> None:
        """See `Trainer.offload`."""
        with self._named("offload"):
            self._made.offload()

    def onload(self) -> None:
        """See `Trainer.onload`."""
        with self._named("onload"):
            self._made.onload()

    def close(self) -> None:
        """Let go of engines, and leave the process group, if there is one."""
        try:
            if self._sender is not None:
                self._sender.close()
        finally:
            if isinstance(self._trainer, Ranked):
                self._trainer.close()

    @property
    def _rank_sync(self) -> RankSync:
        assert self._recipe is not None, "the runtime calls `make` first"
        assert self._recipe.rank_sync is not None, "asked of ranks that do the weight sync"
        return self._recipe.rank_sync

    @property
    def _made(self) -> Trainer:
        assert self._trainer is not None, "the runtime calls `make` first"
        return self._trainer
