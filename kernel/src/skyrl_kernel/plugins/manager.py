"""The plugins of one run: imported, checked, put in order, and asked.

pluggy keeps the implementations and their order; this class decides what may be
registered, in which order, and who answered.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pluggy

from skyrl_kernel import hookspecs
from skyrl_kernel.errors import (
    HookError,
    PluginError,
    PluginLoadError,
    PluginSelectionError,
    SkyrlError,
)
from skyrl_kernel.plugins.attribution import attributed
from skyrl_kernel.plugins.catalog import Catalog, PluginEntry
from skyrl_kernel.plugins.loading import import_plugin
from skyrl_kernel.plugins.observing import ObserverFailure, call_each
from skyrl_kernel.plugins.sections import merged_sections
from skyrl_kernel.plugins.stages import Implementation, Resolved, check_stage, first_answer, wrapped
from skyrl_kernel.plugins.validation import check_hooks, check_slots
from skyrl_kernel.plugins.wording import did_you_mean, listed

if TYPE_CHECKING:
    from pydantic import BaseModel


@dataclass(frozen=True, slots=True)
class _Loaded:
    """One module and the loaded names that it implements."""

    module: ModuleType
    entries: tuple[PluginEntry, ...]


class PluginManager:
    """Loads the selected plugins and asks them.

    Example:
        >>> from skyrl_kernel.plugins import discover
        >>> catalog = discover()
        >>> manager = PluginManager(catalog)
        >>> manager.load([catalog.find("grpo")])                         # doctest: +SKIP
        >>> manager.resolve("advantage", "grpo", name="grpo", settings=settings)  # doctest: +SKIP
    """

    def __init__(self, catalog: Catalog, process: str = "controller") -> None:
        self.catalog = catalog
        self.process = process
        """Which one this is, for errors of plugins."""
        self._order: tuple[str, ...] = ()
        self._loaded: dict[str, _Loaded] = {}
        self._pluggy = _new_pluggy()
        self._found: dict[tuple[str, bool], list[Implementation]] = {}
        self._claimants: dict[str, list[PluginEntry]] = {}

    @property
    def entries(self) -> tuple[PluginEntry, ...]:
        """The loaded plugins in call order."""
        return tuple(entry for loaded in self._loaded.values() for entry in loaded.entries)

    def load(self, entries: Sequence[PluginEntry], order: Sequence[str] = ()) -> None:
        """Import, check and register plugins, those already loaded aside.

        Implementations are called in one total order, whatever order the
        entries come in: first the names of ``order``, then by group and name.
        Of wrappers, the first called is the outermost.

        Args:
            entries: From the catalog.
            order: NAME or ``kind/NAME`` of loaded plugins; empty keeps the order given before.

        Raises:
            PluginLoadError: Plugins that cannot be imported or do not fit this kernel; all
                of them are named. Nothing was registered.
            HookError: A plugin implements a hook wrongly. Nothing was registered.
            PluginSelectionError: ``order`` names a plugin that is not loaded.
        """
        wanted = {(entry.group, entry.name): entry for entry in (*self.entries, *entries)}
        order = tuple(order) or self._order
        ranked = sorted(wanted.values(), key=_ranking(order, list(wanted.values())))
        modules = _import_all(ranked)
        loaded: dict[str, _Loaded] = {}
        for entry in ranked:
            before = loaded[entry.value].entries if entry.value in loaded else ()
            loaded[entry.value] = _Loaded(modules[entry.value], (*before, entry))
        for one in loaded.values():
            presets = any(entry.manifest.preset for entry in one.entries)
            check_hooks(one.module, str(one.entries[0]), may_be_empty=presets)
            for entry in one.entries:
                check_slots(one.module, str(entry), entry.manifest.slots)
        fresh = _new_pluggy()
        for value, one in reversed(loaded.items()):  # pluggy calls the last registered first
            fresh.register(one.module, name=value)
        self._order, self._loaded, self._pluggy = order, loaded, fresh
        self._found, self._claimants = {}, {}

    def sections(self) -> "dict[str, type[BaseModel]]":
        """The config sections of all loaded plugins: dotted path → model.

        Raises:
            HookError: Two plugins own one path, or a plugin's answer differs from its
                ``plugin.toml``.
        """
        answers: list[tuple[PluginEntry, object]] = []
        for implementation in self._implementations("config_sections"):
            owner = implementation.owners[0]
            try:
                answers.append((owner, implementation({})))
            except SkyrlError:
                raise
            except Exception as error:
                raise self._blame("config_sections", error, owner) from error
        silent = {entry.value for entry in self.entries} - {owner.value for owner, _ in answers}
        answers += [(self._loaded[value].entries[0], {}) for value in sorted(silent)]
        return merged_sections(answers, self.catalog)

    def make(self, hook: str, asked: str, /, **kwargs: Any) -> Any:
        """The first answer to a make hook.

        Args:
            hook: Name of the hook.
            asked: The plugin name that the answer should come from.
            kwargs: The hook's arguments.

        Raises:
            PluginSelectionError: Nobody answered.
            PluginError: A plugin raised; errors that it wrote for the user pass unchanged.
        """
        return self._ask(hook, asked, kwargs)[0]

    def ask(self, hook: str, asked: str, /, **kwargs: Any) -> Any:
        """As `make`, of a hook that nobody needs to have: None if nobody answers."""
        answer = first_answer(
            asked, self._implementations(hook), kwargs, partial(self._blame, hook)
        )
        return None if answer is None else answer[0]

    def maker(self, hook: str, /, **fixed: Any) -> Callable[..., Any]:
        """`make` for what is made again and again: who answers to a name is found out once.

        Args:
            hook: Name of the hook.
            fixed: Those of its arguments that never change.

        Returns:
            Takes the plugin name that the answer should come from, which is also the hook's
            ``name``, and the hook's other arguments; raises what `make` raises.
        """
        answering: dict[str, Implementation] = {}

        def made(asked: str, /, **kwargs: Any) -> Any:
            arguments = {"name": asked, **fixed, **kwargs}
            known = answering.get(asked)
            if known is not None:
                try:
                    value = known(arguments)
                except SkyrlError:
                    raise
                except Exception as error:
                    raise self._blame(hook, error, known.owner(asked)) from error
                if value is not None:
                    return value
            value, provider = self._ask(hook, asked, arguments)
            answering[asked] = next(
                one for one in self._implementations(hook) if provider in one.owners
            )
            return value

        return made

    def resolve(self, hook: str, asked: str, /, **kwargs: Any) -> Resolved:
        """The callable of a stage, with its provider and the wrappers around it.

        Args:
            hook: Name of a stage hook.
            asked: The plugin name that its slot holds.
            kwargs: The hook's arguments.

        Raises:
            PluginSelectionError: Nobody answered.
            HookError: An answer is not what the loop can call.
            PluginError: As in `make`.
        """
        value, provider = self._ask(hook, asked, kwargs)
        inner = Resolved(value=value, provider=provider)
        check_stage(hook, inner.value, f"{inner.provider}: its hook '{hook}'")
        wrappers = self._implementations(hook, wrappers=True)[::-1]
        return wrapped(hook, asked, inner, wrappers, kwargs, partial(self._blame, hook))

    def observers(self, hook: str) -> tuple[PluginEntry, ...]:
        """Who observes an event, in call order."""
        return tuple(one.owners[0] for one in self._implementations(hook))

    def observe(self, hook: str, /, **kwargs: Any) -> list[ObserverFailure]:
        """Tell every observer of an event; return those that raised.

        Raises:
            StopRun: An observer asked for the end of the run; all others were called first.
        """
        return call_each(hook, self._implementations(hook), kwargs)

    def attribute(
        self,
        error: BaseException,
        hook: str,
        step: int | None,
        process: str | None = None,
        provider: PluginEntry | None = None,
    ) -> PluginError:
        """Name the plugin whose code raised ``error``; see `attribution.attributed`."""
        return attributed(
            error,
            self.entries,
            hook=hook,
            step=step,
            process=process or self.process,
            provider=provider,
            kernel_version=self.catalog.kernel_version,
        )

    def _ask(self, hook: str, asked: str, kwargs: Mapping[str, object]) -> tuple[Any, PluginEntry]:
        claimants = self._claimants.get(asked)  # looked up once, as the implementations are
        if claimants is None:
            claimants = [entry for entry in self.entries if entry.name == asked]
            self._claimants[asked] = claimants
        implementations = self._implementations(hook)
        answer = first_answer(asked, implementations, kwargs, partial(self._blame, hook))
        if answer is None:
            raise self._unanswered(hook, asked, claimants)
        _, provider = answer
        if claimants and provider.name != asked:
            raise HookError(
                f"hook '{hook}' was asked for '{asked}', which is {listed(map(str, claimants))}, "
                f"but {provider} answered. Its implementation must return None for names "
                "that are not its own."
            )
        return answer

    def _implementations(self, hook: str, *, wrappers: bool = False) -> list[Implementation]:
        """In call order; looked up once, since an env is made for every trajectory."""
        key = (hook, wrappers)
        if key not in self._found:
            self._found[key] = self._look_up(hook, wrappers)
        return self._found[key]

    def _look_up(self, hook: str, wrappers: bool) -> list[Implementation]:
        caller: pluggy.HookCaller = getattr(self._pluggy.hook, hook)
        return [
            Implementation(
                owners=self._loaded[one.plugin_name].entries,
                function=one.function,
                argnames=(*one.argnames, *one.kwargnames),
            )
            for one in reversed(caller.get_hookimpls())
            if one.wrapper is wrappers
        ]

    def _blame(self, hook: str, error: Exception, provider: PluginEntry) -> PluginError:
        blamed = self.attribute(error, hook, step=None, provider=provider)
        blamed.exit_code = 2  # nothing was started yet
        return blamed

    def _unanswered(
        self, hook: str, asked: str, claimants: Sequence[PluginEntry]
    ) -> PluginSelectionError:
        implementations = self._implementations(hook)
        able = [owner for one in implementations for owner in one.owners]
        others = listed(sorted({owner.name for owner in able if owner.name != asked}))
        if not claimants:
            text = (
                f"nobody answers hook '{hook}' for '{asked}': no loaded plugin has that name."
                f"{did_you_mean(asked, [entry.name for entry in able])}"
            )
        elif any(entry in able for entry in claimants):
            text = (
                f"nobody answers hook '{hook}' for '{asked}': {claimants[0]} claims the name, "
                "but its implementation returned None."
            )
        else:
            text = (
                f"nobody answers hook '{hook}' for '{asked}': {claimants[0]} claims the name, "
                "but does not implement the hook."
            )
        return PluginSelectionError(f"{text} Other loaded plugins that implement it: {others}.")


def _new_pluggy() -> pluggy.PluginManager:
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    return manager


def _ranking(order: Sequence[str], entries: Sequence[PluginEntry]) -> Any:
    known = {name for entry in entries for name in (entry.name, entry.qualified)}
    for name in order:
        if name not in known:
            raise PluginSelectionError(
                f"the order names '{name}', which is not loaded.{did_you_mean(name, known)} "
                f"Loaded: {listed(sorted(entry.qualified for entry in entries))}."
            )

    def rank(entry: PluginEntry) -> tuple[int, str, str]:
        places = [order.index(name) for name in (entry.name, entry.qualified) if name in order]
        return (min(places, default=len(order)), entry.group, entry.name)

    return rank


def _import_all(entries: Sequence[PluginEntry]) -> dict[str, ModuleType]:
    """Import one by one, so that one broken plugin does not hide another."""
    modules: dict[str, ModuleType] = {}
    failures: list[PluginLoadError] = []
    for entry in entries:
        try:
            modules[entry.value] = import_plugin(entry)
        except PluginLoadError as failure:
            failures.append(failure)
    if len(failures) == 1:
        raise failures[0]
    if failures:
        raise PluginLoadError("\n".join(str(failure) for failure in failures)) from failures[0]
    return modules
