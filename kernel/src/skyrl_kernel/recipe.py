"""How a trainer and an engine are made: in this process, or in one that gets nothing but the recipe.

A recipe holds names, settings and absolute paths, and no object that a plugin made, so that it can be
pickled. What it is unpickled in loads the plugins of its lock and asks them the same questions.
"""

import pickle
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import BaseModel

from skyrl_kernel.config import GeneratorConfig, ResolvedConfig
from skyrl_kernel.plugins import (
    Catalog,
    Lock,
    PluginEntry,
    PluginManager,
    locked_entries,
    plugin_lock,
)
from skyrl_kernel.plugins.discovery import KERNEL, installed_version
from skyrl_kernel.protocols import Engine, Loss, Section, Settings, SyncWeights, Trainer
from skyrl_kernel.slots import MAKERS
from skyrl_kernel.transport import RankSync

if TYPE_CHECKING:
    from skyrl_kernel.plan import Plan

_VARIABLES = "env_vars"
"""Of Ray's ``runtime_env``."""


class PortableSettings:
    """The config sections of a run, each pickled by itself.

    A process reads those that its plugins ask for, and so needs no package but theirs.

    Args:
        config: Of the run.
        changed: Sections that are another in this process.
    """

    def __init__(self, config: ResolvedConfig, changed: Iterable[BaseModel] = ()) -> None:
        sections = {**config.sections, **{type(one): one for one in changed}}
        self._pickled = {_name(cls): pickle.dumps(one) for cls, one in sections.items()}
        self._read: dict[str, BaseModel] = {}

    def __getitem__(self, section: type[Section]) -> Section:
        """The section of that class; see `skyrl_kernel.protocols.Settings`."""
        name = _name(section)
        if name not in self._read:
            if name not in self._pickled:
                raise KeyError(
                    f"no config section {section.__name__} in this run: the plugin that owns it "
                    f"({section.__module__.split('.')[0]}) is not selected"
                )
            self._read[name] = pickle.loads(self._pickled[name])  # written by this run
        found = self._read[name]
        assert isinstance(found, section)
        return found


def _name(section: type[BaseModel]) -> str:
    return f"{section.__module__}.{section.__qualname__}"


@dataclass(kw_only=True)
class Recipe:
    """What both recipes have: who is asked, and who else must be loaded."""

    name: str
    """Of the plugin that makes it."""
    lock: Lock
    """The plugins that its process loads."""
    order: tuple[str, ...]
    """``kind/NAME`` of each, in call order."""
    settings: Settings
    offers: frozenset[str]
    """Capabilities of the plugin that makes it."""
    runtime_env: Mapping[str, Any]
    """Ray's, that this plugin asks for: an environment of its own."""
    process: str = "controller"
    """Which process makes it, for errors of plugins."""
    _manager: PluginManager | None = field(default=None, repr=False)

    @property
    def manager(self) -> PluginManager:
        """Has the plugins loaded: at the first use, in a process that unpickled the recipe."""
        if self._manager is None:
            entries = locked_entries(self.lock)
            version = installed_version(KERNEL) or "unknown"
            catalog = Catalog(entries=tuple(entries), kernel_version=version)
            self._manager = PluginManager(catalog, self.process)
            self._manager.load(entries, order=self.order)
        return self._manager

    def with_sections(self, *changed: BaseModel) -> Self:
        """The same, for a process in which these config sections are others."""
        assert isinstance(self.settings, ResolvedConfig), "of a plan"
        return replace(self, settings=PortableSettings(self.settings, changed))

    def __getstate__(self) -> dict[str, Any]:
        settings = self.settings
        if not isinstance(settings, PortableSettings):
            assert isinstance(settings, ResolvedConfig), "of a plan, or travelled already"
            settings = PortableSettings(settings)
        return {**self.__dict__, "settings": settings, "_manager": None}


@dataclass(kw_only=True)
class TrainerRecipe(Recipe):
    """How each process of the trainer makes its part, and the loss that `update` applies."""

    models: Mapping[str, Path]
    """Role → model directory."""
    elsewhere: frozenset[str] = frozenset()
    """Roles of the run that other processes have."""
    total_updates: int
    """Of the whole run, for schedules."""
    loss_name: str
    """What ``trainer.algorithm.policy_loss_type`` holds."""
    rank_sync: RankSync | None = None
    """The weight sync, if these processes do it: see `skyrl_kernel.plan.Plan`."""

    @classmethod
    def of(cls, plan: "Plan", models: Mapping[str, Path], total_updates: int) -> "TrainerRecipe":
        """For the trainer of a plan."""
        name, loss = plan.tree.trainer.strategy, plan.stages["loss"]
        asked = _asked(plan, "make_trainer", name)
        more = [loss.provider, *loss.wrappers]
        if plan.rank_sync is not None:
            sync, engine = plan.stages["sync_weights"], plan.tree.generator.inference_engine.backend
            more += [sync.provider, *sync.wrappers, *_asked(plan, "make_engine", engine)]
        return cls(
            name=name,
            **_common(plan, asked, more),
            models={role: path.absolute() for role, path in models.items()},
            total_updates=total_updates,
            loss_name=plan.tree.trainer.algorithm.policy_loss_type,
            rank_sync=plan.rank_sync,
        )

    def make(self) -> Trainer:
        """The trainer, or this process's part of it."""
        made: Trainer = self.manager.make(
            "make_trainer",
            self.name,
            name=self.name,
            settings=self.settings,
            models=self.models,
            total_updates=self.total_updates,
            elsewhere=self.elsewhere,
        )
        return made

    def with_roles(self, *roles: str) -> Self:
        """The same, for processes that have these roles alone."""
        return replace(
            self,
            models={role: self.models[role] for role in roles},
            elsewhere=frozenset(self.models.keys() - set(roles)),
        )

    def loss(self) -> Loss:
        """Stage 5 with all that is around it: functions do not cross processes, their names do."""
        resolved = self.manager.resolve(
            "loss", self.loss_name, name=self.loss_name, settings=self.settings
        )
        found: Loss = resolved.value
        return found

    def sync_weights(self) -> SyncWeights:
        """Stage 6 likewise, of processes that do it."""
        assert self.rank_sync is not None, "asked of those that do"
        name = self.rank_sync.name
        resolved = self.manager.resolve("sync_weights", name, name=name, settings=self.settings)
        found: SyncWeights = resolved.value
        return found


@dataclass(kw_only=True)
class EngineRecipe(Recipe):
    """How an engine is made."""

    model: Path
    """Has the first weights."""

    @classmethod
    def of(cls, plan: "Plan", model: Path) -> "EngineRecipe":
        """For the engine of a plan."""
        name = plan.tree.generator.inference_engine.backend
        return cls(
            name=name, **_common(plan, _asked(plan, "make_engine", name)), model=model.absolute()
        )

    def missing(self) -> list[str]:
        """What this machine and this environment lack for the engine; see the hook `check_engine`."""
        answer = self.manager.ask("check_engine", self.name, name=self.name, settings=self.settings)
        return list(answer or ())

    def attached(self, addresses: Sequence[str]) -> Self:
        """The same, for an engine that is attached to servers which run already."""
        generator = self.settings[GeneratorConfig]
        engine = generator.inference_engine.model_copy(
            update={"external_server_urls": list(addresses), "run_engines_locally": False}
        )
        return self.with_sections(engine, generator.model_copy(update={"inference_engine": engine}))

    def make(self) -> Engine:
        """The engine."""
        made: Engine = self.manager.make(
            "make_engine", self.name, name=self.name, settings=self.settings, model=self.model
        )
        return made


def joined(*environments: Mapping[str, Any]) -> dict[str, Any]:
    """Several of Ray's ``runtime_env`` as one: a later one goes before, variable by variable.

    Example:
        >>> asked = {"py_executable": "/envs/a/bin/python", "env_vars": {"A": "1", "B": "1"}}
        >>> joined(asked, {"env_vars": {"B": "2"}})
        {'py_executable': '/envs/a/bin/python', 'env_vars': {'A': '1', 'B': '2'}}
    """
    whole: dict[str, Any] = {}
    for one in environments:
        before, after = whole.get(_VARIABLES), one.get(_VARIABLES)
        whole |= one
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            whole[_VARIABLES] = {**before, **after}
    return whole


def _asked(plan: "Plan", hook: str, name: str) -> list[PluginEntry]:
    """The selected plugins of that name, in the groups where the hook's slot looks for it."""
    groups = next(slot.groups for slot in MAKERS if slot.hook == hook)
    return [one for one in plan.entries if one.name == name and one.group in groups]


def _common(
    plan: "Plan", asked: Sequence[PluginEntry], more: Sequence[PluginEntry] = ()
) -> dict[str, Any]:
    """The fields of a `Recipe`.

    Args:
        plan: Of the run.
        asked: The plugin that makes it.
        more: Others that its process loads.
    """
    keys = {(one.group, one.name) for one in (*asked, *more)}
    entries = [one for one in plan.manager.entries if (one.group, one.name) in keys]
    return {
        "lock": plugin_lock(entries),
        "order": tuple(entry.qualified for entry in entries),
        "settings": plan.config,
        "offers": frozenset(offer for one in asked for offer in one.manifest.offers),
        "runtime_env": joined(*(one.manifest.runtime_env for one in asked)),
        "_manager": plan.manager,
    }
