"""Everything that is decided before anything is made: plugins, config, stages.

`make_plan` reads metadata and config, imports the selected plugins and asks
each slot's hook for its callable. It allocates nothing and writes nothing, so
``--dry-run`` is this and a printout.
"""

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from skyrl_kernel.config import (
    Answer,
    Config,
    GeneratorConfig,
    Layers,
    ResolvedConfig,
    merge_layers,
    resolve_config,
    settle_names,
    unread_variables,
)
from skyrl_kernel.config.compat import shown
from skyrl_kernel.config.idle import without_effect
from skyrl_kernel.config.layers import BEFORE
from skyrl_kernel.config.sources import flatten
from skyrl_kernel.errors import CapabilityError, ConfigError, PluginSelectionError
from skyrl_kernel.place import PLACES, SAME_MACHINE, STARTED_HERE, places, shares_gpu
from skyrl_kernel.plugins import (
    Catalog,
    PluginEntry,
    PluginManager,
    Resolved,
    check_capabilities,
    discover,
)
from skyrl_kernel.plugins.wording import did_you_mean, listed
from skyrl_kernel.processes import (
    PUSHED,
    RUNTIME_KEY,
    is_apart,
    is_elsewhere,
    process_needs,
    refuse_nearness,
    with_runtime,
)
from skyrl_kernel.slots import (
    ALGORITHMS,
    BACKENDS,
    ENVS,
    LOGGERS,
    MODELS,
    PLUGINS,
    SETS,
    SLOTS,
    STAGES,
    SWITCHES,
)

_NAME_REST = re.compile(r"^([A-Za-z0-9_-]+):[^/\\:].*$")
"""``builtin:tiny`` or ``multiply:train``; not a URL and not a Windows path."""
ANY_ENV = "any_env"
"""Offered by an env plugin that answers for every env that no installed plugin is called."""

ENGINE_KEY = "generator.inference_engine.backend"
REDUCTION_KEY = "trainer.algorithm.loss_reduction"
ASYNC_KEY = "trainer.fully_async.enabled"
CONCURRENT = "concurrent_generation"
"""Offered by an engine that generates while the trainer trains."""
FORGETS = "forgets_cache"
"""Offered by an engine that is a `skyrl_kernel.protocols.Forgets`."""
SLEEPS = "sleeps"
"""Offered by an engine that is a `skyrl_kernel.protocols.Sleeps`."""
ADAPTERS = "trains_adapters"
"""Offered by a trainer that reads ``trainer.policy.model.lora`` and that of the critic."""
LENDS_ADAPTER = "lends_adapter"
"""Offered by a trainer that is a `skyrl_kernel.protocols.LendsAdapter`."""
DIVIDES = "divides_rows"
"""Offered by a trainer whose ranks may each compute a part of every row."""
SERVED = "served"
"""Offered by an engine in a process of its own, so that it may also be attached to by address."""
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
COLOCATED_KEY = "trainer.placement.colocate_all"
USE_GPUS_KEY = "trainer.ray.use_gpus"
OFFLOAD_KEY = "generator.inference_engine.offload_kv_for_weight_sync"
SHARES, RECEIVES = "shares_module", "receives_weights"
"""Offered by an engine that computes with the trainer's module, and by one that holds a copy."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A run that was checked but not begun."""

    config: ResolvedConfig
    entries: tuple[PluginEntry, ...]
    """Every selected plugin."""
    manager: PluginManager
    """Has them loaded."""
    stages: Mapping[str, Resolved]
    """Hook → callable, provider and wrappers, in the order of a step."""
    missing: tuple[str, ...] = ()
    """What this machine lacks for the engine; a run with any is refused."""
    takes_turns: bool = False
    """Trainer and engine have the same GPUs, in turns: see `skyrl_kernel.turns`."""

    @property
    def engine_sleeps(self) -> bool:
        """Whether the engine sleeps at times: in the trainer's turn, or to have room for weights."""
        return self.takes_turns or self.tree.generator.inference_engine.offload_kv_for_weight_sync

    @property
    def tree(self) -> Config:
        """The kernel's part of the config."""
        return self.config.config

    @property
    def notes(self) -> list[str]:
        """What was set or asked for and has no effect, for the user of a run."""
        names = [one.setting for one in self.config.not_read]
        names += [one.name for one in unread_variables() if one.name.startswith("SKYRL_")]
        unread = [f"not read here: {', '.join(names)}; --dry-run says why"] if names else []
        return [*unread, *self.overruled]

    @property
    def overruled(self) -> list[str]:
        """What a preset chose in vain, since another plugin was named for the same slot."""
        return [
            f"{key} is that of {origin}, which has no effect there"
            for key, origin in self.config.origins.items()
            if BEFORE in origin
        ]

    def selected(self, name: str, group: str) -> bool:
        """True if a plugin of that name and group is selected."""
        return any(entry.name == name and entry.group == group for entry in self.entries)

    def adopts(self, name: str) -> bool:
        """True if a selected plugin answers for an env that no installed plugin is called."""
        return _adopts(self.entries, self.manager.catalog, name)


def make_plan(
    plugins: Sequence[str],
    files: Iterable[Path] = (),
    overrides: Iterable[str] = (),
    *,
    training: bool = True,
    allow_not_yet: bool = False,
) -> Plan:
    """Decide everything about a run.

    Args:
        plugins: ``--plugin`` names, in order; each applies its preset.
        files: ``--config`` files.
        overrides: ``key=value`` words.
        training: False where only generation and evaluation are meant.
        allow_not_yet: Plan without what SkyRL has and this project not yet; the plan's
            config says what that is.

    Raises:
        UsageError: What was asked cannot be done; says why and what to do.
    """
    catalog = discover()
    named = [catalog.find(name) for name in plugins]
    layers = merge_layers(
        [(entry.name, entry.manifest.preset) for entry in named],
        files,
        overrides,
        slots={entry.name: entry.manifest.slots for entry in named},
    )
    layers = _with_env(_with_loggers(layers, named), named)
    layers = settle_names(
        layers, partial(_is_installed, catalog, _places(layers), is_apart(layers, catalog))
    )
    layers = with_runtime(layers)
    apart = is_apart(layers, catalog)
    layers = _with_transport(layers, catalog, apart=apart)
    entries = _select(catalog, layers, named)
    manager = PluginManager(catalog)
    manager.load(entries, order=[entry.qualified for entry in named])
    selected = {(entry.group, entry.name) for entry in entries}
    unselected = {
        path: entry.name
        for entry in catalog
        if (entry.group, entry.name) not in selected
        for path in entry.manifest.config
    }
    sections = manager.sections()
    config = resolve_config(
        layers,
        sections,
        {path: name for path, name in unselected.items() if path not in sections},
        allow_not_yet=allow_not_yet,
    )
    # Of an engine that another one stands in for, nobody can say yet what it offers.
    asks_engine = training and not any(one.name == ENGINE_KEY for one in layers.replaced)
    if asks_engine:
        _refuse_truncated_sampling(config, entries)
    offers = _engine_offers(layers, catalog)
    check_capabilities(
        entries,
        catalog,
        extra_needs={
            **(_trainer_needs(config.config) if training else {}),
            **(_engine_needs(config, offers, apart=apart) if asks_engine else {}),
            **process_needs(config.config),
        },
        places=_places(layers),
    )
    if asks_engine:
        _refuse_sleep_while_ahead(config, offers)
    _refuse_unread_sampling(config, catalog)
    engine = config.config.generator.inference_engine.backend
    missing: tuple[str, ...] = ()
    if not (apart and is_elsewhere(layers, catalog.named(engine, (BACKENDS, PLUGINS)))):
        missing = tuple(manager.ask("check_engine", engine, name=engine, settings=config) or ())
    stages = {
        slot.hook: manager.resolve(slot.hook, name, name=name, settings=config)
        for slot in STAGES
        if (name := slot_value(layers, slot.key, slot.default))
    }
    _refuse_no_adapter(config.config, stages)
    if apart:
        refuse_nearness(stages["sync_weights"].provider, SYNC_KEY)
    needs = {
        score for stage in stages.values() for score in getattr(stage.value, "needs", frozenset())
    }
    _refuse_missing_teacher(config, needs)
    if training:
        _refuse_several_rows(config, stages)
        _refuse_critic_batches(config, needs)
        config = _with_idle(
            config, without_effect(layers, needs, partial(_would_read, catalog, layers, stages))
        )
    is_ahead = training and config.config.trainer.max_staleness > 0
    return Plan(
        config=config,
        entries=tuple(entries),
        manager=manager,
        stages=stages,
        missing=missing,
        takes_turns=SLEEPS in offers and _shares_gpu(config) and not is_ahead,
    )


def _would_read(
    catalog: Catalog, layers: Layers, stages: Mapping[str, Resolved], key: str
) -> str | None:
    """Who would read a key that only some plugins read, if none of those that take part does."""
    able = [entry for entry in catalog if entry.manifest.is_reader(key)]
    engine = catalog.named(slot_value(layers, ENGINE_KEY, None), (BACKENDS, PLUGINS))
    reduction = slot_value(layers, REDUCTION_KEY, None)
    parts = [
        *(one for stage in stages.values() for one in (stage.provider, *stage.wrappers)),
        *catalog.named(reduction, (ALGORITHMS, PLUGINS)),
        *catalog.named(slot_value(layers, RUNTIME_KEY, None), (PLUGINS,)),
        *engine,
    ]
    of_engine = key.startswith("generator.")
    decide = engine if of_engine else [stages[hook].provider for hook in ("advantage", "loss")]
    is_open = any(entry.manifest.reads is None for entry in decide)
    if not able or is_open or any(part.manifest.is_reader(key) for part in parts):
        return None
    return f"read by {listed([one.name for one in able])}"


def _with_idle(config: ResolvedConfig, idle: Iterable[Answer]) -> ResolvedConfig:
    """Settings that change nothing in this run are among those that are not read."""
    answered = {answer.name for answer in (*config.not_read, *config.not_yet)}
    more = [answer for answer in idle if answer.name not in answered]
    return replace(config, not_read=(*config.not_read, *more))


def _engine_offers(layers: Layers, catalog: Catalog) -> frozenset[str]:
    name = layers.get(ENGINE_KEY)
    found = catalog.named(name, (BACKENDS, PLUGINS)) if isinstance(name, str) else ()
    return frozenset(offer for entry in found for offer in entry.manifest.offers)


def _shares_gpu(resolved: ResolvedConfig) -> bool:
    """Whether an engine with weights of its own is on the trainer's GPUs.

    Of GPUs on other machines this one knows by ``trainer.ray.use_gpus`` alone.
    """
    config = resolved.config
    colocated = config.trainer.placement.colocate_all
    urls = config.generator.inference_engine.external_server_urls or []
    if (said := flatten(resolved.tree).get(USE_GPUS_KEY)) is not None:
        return bool(said) and colocated and not urls
    return shares_gpu(urls, colocated=colocated)


def _refuse_sleep_while_ahead(resolved: ResolvedConfig, offers: Collection[str]) -> None:
    """An engine that sleeps generates nothing, and its running requests lose what they have cached."""
    config = resolved.config
    if not config.trainer.max_staleness:
        return
    if SERVED in offers and _shares_gpu(resolved):
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


def _trainer_needs(config: Config) -> dict[str, tuple[str, ...]]:
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


def _engine_needs(
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
        needs["trainer.placement.colocate_all=false"] = (SERVED,)
    if not engine.run_engines_locally:
        needs["generator.inference_engine.run_engines_locally=false"] = (SERVED,)
    if engine.external_server_urls:
        needs["generator.inference_engine.external_server_urls"] = (SERVED,)
    if SERVED in offers and _shares_gpu(resolved):
        needs[f"{COLOCATED_KEY}=true on a GPU"] = (SLEEPS,)
    if engine.offload_kv_for_weight_sync:
        needs[f"{OFFLOAD_KEY}=true"] = (SLEEPS,)
    return needs


def slot_value(layers: Layers, key: str, default: str | None) -> str:
    """The name that a slot holds."""
    value = layers.get(key)
    if value is None or value == "auto":
        value = default
    if not isinstance(value, str):
        raise ConfigError(f"{key}={shown(value)} names no implementation; it must be a name")
    return value


def _names(layers: Layers, key: str) -> list[str]:
    """The names that a key of `SETS` holds."""
    value = layers.get(key)
    if isinstance(value, dict):  # which `resolve_config` refuses
        return []
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        several = "a name or a list of names, [] for none" if key == "trainer.logger" else "a name"
        raise ConfigError(f"{key}={shown(value)} ({layers.origins[key]}): it must be {several}")
    return names


def named_source(text: str) -> str | None:
    """NAME of ``NAME:REST``, or None for paths and hub names.

    Example:
        >>> named_source("builtin:tiny"), named_source("Qwen/Qwen3-0.6B"), named_source("https://x")
        ('builtin', None, None)
    """
    match = _NAME_REST.match(text)
    return match.group(1) if match and not Path(text).expanduser().exists() else None


def _is_installed(catalog: Catalog, here: frozenset[str], apart: bool, key: str, name: str) -> bool:
    """True if a plugin of that name may stand in that key in this place, or does what a switch asks for."""
    if key == ASYNC_KEY:
        return apart or any(
            ENGINE_KEY in one.manifest.slots for one in catalog.offering(CONCURRENT)
        )
    groups = dict([*((slot.key, slot.groups) for slot in SLOTS), *SETS]).get(key, ())
    away = {*PLACES} - here
    return any(not away & {*entry.manifest.needs} for entry in catalog.named(name, groups))


def _with_loggers(layers: Layers, named: Sequence[PluginEntry]) -> Layers:
    """``--plugin`` adds its loggers to those of ``trainer.logger``."""
    extra = [entry.name for entry in named if entry.group == LOGGERS]
    if not extra:
        return layers
    present = _names(layers, "trainer.logger")
    merged = [*present, *(name for name in extra if name not in present)]
    origin = layers.origins.get("trainer.logger", "default")
    return Layers(
        {**layers.values, "trainer.logger": merged},
        {**layers.origins, "trainer.logger": f"{origin} and --plugin"},
    )


def _with_transport(layers: Layers, catalog: Catalog, *, apart: bool) -> Layers:
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
    offers = _engine_offers(layers, catalog)
    if RECEIVES not in offers or (SHARES in offers and not apart):
        return layers
    here = (_places(layers) & {SAME_MACHINE, STARTED_HERE}) | _lent(layers, catalog)
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


def _refuse_no_adapter(config: Config, stages: Mapping[str, Resolved]) -> None:
    """What brings the adapter alone brings nothing where all weights are trained."""
    sync = stages["sync_weights"].provider
    if LENDS_ADAPTER in sync.manifest.needs and not config.trainer.policy.model.lora.rank:
        raise ConfigError(
            f"{SYNC_KEY}={sync.name} brings the policy's adapter to the engine, and {RANK_KEY}=0 trains all "
            f"weights; use {SYNC_KEY}=auto, or train an adapter"
        )


def _places(layers: Layers) -> frozenset[str]:
    """Where trainer and engine of this run are."""
    urls = layers.get(ADDRESSES_KEY)
    return places(
        [str(url) for url in urls] if isinstance(urls, list) else [],
        colocated=bool(layers.get(COLOCATED_KEY)),
        devices=math.prod(
            value for key in DEVICE_KEYS if isinstance(value := layers.get(key), int) and value > 0
        ),
    )


def _with_env(layers: Layers, named: Sequence[PluginEntry]) -> Layers:
    """The only env that ``--plugin`` names judges the rows that name none."""
    key = "environment.env_class"
    envs = [entry.name for entry in named if entry.group == ENVS]
    if len(envs) != 1 or key in layers.values:
        return layers
    return Layers({**layers.values, key: envs[0]}, {**layers.origins, key: f"--plugin {envs[0]}"})


def _select(catalog: Catalog, layers: Layers, named: Sequence[PluginEntry]) -> list[PluginEntry]:
    """The plugins that ``--plugin``, slots, sets, switches, models and data sets ask for."""
    entries = list(named)

    def add(name: str, groups: Sequence[str], key: str) -> None:
        try:
            entry = catalog.find(name, groups)
        except PluginSelectionError as error:
            others = adopters(catalog) if ENVS in groups else ""
            raise PluginSelectionError(f"{key}={name}: {error}{others}") from error
        if not any(entry.group == one.group and entry.name == one.name for one in entries):
            entries.append(entry)

    for slot in SLOTS:
        held = slot_value(layers, slot.key, slot.default)
        add(held, slot.groups, slot.key)
        _refuse_preset(catalog.find(held, slot.groups), slot.key)
    for key, groups in SETS:
        for one in _names(layers, key):
            if ENVS in groups and _adopts(entries, catalog, one):
                continue
            if key in layers.values or catalog.named(one, groups):
                add(one, groups, key)
    for key, switched, groups in SWITCHES:
        if layers.get(key):
            add(switched, groups, key)
    for key in MODELS.values():
        name = named_source(str(layers.get(key) or ""))
        if name is not None:
            add(name, (PLUGINS, BACKENDS), key)
    for key in ("data.train_data", "data.val_data"):
        value = layers.get(key)
        for source in value if isinstance(value, list) else []:
            name = named_source(str(source))
            if name is not None and catalog.named(name, (ENVS, PLUGINS)):
                add(name, (ENVS, PLUGINS), key)
    return entries


def _refuse_preset(entry: PluginEntry, key: str) -> None:
    """The name of a combination is not the name of the part that it chooses for a slot."""
    if key not in entry.manifest.slots and key in entry.manifest.preset:
        value = shown(entry.manifest.preset[key])
        raise PluginSelectionError(
            f"{key}={entry.name}: '{entry.name}' is no name for this key but a preset, which sets it to "
            f"{value}; use --plugin {entry.name} for all that it sets, or {key}={value} for this alone"
        )


def adopters(catalog: Catalog) -> str:
    """What could answer for an env that no installed plugin is called, as the end of a message."""
    return "".join(
        f" Envs that are written for another package are run by --plugin {entry.name}."
        for entry in catalog.offering(ANY_ENV)
    )


def _adopts(entries: Iterable[PluginEntry], catalog: Catalog, name: str) -> bool:
    return any(ANY_ENV in entry.manifest.offers for entry in entries) and not any(
        entry.group == ENVS and name in {entry.name, entry.qualified} for entry in catalog
    )


def _refuse_truncated_sampling(config: ResolvedConfig, entries: Sequence[PluginEntry]) -> None:
    """Log-probs of truncated sampling need the support that was sampled from."""
    sampling = config[GeneratorConfig].sampling_params
    truncated = [
        name
        for name, is_so in (
            ("top_p", sampling.top_p < 1),
            ("top_k", sampling.top_k > 0),
            ("min_p", sampling.min_p > 0),
        )
        if is_so
    ]
    if truncated and not any("sampling_support" in entry.manifest.offers for entry in entries):
        raise ConfigError(
            f"generator.sampling_params.{truncated[0]} truncates what is sampled in training, so the "
            "trainer's log-probs would be of another distribution than the sampler's; leave "
            "top_p=1, top_k=-1, min_p=0 in training (evaluation may truncate), or use an engine "
            "that offers 'sampling_support'"
        )


def _refuse_unread_sampling(config: ResolvedConfig, catalog: Catalog) -> None:
    """An engine may drop what it does not know without a word, so its plugin names what it takes."""
    generator = config[GeneratorConfig]
    name = generator.inference_engine.backend
    for entry in catalog.named(name, (BACKENDS, PLUGINS)):
        for section in _SAMPLING:
            known = _taken(entry, section)
            for key in getattr(generator, section).additional_kwargs or {}:
                if key not in ("stop_token_ids", *known) and entry.manifest.reads is not None:
                    raise ConfigError(_unread_sampling(entry, section, key))


_SAMPLING = TRAINING, EVALUATION = "sampling_params", "eval_sampling_params"


def _taken(entry: PluginEntry, section: str) -> list[str]:
    """Names in ``additional_kwargs`` that an engine reads."""
    start = f"generator.{section}.additional_kwargs."
    return [one.removeprefix(start) for one in entry.manifest.reads or () if one.startswith(start)]


def _unread_sampling(entry: PluginEntry, section: str, key: str) -> str:
    name = f"generator.{section}.additional_kwargs.{key}"
    if key in _taken(entry, EVALUATION):
        return (
            f"{name} changes what is sampled, so the trainer's log-probs would be of another "
            f"distribution than the sampler's; leave it out (generator.{EVALUATION} may have it)"
        )
    known = ("stop_token_ids", *_taken(entry, section))
    return (
        f"{name}: the engine '{entry.name}' does not take it.{did_you_mean(key, known)} "
        f"It takes {listed(known)}, and what the other sampling keys say"
    )


def _refuse_missing_teacher(config: ResolvedConfig, needs: Collection[str]) -> None:
    """Every other model is the policy unless it is named."""
    if "teacher_logprobs" in needs and config.config.trainer.teacher.model.path is None:
        raise ConfigError(
            "there is no teacher to learn from: trainer.teacher.model.path is not set; name a model "
            "that has the policy's tokenizer"
        )


def _refuse_critic_batches(config: ResolvedConfig, needs: Collection[str]) -> None:
    """Policy and critic step on the same mini-batches; without a critic the key means nothing."""
    trainer = config.config.trainer
    own, policy = trainer.critic_mini_batch_size, trainer.policy_mini_batch_size
    if "values" in needs and own not in (None, policy):
        raise ConfigError(
            f"trainer.critic_mini_batch_size={own} is not trainer.policy_mini_batch_size={policy}; policy "
            "and critic step on the same mini-batches, so set both to the same number or leave the "
            "critic's out"
        )


def _refuse_several_rows(config: ResolvedConfig, stages: Mapping[str, Resolved]) -> None:
    """Credit that flows along a row cannot reach another one."""
    advantage = stages["advantage"]
    if config[GeneratorConfig].step_wise_trajectories and advantage.value.needs_one_row:
        raise CapabilityError(
            "generator.step_wise_trajectories=true makes a token row of each turn, and "
            f"{advantage.provider} (trainer.algorithm.advantage_estimator) credits tokens along one "
            "row; leave it out, or use an estimator that credits whole trajectories, such as grpo"
        )
