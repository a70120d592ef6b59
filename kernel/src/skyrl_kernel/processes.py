"""Whether trainer and engine are in one process, and what that asks of a run's plugins."""

import math
from collections.abc import Callable, Collection, Iterator, Sequence

from skyrl_kernel.config import Config, Layers
from skyrl_kernel.config.trainer import PlacementConfig
from skyrl_kernel.errors import CapabilityError
from skyrl_kernel.needs import COLOCATED_KEY, SERVED
from skyrl_kernel.plugins import Catalog, PluginEntry
from skyrl_kernel.slots import PLUGINS, STAGES

RUNTIME_KEY = "trainer.runtime"
APART = "separate_processes"
"""Offered by a runtime that gives trainer and engines processes of their own."""
CRITIC = "trains_values"
"""Needed by a stage that has a critic trained, and offered by a trainer that can."""
SEVERAL_RANKS = "several_ranks"
"""Offered by a trainer that is a `skyrl_kernel.protocols.Ranked`."""
PUSHED = frozenset({"receives_weights"})
"""All that a weight sync may need that goes through the engine's own update, wherever that is."""
ENGINE_ENV = "trainer.ray.engine_env"
"""Environment of engines, in Ray's words."""
ALONE = {"value": "critic", "reference": "ref"}
"""Role that may have processes of its own → its name in keys."""
ROLE_LABELS = {"value": "critic", "reference": "reference"}
"""The same role → what messages call it."""
_SCORES = {"value": "values", "reference": "ref_logprobs"}
"""The same role → what stages ask of it."""
_KL_KEYS = ("trainer.algorithm.use_kl_loss", "trainer.algorithm.use_kl_in_reward")
_PLACEMENT = "trainer.placement"


def with_runtime(layers: Layers, catalog: Catalog) -> Layers:
    """``auto`` is this process, unless the run's models ask for more than one."""
    if layers.get(RUNTIME_KEY) != "auto":
        return layers
    why = _asks_for_processes(layers, catalog)
    name = "ray" if why else "local"
    origin = f"auto, for {why}" if why else "auto, for one process"
    return Layers(
        {**layers.values, RUNTIME_KEY: name},
        {**layers.origins, RUNTIME_KEY: origin},
        layers.replaced,
    )


def _asks_for_processes(layers: Layers, catalog: Catalog) -> str:
    """What one process could not do; empty if there is nothing."""
    for key in (f"{_PLACEMENT}.policy_num_nodes", f"{_PLACEMENT}.policy_num_gpus_per_node"):
        value = layers.get(key)
        if isinstance(value, int) and value > 1:
            return f"{key}={value}"
    models = _models_beside(layers, catalog)
    for role in _alone(lambda key: bool(layers.asked(f"{_PLACEMENT}.{key}"))):
        if role in models:
            return f"a {ROLE_LABELS[role]} of its own, {COLOCATED_KEY}=false"
    return ""


def _models_beside(layers: Layers, catalog: Catalog) -> set[str]:
    """Roles of `ALONE` that the run has, as far as plugins and switches say before they are imported."""
    found = {"reference"} if any(layers.asked(key) is True for key in _KL_KEYS) else set()
    chosen = [
        entry for slot in STAGES for entry in catalog.named(str(layers.get(slot.key)), slot.groups)
    ]
    return found | ({"value"} if any(CRITIC in entry.manifest.needs for entry in chosen) else set())


def alone(placement: PlacementConfig) -> list[str]:
    """Roles of `ALONE` that have processes of their own, in a run that has them and a runtime that is apart."""
    return list(_alone(lambda key: bool(getattr(placement, key))))


def ranks_of(placement: PlacementConfig, name: str) -> tuple[int, int]:
    """Nodes, and processes of each, of ``policy``, ``critic`` or ``ref``."""
    return {
        "policy": (placement.policy_num_nodes, placement.policy_num_gpus_per_node),
        "critic": (placement.critic_num_nodes, placement.critic_num_gpus_per_node),
        "ref": (placement.ref_num_nodes, placement.ref_num_gpus_per_node),
    }[name]


def _alone(is_set: Callable[[str], bool]) -> Iterator[str]:
    if not is_set("colocate_all"):
        yield "value"
        if not is_set("colocate_policy_ref"):
            yield "reference"


def is_apart(layers: Layers, catalog: Catalog) -> bool:
    """True if the runtime puts trainer and engines into processes of their own."""
    found = catalog.named(str(layers.get(RUNTIME_KEY)), (PLUGINS,))
    return any(APART in entry.manifest.offers for entry in found)


def is_elsewhere(layers: Layers, engine: Sequence[PluginEntry]) -> bool:
    """True if the engine's processes have an environment of their own, so that this one tells nothing.

    Args:
        layers: Of a run whose runtime is apart.
        engine: The plugin that its slot names.
    """
    set_by_user = any(key.startswith(ENGINE_ENV) and value for key, value in layers.values.items())
    return set_by_user or any(entry.manifest.runtime_env for entry in engine)


def process_needs(config: Config, needs: Collection[str]) -> dict[str, tuple[str, ...]]:
    """What placement asks of the trainer and the runtime: key → capabilities.

    Args:
        config: Of the run.
        needs: Scores that its stages ask for.
    """
    placement = config.trainer.placement
    roles = ["policy", *(ALONE[role] for role in alone(placement) if _SCORES[role] in needs)]
    ranks = {role: math.prod(ranks_of(placement, role)) for role in roles}
    return {
        f"{_PLACEMENT}.{role}_num_nodes × {role}_num_gpus_per_node = {number} ranks": (
            APART,
            SEVERAL_RANKS,
        )
        for role, number in ranks.items()
        if number > 1
    }


def is_rank_sync(sync: PluginEntry) -> bool:
    """Whether a weight sync reaches for more of trainer or engine than the engine's own update.

    In a run whose runtime is apart it then runs in the trainer's processes.

    Args:
        sync: Provider of the stage `sync_weights`.
    """
    return not {*sync.manifest.needs} <= PUSHED


def refuse_nearness(sync: PluginEntry, key: str, engine: Collection[str]) -> None:
    """The trainer's processes reach engines by address, or not at all.

    Args:
        sync: Provider of the stage `sync_weights`, in a run whose runtime is apart.
        key: Its slot.
        engine: What the engine offers.

    Raises:
        CapabilityError: It needs a trainer and an engine in one process.
    """
    if is_rank_sync(sync) and SERVED not in engine:
        more = [need for need in sync.manifest.needs if need not in PUSHED]
        raise CapabilityError(
            f"{key}={sync.name} needs {', '.join(more)}: a trainer and an engine in one process, and "
            f"{RUNTIME_KEY}=ray gives each a process of its own; use {key}=auto, which pushes the weights "
            "through Ray's memory"
        )
