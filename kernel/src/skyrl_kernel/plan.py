"""Everything that is decided before anything is made: plugins, config, stages.

`make_plan` reads metadata and config, imports the selected plugins and asks
each slot's hook for its callable. It allocates nothing and writes nothing, so
``--dry-run`` is this and a printout.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from skyrl_kernel.config import (
    Answer,
    Config,
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
from skyrl_kernel.errors import ConfigError, PluginSelectionError
from skyrl_kernel.needs import (
    ASYNC_KEY,
    CONCURRENT,
    ENGINE_KEY,
    SLEEPS,
    engine_needs,
    engine_offers,
    refuse_sleep_while_ahead,
    takes_trainers_gpus,
    trainer_needs,
)
from skyrl_kernel.plugins import (
    Catalog,
    PluginEntry,
    PluginManager,
    Resolved,
    check_capabilities,
    discover,
    missing_places,
)
from skyrl_kernel.plugins.wording import listed
from skyrl_kernel.processes import (
    RUNTIME_KEY,
    is_apart,
    is_elsewhere,
    is_rank_sync,
    process_needs,
    refuse_nearness,
    with_runtime,
)
from skyrl_kernel.refusals import (
    refuse_critic_batches,
    refuse_missing_teacher,
    refuse_several_rows,
    refuse_truncated_sampling,
    refuse_unread_sampling,
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
from skyrl_kernel.transport import (
    SYNC_KEY,
    RankSync,
    refuse_no_adapter,
    run_places,
    with_transport,
)

_NAME_REST = re.compile(r"^([A-Za-z0-9_-]+):[^/\\:].*$")
"""``builtin:tiny`` or ``multiply:train``; not a URL and not a Windows path."""
ANY_ENV = "any_env"
"""Offered by an env plugin that answers for every env that no installed plugin is called."""

REDUCTION_KEY = "trainer.algorithm.loss_reduction"


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A run that was checked but not begun."""

    config: ResolvedConfig
    entries: tuple[PluginEntry, ...]
    """Every selected plugin."""
    manager: PluginManager
    """Has these plugins loaded."""
    stages: Mapping[str, Resolved]
    """Hook → callable, provider and wrappers, in the order of a step."""
    engine_offers: frozenset[str]
    """Capabilities of the plugin that makes the engine."""
    missing: tuple[str, ...] = ()
    """What this machine lacks for the engine or the weight sync; a run with any is refused."""
    rank_sync: RankSync | None = None
    """The weight sync, if the trainer's processes do it; None where it is done here."""
    hands_over_gpu: bool = False
    """Trainer and engine have the same GPUs, one after the other: see `skyrl_kernel.gpu_sharing`."""

    @property
    def engine_sleeps(self) -> bool:
        """Whether the engine sleeps at times: in the trainer's turn, or to have room for weights."""
        return (
            self.hands_over_gpu or self.tree.generator.inference_engine.offload_kv_for_weight_sync
        )

    @property
    def tree(self) -> Config:
        """The kernel's part of the config."""
        return self.config.config

    @property
    def notes(self) -> list[str]:
        """What is doubtful of its plugins, and what was set and has no effect, for the user of a run."""
        names = [one.setting for one in self.config.not_read]
        names += [one.name for one in unread_variables() if one.name.startswith("SKYRL_")]
        unread = [f"not read here: {', '.join(names)}; --dry-run says why"] if names else []
        doubts = [f"{entry}: {text}" for entry in self.entries for text in entry.warnings]
        return [*doubts, *unread, *self.overruled]

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
    layers = with_runtime(layers, catalog)
    apart = is_apart(layers, catalog)
    layers = settle_names(layers, partial(_is_installed, catalog, apart))
    layers = with_transport(layers, catalog, apart=apart)
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
    offers = engine_offers(layers, catalog)
    if asks_engine:
        refuse_truncated_sampling(config, offers)
    holders = {
        slot.key: catalog.find(slot_value(layers, slot.key, slot.default), slot.groups)
        for slot in SLOTS
    }
    check_capabilities(
        entries,
        catalog,
        holders,
        extra_needs={
            **(trainer_needs(config.config) if training else {}),
            **(engine_needs(config, offers, apart=apart) if asks_engine else {}),
        },
    )
    here = run_places(layers, apart=apart)
    if asks_engine:
        refuse_sleep_while_ahead(config, offers)
    refuse_unread_sampling(config, catalog)
    engine = config.config.generator.inference_engine.backend
    missing = missing_places(entries, here)
    if not (apart and is_elsewhere(layers, catalog.named(engine, (BACKENDS, PLUGINS)))):
        missing += manager.ask("check_engine", engine, name=engine, settings=config) or ()
    stages = {
        slot.hook: manager.resolve(slot.hook, name, name=name, settings=config)
        for slot in STAGES
        if (name := slot_value(layers, slot.key, slot.default))
    }
    refuse_no_adapter(config.config, stages)
    sync = stages["sync_weights"].provider
    if apart:
        refuse_nearness(sync, SYNC_KEY, offers)
    colocated = config.config.trainer.placement.colocate_all
    needs = {
        score for stage in stages.values() for score in getattr(stage.value, "needs", frozenset())
    }
    check_capabilities(entries, catalog, holders, process_needs(config.config, needs))
    refuse_missing_teacher(config, needs)
    if training:
        refuse_several_rows(config, stages)
        refuse_critic_batches(config, needs)
        config = _with_idle(
            config, without_effect(layers, needs, partial(_would_read, catalog, layers, stages))
        )
    is_ahead = training and config.config.trainer.max_staleness > 0
    return Plan(
        config=config,
        entries=tuple(entries),
        manager=manager,
        stages=stages,
        engine_offers=offers,
        missing=tuple(missing),
        rank_sync=RankSync.by(sync, colocated=colocated) if apart and is_rank_sync(sync) else None,
        hands_over_gpu=SLEEPS in offers and takes_trainers_gpus(config) and not is_ahead,
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


def _is_installed(catalog: Catalog, apart: bool, key: str, name: str) -> bool:
    """True if a plugin of that name may stand in that key, or does what a switch asks for."""
    if key == ASYNC_KEY:
        return apart or any(
            ENGINE_KEY in one.manifest.slots for one in catalog.offering(CONCURRENT)
        )
    groups = dict([*((slot.key, slot.groups) for slot in SLOTS), *SETS]).get(key, ())
    return bool(catalog.named(name, groups))


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
            entry = catalog.find(name, groups, slot=key)
        except PluginSelectionError as error:
            others = adopters(catalog) if ENVS in groups else ""
            raise PluginSelectionError(f"{key}={name}: {error}{others}") from error
        if not any(entry.group == one.group and entry.name == one.name for one in entries):
            entries.append(entry)

    for slot in SLOTS:
        held = slot_value(layers, slot.key, slot.default)
        add(held, slot.groups, slot.key)
        _refuse_preset(catalog.find(held, slot.groups, slot=slot.key), slot.key)
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
