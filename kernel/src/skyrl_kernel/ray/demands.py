"""Which devices a run asks for: SkyRL's layouts, on GPUs or, with the same shape, on processors.

======================  ==========================================================================
``colocate_all=true``   each of the policy's devices has a rank, which holds all roles, and an engine
``colocate_all=false``  ranks have devices of their own, and so have engines and the critic; the
                        reference is with the policy, or with ``colocate_policy_ref=false`` on devices
                        of its own
======================  ==========================================================================
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from skyrl_kernel.config import InferenceEngineConfig
from skyrl_kernel.config.generator import NO_ENGINE
from skyrl_kernel.config.trainer import PlacementConfig
from skyrl_kernel.processes import ALONE, ranks_of

POLICY, ENGINES = "policy", "engines"


@dataclass(frozen=True, kw_only=True, slots=True)
class Demand:
    """Devices that are given out together."""

    name: str
    """`POLICY`, `ENGINES`, or of a role in `ALONE`."""
    bundles: tuple[Mapping[str, float], ...]
    """Resources of each device."""
    strategy: str
    """Ray's: ``STRICT_PACK`` is one node."""
    why: str
    """The keys that ask for them."""
    nodes: int | None = None
    """On how many nodes they are meant to be, as many on each; None if that is all the same."""


def demands(
    config: PlacementConfig,
    engine: InferenceEngineConfig,
    *,
    alone: Collection[str],
    gpus: bool,
) -> list[Demand]:
    """All devices of a run.

    Args:
        config: ``trainer.placement``.
        engine: ``generator.inference_engine``.
        alone: Roles of the run that have devices of their own.
        gpus: Whether a device is a GPU.
    """
    names = [POLICY, *(ALONE[role] for role in alone)]
    found = [_of_role(name, config, gpus) for name in names]
    starts = engine.backend != NO_ENGINE and not engine.external_server_urls
    if starts and not config.colocate_all:
        size = (
            engine.tensor_parallel_size * engine.pipeline_parallel_size * engine.data_parallel_size
        )
        bundle = {"GPU": float(size), "CPU": 1.0} if gpus else {"CPU": 1.0}
        found.append(
            Demand(
                name=ENGINES,
                bundles=(bundle,) * engine.num_engines,
                strategy="PACK",
                why="generator.inference_engine.num_engines × tensor × pipeline × data parallel size",
            )
        )
    return found


def _of_role(name: str, config: PlacementConfig, gpus: bool) -> Demand:
    bundle = {"GPU": 1.0, "CPU": 1.0} if gpus else {"CPU": 1.0}
    key = f"trainer.placement.{name}_"
    nodes, per_node = ranks_of(config, name)
    return Demand(
        name=name,
        bundles=(bundle,) * (nodes * per_node),
        strategy="STRICT_PACK" if nodes == 1 else "PACK",
        nodes=nodes,
        why=f"{key}num_nodes={nodes} × {key}num_gpus_per_node={per_node}",
    )


def needs_of(
    config: PlacementConfig, engine: InferenceEngineConfig, *, alone: Collection[str]
) -> int:
    """Processors that all devices of a run have together, where a device is one."""
    wanted = demands(config, engine, alone=alone, gpus=False)
    return sum(len(demand.bundles) for demand in wanted)
