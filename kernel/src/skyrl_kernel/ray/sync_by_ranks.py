"""The stage `sync_weights` where the trainer's ranks bring weights to engines past Ray."""

import pickle
from collections.abc import Mapping, Sequence
from typing import Any

from skyrl_kernel.errors import CapabilityError
from skyrl_kernel.logs import get_logger
from skyrl_kernel.place import is_loopback
from skyrl_kernel.protocols import Engine, Trainer
from skyrl_kernel.ray.calls import answers_of
from skyrl_kernel.ray.engines import RayEngines
from skyrl_kernel.ray.errors import Process
from skyrl_kernel.recipe import EngineRecipe
from skyrl_kernel.transport import SYNC_KEY, RankSync

log = get_logger(__name__)


class SyncByRanks:
    """Has every rank of the policy do its part, then every engine go on with what came.

    Args:
        rank_sync: Who brings weights to whom.
        ranks: Actors of the policy.
        names: Of each, for messages.
        engines: All of them.
        recipe: Of the engine; ranks are told the addresses of some.
        nodes: Name of a process → Ray's id of its node, of those that the run has placed.
    """

    def __init__(
        self,
        rank_sync: RankSync,
        ranks: Sequence[Any],
        names: Sequence[Process],
        engines: RayEngines,
        recipe: EngineRecipe,
        nodes: Mapping[str, str],
    ) -> None:
        self._rank_sync, self._engines = rank_sync, engines
        self._ranks, self._names = list(ranks), list(names)
        self._recipe, self._nodes = recipe, nodes

    async def attach(self) -> None:
        """Let the ranks that bring weights reach the engines. Before the first sync, while all are awake.

        Raises:
            CapabilityError: An engine listens where its rank does not reach it.
        """
        addresses = await self._engines.addresses()
        served = targets(self._rank_sync, len(self._ranks), len(addresses))
        asked = [(rank, engines) for rank, engines in enumerate(served) if engines]
        for rank, engines in asked:
            for engine in engines:
                self._refuse_far(rank, engine, addresses[engine])
        references = [
            self._ranks[rank].attach.remote(
                pickle.dumps(
                    self._recipe.attached([url for one in engines for url in addresses[one]])
                )
            )
            for rank, engines in asked
        ]
        await answers_of(references, [self._names[rank] for rank, _ in asked])
        log.info("ranks attached to engines", ranks=len(asked))

    def _refuse_far(self, rank: int, engine: int, addresses: Sequence[str]) -> None:
        """What listens on loopback is another server, or none, on another machine."""
        here, there = self._names[rank], self._engines.names[engine]
        node = self._nodes.get(there.name)
        if node in (None, self._nodes[here.name]):
            return
        for url in filter(is_loopback, addresses):
            raise CapabilityError(
                f"{SYNC_KEY}={self._rank_sync.name} has {here} bring weights to the server of {there}, which "
                f"listens at {url} for its own machine alone; put both on one machine, or use {SYNC_KEY}=auto, "
                "which goes through Ray"
            )

    async def __call__(self, trainer: Trainer, engine: Engine, version: int) -> None:
        """Bring the policy's weights, and commit ``version``.

        Raises:
            WeightSyncError: A rank could not, or an engine has others.
        """
        await self._engines.hold()
        asked = [actor.sync.remote(version) for actor in self._ranks]
        await answers_of(asked, self._names)
        await self._engines.adopt(version)


def targets(rank_sync: RankSync, ranks: int, engines: int) -> list[list[int]]:
    """[ranks] the engines that each brings weights to; a rank and an engine on one device have one number.

    Args:
        rank_sync: Who brings them.
        ranks: How many ranks the policy has.
        engines: How many engines there are.

    Example:
        >>> targets(RankSync(name="gloo", by_each=False, is_adapter=False), 2, 3)
        [[0, 1, 2], []]
        >>> targets(RankSync(name="cuda_ipc", by_each=True, is_adapter=False), 2, 2)
        [[0], [1]]
    """
    if rank_sync.by_each:
        return [[rank] if rank < engines else [] for rank in range(ranks)]
    return [list(range(engines)), *([] for _ in range(ranks - 1))]
