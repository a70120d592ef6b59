"""What a config asks of trainer and engine, in the words of ``plugin.toml``."""

from collections.abc import Collection

from skyrl_kernel.config import Config, Layers, ResolvedConfig
from skyrl_kernel.config.sources import flatten
from skyrl_kernel.errors import CapabilityError
from skyrl_kernel.place import shares_gpu
from skyrl_kernel.plugins import Catalog
from skyrl_kernel.slots import BACKENDS, PLUGINS

ENGINE_KEY = "generator.inference_engine.backend"
ASYNC_KEY = "trainer.fully_async.enabled"
COLOCATED_KEY = "trainer.placement.colocate_all"
USE_GPUS_KEY = "trainer.ray.use_gpus"
OFFLOAD_KEY = "generator.inference_engine.offload_kv_for_weight_sync"
CONCURRENT = "concurrent_generation"
"""Offered by an engine that generates while the trainer trains."""
FORGETS = "forgets_cache"
"""Offered by an engine that is a `skyrl_kernel.protocols.Forgets`."""
SLEEPS = "sleeps"
"""Offered by an engine that is a `skyrl_kernel.protocols.Sleeps`."""
ADAPTERS = "trains_adapters"
"""Offered by a trainer that reads ``trainer.policy.model.lora`` and that of the critic."""
DIVIDES = "divides_rows"
"""Offered by a trainer whose ranks may each compute a part of every row."""
SERVED = "served"
"""Offered by an engine in a process of its own, so that it may also be attached to by address."""


def engine_offers(layers: Layers, catalog: Catalog) -> frozenset[str]:
    """What the engine that the config names offers; nothing if it is not installed."""
    name = layers.get(ENGINE_KEY)
    found = catalog.named(name, (BACKENDS, PLUGINS)) if isinstance(name, str) else ()
    return frozenset(found[0].manifest.offers if found else ())


def trainer_needs(config: Config) -> dict[str, tuple[str, ...]]:
    """Key → what it asks of the trainer."""
    ranks = {
        "trainer.policy": config.trainer.policy.model.lora.rank,
        "trainer.critic": config.trainer.critic.model.lora.rank,
    }
    needs: dict[str, tuple[str, ...]] = {
        f"{key}.model.lora.rank={rank}": (ADAPTERS,) for key, rank in ranks.items() if rank
    }
    if (parts := config.trainer.policy.sequence_parallel_size) > 1:
        needs[f"trainer.policy.sequence_parallel_size={parts}"] = (DIVIDES,)
    return needs


def engine_needs(
    resolved: ResolvedConfig, offers: Collection[str], *, apart: bool
) -> dict[str, tuple[str, ...]]:
    """Key → what it asks of the engine.

    Args:
        resolved: Config of the run.
        offers: Of the engine. One in the trainer's process has its module or memory, and need not sleep.
        apart: Whether the runtime gives the engine a process of its own.
    """
    config = resolved.config
    engine = config.generator.inference_engine
    needs: dict[str, tuple[str, ...]] = {}
    if config.trainer.max_staleness:
        needs[ASYNC_KEY] = (CONCURRENT,)
    ahead = config.trainer.fully_async
    if ahead.enabled and ahead.clear_kv_cache_on_weight_sync:
        needs["trainer.fully_async.clear_kv_cache_on_weight_sync=true"] = (FORGETS,)
    if not config.trainer.placement.colocate_all and not apart:
        needs[f"{COLOCATED_KEY}=false with trainer.runtime=local"] = (SERVED,)
    if not engine.run_engines_locally:
        needs["generator.inference_engine.run_engines_locally=false"] = (SERVED,)
    if engine.external_server_urls:
        needs["generator.inference_engine.external_server_urls"] = (SERVED,)
    if SERVED in offers and takes_trainers_gpus(resolved):
        needs[f"{COLOCATED_KEY}=true on a GPU"] = (SLEEPS,)
    if engine.offload_kv_for_weight_sync:
        needs[f"{OFFLOAD_KEY}=true"] = (SLEEPS,)
    return needs


def refuse_sleep_while_ahead(resolved: ResolvedConfig, offers: Collection[str]) -> None:
    """An engine that sleeps generates nothing, and its running requests lose what they have cached."""
    config = resolved.config
    if not config.trainer.max_staleness:
        return
    if SERVED in offers and takes_trainers_gpus(resolved):
        raise CapabilityError(
            f"{ASYNC_KEY}=true lets the engine generate while the trainer trains, and with "
            f"{COLOCATED_KEY}=true they take turns on the same GPUs; give the engine its own with "
            f"{COLOCATED_KEY}=false, or leave {ASYNC_KEY} out"
        )
    if config.generator.inference_engine.offload_kv_for_weight_sync:
        raise CapabilityError(
            f"{OFFLOAD_KEY}=true drops the keys and values of all requests at a weight sync, and with "
            f"{ASYNC_KEY}=true some run then; leave one of them out"
        )


def takes_trainers_gpus(resolved: ResolvedConfig) -> bool:
    """Whether an engine with weights of its own is on the trainer's GPUs.

    Of GPUs on other machines this one knows by ``trainer.ray.use_gpus`` alone.
    """
    config = resolved.config
    colocated = config.trainer.placement.colocate_all
    urls = config.generator.inference_engine.external_server_urls or []
    if (said := flatten(resolved.tree).get(USE_GPUS_KEY)) is not None:
        return bool(said) and colocated and not urls
    return shares_gpu(urls, colocated=colocated)
