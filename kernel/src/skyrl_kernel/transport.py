"""Which weight sync a run has: what ``weight_sync_backend=auto`` takes, and from among what."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from skyrl_kernel.config import Config, Layers
from skyrl_kernel.errors import ConfigError
from skyrl_kernel.needs import COLOCATED_KEY, ENGINE_KEY, USE_GPUS_KEY, engine_offers
from skyrl_kernel.place import GPUS, SAME_GPU, SAME_MACHINE, STARTED_HERE, places
from skyrl_kernel.plugins import Catalog, PluginEntry, Resolved
from skyrl_kernel.processes import PUSHED
from skyrl_kernel.slots import BACKENDS, PLUGINS

STRATEGY_KEY = "trainer.strategy"
RANK_KEY = "trainer.policy.model.lora.rank"
SYNC_KEY = "generator.inference_engine.weight_sync_backend"
ADDRESSES_KEY = "generator.inference_engine.external_server_urls"
DEVICE_KEYS = tuple(
    f"generator.inference_engine.{name}"
    for name in (
        "num_engines",
        "tensor_parallel_size",
        "pipeline_parallel_size",
        "data_parallel_size",
    )
)
LENDS_ADAPTER = "lends_adapter"
"""Offered by a trainer that is a `skyrl_kernel.protocols.LendsAdapter`."""
SHARES, RECEIVES = "shares_module", "receives_weights"
"""Offered by an engine that computes with the trainer's module, and by one that holds a copy."""


def with_transport(layers: Layers, catalog: Catalog, *, apart: bool) -> Layers:
    """``auto`` shares memory with an engine that can, or takes the best transport to it.

    Where trainer and engine are apart, that is what needs nothing but the engine's own update.

    Among those that trainer, engine and place allow: first what brings the adapter alone, where
    one is trained, then what needs both on one machine, then what needs most, which is made for
    this engine; the engine's own distribution before others.
    Those between GPUs have not run on one yet: they are taken by name only.
    """
    if layers.get(SYNC_KEY) not in (None, "auto"):
        return layers
    name = layers.get(ENGINE_KEY)
    found = catalog.named(name, (BACKENDS, PLUGINS)) if isinstance(name, str) else ()
    offers = engine_offers(layers, catalog)
    if RECEIVES not in offers or (SHARES in offers and not apart):
        return layers
    here = (run_places(layers, apart=apart) & {SAME_MACHINE, STARTED_HERE}) | _lent(layers, catalog)
    able = [
        entry
        for entry in catalog
        if SYNC_KEY in entry.manifest.slots
        and offers & {*entry.manifest.needs}
        and (PUSHED if apart else offers | here) >= {*entry.manifest.needs}
    ]

    def rank(entry: PluginEntry) -> tuple[bool, bool, int, bool, str]:
        needs = entry.manifest.needs
        is_foreign = all(entry.distribution != one.distribution for one in found)
        nearest = LENDS_ADAPTER not in needs, SAME_MACHINE not in needs
        return *nearest, -len(needs), is_foreign, entry.name

    best = min(able, key=rank).name
    origin = f"auto, for the engine '{name}'"
    return Layers(
        {**layers.values, SYNC_KEY: best}, {**layers.origins, SYNC_KEY: origin}, layers.replaced
    )


def _lent(layers: Layers, catalog: Catalog) -> frozenset[str]:
    """What a weight sync may be given of the trainer apart from its weights: the adapter, if it trains one."""
    trainer = catalog.named(str(layers.get(STRATEGY_KEY)), (BACKENDS,))
    is_lent = any(LENDS_ADAPTER in entry.manifest.offers for entry in trainer)
    return frozenset({LENDS_ADAPTER} if is_lent and layers.get(RANK_KEY) else ())


def refuse_no_adapter(config: Config, stages: Mapping[str, Resolved]) -> None:
    """What brings the adapter alone brings nothing where all weights are trained."""
    sync = stages["sync_weights"].provider
    if LENDS_ADAPTER in sync.manifest.needs and not config.trainer.policy.model.lora.rank:
        raise ConfigError(
            f"{SYNC_KEY}={sync.name} brings the policy's adapter to the engine, and {RANK_KEY}=0 trains all "
            f"weights; use {SYNC_KEY}=auto, or train an adapter"
        )


def run_places(layers: Layers, *, apart: bool) -> frozenset[str]:
    """Where trainer and engine of this run are.

    Args:
        layers: What was set.
        apart: Whether each has processes of its own: then an engine has a rank to itself, and the
            machine with the GPUs may be another.
    """
    urls = layers.get(ADDRESSES_KEY)
    has_gpus = layers.get(USE_GPUS_KEY) if apart else None
    return places(
        [str(url) for url in urls] if isinstance(urls, list) else [],
        colocated=bool(layers.get(COLOCATED_KEY)),
        devices=math.prod(
            value
            for key in (DEVICE_KEYS[1:] if apart else DEVICE_KEYS)
            if isinstance(value := layers.get(key), int) and value > 0
        ),
        gpus=None if has_gpus is None else _SEVERAL * bool(has_gpus),
    )


_SEVERAL = 2
"""GPUs of a cluster, where it is only known that it has some."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RankSync:
    """A weight sync that the trainer's ranks do, attached to servers, and not the controller.

    Ranks that send nothing iterate over `Trainer.weights` all the same: to gather is collective.
    """

    name: str
    """What its slot holds."""
    by_each: bool
    """Whether each rank brings its weights to the engine on its own device, or the first one to all."""
    is_adapter: bool
    """Whether the adapter alone is brought."""

    @classmethod
    def by(cls, sync: PluginEntry, *, colocated: bool) -> Self:
        """Of the stage's provider.

        Args:
            sync: The plugin that the slot names.
            colocated: Whether a rank and an engine share a device. Between GPUs there is no group of
                two on one, and its memory is no other process's.
        """
        needs = {*sync.manifest.needs}
        return cls(
            name=sync.name,
            by_each=SAME_GPU in needs or (colocated and GPUS in needs),
            is_adapter=LENDS_ADAPTER in needs,
        )
