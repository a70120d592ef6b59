"""Finding out who answers a hook, and what wrappers make of the answer.

pluggy has put the implementations in order; they are called from here, one by
one, so that the answer's provider and every wrapper that changed it are known
by name. This happens at start-up: what comes out is a plain callable.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from skyrl_kernel.errors import HookError, SkyrlError
from skyrl_kernel.plugins.catalog import PluginEntry
from skyrl_kernel.plugins.wording import did_you_mean, listed


@dataclass(frozen=True, kw_only=True, slots=True)
class Implementation:
    """One plugin's implementation of one hook."""

    owners: tuple[PluginEntry, ...]
    """The loaded entries whose module it stands in; several names may share one."""
    function: Callable[..., Any]
    """The plugin's function."""
    argnames: tuple[str, ...]
    """The arguments that it wants."""

    def __call__(self, kwargs: Mapping[str, object]) -> Any:
        """Call it with those of ``kwargs`` that it wants."""
        return self.function(**{name: kwargs[name] for name in self.argnames if name in kwargs})

    def owner(self, asked: str) -> PluginEntry:
        """The entry that speaks here: the one asked for, else the module's first."""
        for entry in self.owners:
            if entry.name == asked:
                return entry
        return self.owners[0]


@dataclass(frozen=True, kw_only=True, slots=True)
class Resolved:
    """The answer to a hook and where it came from."""

    value: Any
    """What the loop uses."""
    provider: PluginEntry
    """Who answered."""
    wrappers: tuple[PluginEntry, ...] = ()
    """Who changed the answer, innermost first."""

    def __str__(self) -> str:
        """All of them, for messages."""
        around = "".join(f", wrapped by {one}" for one in self.wrappers)
        return f"{self.provider}{around}"


Blame = Callable[[Exception, PluginEntry], SkyrlError]
"""Makes the error to raise from one that an implementation raised."""


def first_answer(
    asked: str,
    implementations: Sequence[Implementation],
    kwargs: Mapping[str, object],
    blame: Blame,
) -> tuple[Any, PluginEntry] | None:
    """Ask one after the other until one does not return None.

    Returns:
        The answer and who gave it.

    Raises:
        SkyrlError: Made by ``blame``; errors that a plugin wrote for the user pass unchanged.
    """
    for implementation in implementations:
        try:
            value = implementation(kwargs)
        except SkyrlError:
            raise
        except Exception as error:
            raise blame(error, implementation.owner(asked)) from error
        if value is not None:
            return value, implementation.owner(asked)
    return None


def wrapped(
    hook: str,
    asked: str,
    inner: Resolved,
    wrappers: Sequence[Implementation],
    kwargs: Mapping[str, object],
    blame: Blame,
) -> Resolved:
    """Hand the answer to the wrappers, innermost first; each may put a callable around it.

    Raises:
        HookError: A wrapper does not yield exactly once, or its result is not what the stage
            takes.
        SkyrlError: As in `first_answer`.
    """
    value, changed = inner.value, list(inner.wrappers)
    for wrapper in wrappers:
        owner = wrapper.owner(asked)
        try:
            outer = _through(wrapper(kwargs), value)
        except SkyrlError:
            raise
        except _Yields as error:
            raise HookError(f"{owner}: its wrapper of hook '{hook}' {error}") from None
        except Exception as error:
            raise blame(error, owner) from error
        if outer is None:
            raise HookError(
                f"{owner}: its wrapper of hook '{hook}' returned None. "
                "Return the inner callable if there is nothing to add."
            )
        if outer is not value:
            check_stage(hook, outer, f"{owner}: its wrapper of hook '{hook}'")
            changed.append(owner)
        value = outer
    return Resolved(value=value, provider=inner.provider, wrappers=tuple(changed))


class _Yields(Exception):
    """A wrapper's generator yielded never, or twice."""


def _through(generator: Any, value: object) -> Any:
    try:
        next(generator)
    except StopIteration:
        raise _Yields("ended before its 'yield'. Write 'inner = yield' first.") from None
    try:
        generator.send(value)
    except StopIteration as end:
        return end.value
    generator.close()
    raise _Yields("has a second 'yield'. Yield once, then return the outer callable.")


# --- what a stage must be -----------------------------------------------------------

_ASYNC = frozenset({"generate", "sync_weights"})

_CALLED_WITH: dict[str, tuple[str, ...]] = {
    "generate": ("prompt", "context"),
    "reward": ("trajectories",),
    "select": ("candidates", "target", "rng"),
    "sync_weights": ("trainer", "engine", "version"),
    "evaluate": ("trajectories",),
}


def check_stage(hook: str, value: object, who: str) -> None:
    """Refuse a stage that the loop could not call.

    Raises:
        HookError: Names who returned it, what was found and what is needed.
    """
    function = value
    if hook in ("advantage", "loss", "evaluate"):
        # Imported here: protocols need numpy and pydantic, which listing plugins must not load.
        from skyrl_kernel import protocols

        needed: type = getattr(protocols, hook.capitalize())
        if not isinstance(value, needed):
            raise HookError(
                f"{who} returned {_described(value)}; needed: skyrl_kernel.protocols."
                f"{needed.__name__}(fn=…)."
            )
        function = value.fn  # type: ignore[attr-defined]
        _check_needs(value.needs, get_args(protocols.ScoreName), who)  # type: ignore[attr-defined]
    if not callable(function):
        raise HookError(f"{who} returned {_described(function)}; needed: a callable.")
    _check_async(hook, function, who)
    _check_call(hook, function, who)


def _check_needs(needs: object, known: Sequence[str], who: str) -> None:
    """A score that the kernel does not know would never be there."""
    if isinstance(needs, str) or not isinstance(needs, Iterable):
        raise HookError(f"{who} needs {needs!r}; needed: a frozenset of names of scores.")
    for name in needs:
        if name not in known:
            raise HookError(
                f"{who} needs the score {name!r}, which there is not.{did_you_mean(str(name), known)} "
                f"Scores: {listed(known)}."
            )


def _check_async(hook: str, function: Callable[..., Any], who: str) -> None:
    found = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        type(function).__call__  # an object is called through its class
    )
    if found and hook not in _ASYNC:
        raise HookError(
            f"{who} returned {_described(function)}, which is async; "
            f"needed: a plain 'def', because '{hook}' is not awaited."
        )
    if not found and hook in _ASYNC:
        raise HookError(
            f"{who} returned {_described(function)}, which is not async; "
            f"needed: an 'async def', because '{hook}' is awaited."
        )


def _check_call(hook: str, function: Callable[..., Any], who: str) -> None:
    arguments = _CALLED_WITH.get(hook, ("argument",))
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some callables written in C do not tell
        return
    try:
        signature.bind(*arguments)
    except TypeError as error:
        called = f"({', '.join(arguments)})" if hook in _CALLED_WITH else "one argument"
        raise HookError(
            f"{who} returned {_described(function)}, which takes {signature}; "
            f"needed: a callable that takes {called}: {error}."
        ) from error


def _described(value: object) -> str:
    name = getattr(value, "__qualname__", None)
    return f"'{name}'" if name else f"a {type(value).__name__}"
