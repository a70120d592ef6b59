"""The runtime ``ray``: a process for each rank of the trainer and for each engine."""

import os
import pickle
from collections.abc import Mapping, Sequence

import ray

from skyrl_kernel.config import GeneratorConfig, TrainerConfig
from skyrl_kernel.config.generator import NO_ENGINE
from skyrl_kernel.errors import CapabilityError
from skyrl_kernel.logs import get_logger
from skyrl_kernel.place import num_gpus
from skyrl_kernel.probe import coarser
from skyrl_kernel.processes import ALONE, ROLE_LABELS, alone
from skyrl_kernel.protocols import Engine, Settings, SyncWeights, Trainer
from skyrl_kernel.ray.actors import Actors
from skyrl_kernel.ray.calls import get_all
from skyrl_kernel.ray.cluster import Cluster
from skyrl_kernel.ray.config import RayConfig
from skyrl_kernel.ray.demands import ENGINES, POLICY, demands, needs_of
from skyrl_kernel.ray.engines import RayEngines
from skyrl_kernel.ray.host import Host
from skyrl_kernel.ray.monitor import Monitor
from skyrl_kernel.ray.placement import Placement, Seat
from skyrl_kernel.ray.rank import Rank, torchrun_variables
from skyrl_kernel.ray.ranks import Ranks
from skyrl_kernel.ray.shared_gpus import seats_of_engines
from skyrl_kernel.ray.sync_by_ranks import SyncByRanks
from skyrl_kernel.ray.trainer import RayTrainer
from skyrl_kernel.ray.waits import waiting_for
from skyrl_kernel.recipe import EngineRecipe, TrainerRecipe
from skyrl_kernel.run import RunFolder
from skyrl_kernel.transport import RankSync

_CALLS = 1_000_000
"""Of one engine at a time: more than any run has, so that no order waits behind completions."""

log = get_logger(__name__)


class RayRuntime:
    """Keeps the `skyrl_kernel.protocols.Runtime` protocol.

    Args:
        settings: Of the run.
    """

    def __init__(self, settings: Settings) -> None:
        self._config = settings[RayConfig]
        self._trainer_config = settings[TrainerConfig]
        self._generator = settings[GeneratorConfig]
        self._cluster: Cluster | None = None
        self._placement: Placement | None = None
        self._trainer: RayTrainer | None = None
        self._engines: RayEngines | None = None
        self._rank_sync: RankSync | None = None
        self._sync: SyncByRanks | None = None
        self._monitor = Monitor() if self._trainer_config.enable_ray_gpu_monitor else None
        self._actors = Actors(
            RunFolder.of(self._trainer_config).logs.absolute(),
            start_timeout_s=self._config.start_timeout_s,
            monitor=self._monitor,
        )

    # --- trainer -----------------------------------------------------------------------

    def start_trainer(self, recipe: TrainerRecipe) -> Trainer:
        """A rank on each of its devices, and of those that a role has to itself.

        They load their models while engines are started; `start_engine` waits for them.

        Raises:
            CapabilityError: The devices are not there.
            PluginLoadError: A process has other plugins than the run.
        """
        self._rank_sync = recipe.rank_sync
        placement = self._trainer_config.placement
        apart = [role for role in alone(placement) if role in recipe.models]
        devices = self._place(apart)
        others = {
            role: self._ranks(
                recipe.with_roles(role),
                devices.seats(ALONE[role], shared=False),
                f"{ROLE_LABELS[role]} rank",
            )
            for role in apart
        }
        shared = recipe.with_roles(*(role for role in recipe.models if role not in others))
        seats = devices.seats(POLICY, shared=placement.colocate_all)
        self._trainer = RayTrainer(self._ranks(shared, seats, "trainer rank"), others)
        if self._engines is not None:
            self._wait_for_trainer()
        return self._trainer

    def _wait_for_trainer(self) -> None:
        """What a rank cannot do is to be known before anything is written."""
        if self._trainer is not None:
            with waiting_for("the trainer to load its models"):
                self._trainer.wait()
            log.info("trainer made")

    def _ranks(self, recipe: TrainerRecipe, seats: Sequence[Seat], what: str) -> Ranks:
        names = [f"{what} {rank}" for rank in range(len(seats))]
        environment = self._config.trainer_env
        actors, processes = self._actors.start(
            Rank, names, seats, recipe, environment, is_here=self._is_here
        )
        [(address, port)] = get_all([actors[0].meeting_place.remote()], processes[:1])
        made = [
            actor.make.remote(pickle.dumps(recipe), {**variables, **seat.environment})
            for actor, seat, variables in zip(
                actors,
                seats,
                torchrun_variables([seat.node for seat in seats], address, port),
                strict=True,
            )
        ]
        return Ranks(actors, processes, made)

    # --- engines -----------------------------------------------------------------------

    def start_engine(self, recipe: EngineRecipe) -> Engine:
        """``num_engines`` of them; they load while the run goes on, and are waited for at first use.

        What stands for none is in this process.

        Raises:
            CapabilityError: The devices are not there.
            PluginLoadError: A process has other plugins than the run.
        """
        if recipe.name == NO_ENGINE:
            self._wait_for_trainer()
            return recipe.make()
        config, whole = self._generator.inference_engine, recipe
        colocated = self._trainer_config.placement.colocate_all
        devices = self._place()
        seats: Sequence[Seat | None] = [None]  # of engines that run elsewhere
        environments: Sequence[Mapping[str, str]] = [{}]
        if not config.external_server_urls:
            seats, environments = seats_of_engines(
                devices.seats(POLICY if colocated else ENGINES, shared=colocated),
                config.num_engines,
                self._config.start_timeout_s,
            )
            recipe = self._of_one(recipe)
        names = [f"engine {place}" for place in range(len(seats))]
        environment = self._config.engine_env
        actors, processes = self._actors.start(
            Host, names, seats, recipe, environment, is_here=self._is_here, max_concurrency=_CALLS
        )
        made = [
            actor.make.remote(pickle.dumps(recipe), variables)
            for actor, variables in zip(actors, environments, strict=True)
        ]
        in_process = "in_process" in recipe.offers
        self._engines = RayEngines(
            actors,
            processes,
            made,
            batches=in_process,
            lockstep=in_process and self._trainer_config.max_staleness == 0,
            precision=coarser(bf16=self._trainer_config.bf16, engine_dtype=config.model_dtype),
        )
        self._wait_for_trainer()
        if self._rank_sync is not None and self._trainer is not None:
            policy = self._trainer.policy
            self._sync = SyncByRanks(
                self._rank_sync,
                policy.actors,
                policy.names,
                self._engines,
                whole,
                self._actors.nodes,
            )
            self._engines.attach = self._sync.attach
        return self._engines

    def _of_one(self, recipe: EngineRecipe) -> EngineRecipe:
        """As each process is told of it: it has one engine, however many the run has."""
        engine = self._generator.inference_engine.model_copy(update={"num_engines": 1})
        generator = self._generator.model_copy(update={"inference_engine": engine})
        return recipe.with_sections(engine, generator)

    # --- both --------------------------------------------------------------------------

    def sync_by_ranks(self) -> SyncWeights:
        """See `skyrl_kernel.protocols.SyncsByRanks`."""
        assert self._sync is not None, "trainer and engine were started"
        return self._sync

    def _place(self, apart: Sequence[str] = ()) -> Placement:
        """All devices of the run, reserved together at the first call, which is the trainer's if it has one.

        Args:
            apart: Roles that have devices of their own.
        """
        if self._placement is None:
            placement, engine = self._trainer_config.placement, self._generator.inference_engine
            self._cluster = Cluster(self._num_cpus(needs_of(placement, engine, alone=apart)))
            log.info("ray joined", own=self._cluster.is_own, nodes=len(ray.nodes()))
            gpus = self._config.use_gpus
            if gpus is None:
                gpus = ray.cluster_resources().get("GPU", 0) > 0
                if gpus and placement.colocate_all:
                    _refuse_unforeseen_gpus()
            self._placement = Placement(
                demands(placement, engine, alone=apart, gpus=gpus),
                grows=not self._cluster.is_own,
            )
            log.info("devices reserved")
        return self._placement

    @property
    def _is_here(self) -> bool:
        """Whether Ray is the run's own, and so on this machine alone."""
        return self._cluster is not None and self._cluster.is_own

    def _num_cpus(self, needed: int) -> int:
        """Of a Ray of the run's own: on processors alone, processes may take turns."""
        if self._config.num_cpus is not None:
            return self._config.num_cpus
        return max(os.cpu_count() or 1, needed)

    def measure(self) -> Mapping[str, float]:
        """See `skyrl_kernel.protocols.Measures`: the machines that the run computes on."""
        return {} if self._monitor is None else self._monitor.measure()

    def close(self) -> None:
        """End all processes, and Ray if the run started it."""
        if self._monitor is not None:
            self._monitor.close()
        if self._trainer is not None:
            self._trainer.close()
        self._actors.end()
        if self._placement is not None:
            self._placement.close()
        if self._cluster is not None:
            self._cluster.close()


def _refuse_unforeseen_gpus() -> None:
    """A run was planned by the GPUs of this machine: who shares one has to take turns."""
    if num_gpus() == 0:
        raise CapabilityError(
            "the cluster has GPUs, and this machine, where the run was planned, has none: say "
            "trainer.ray.use_gpus=true, so that trainer and engines take turns on them, or false to "
            "compute on processors"
        )
