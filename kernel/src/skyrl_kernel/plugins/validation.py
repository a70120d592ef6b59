"""Hook implementations that cannot work are refused when their plugin is loaded.

pluggy itself accepts, without a word: a misspelt hook name, an ``async def``
(whose coroutine would count as an answer), a forgotten ``wrapper=True`` (whose
generator would count as one), and arguments that it never fills. Each of these
is an error here, with what was written, what exists and what to do.
"""

import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType, ModuleType
from typing import Any

from skyrl_kernel import hookspecs
from skyrl_kernel.errors import HookError
from skyrl_kernel.plugins.wording import did_you_mean, listed
from skyrl_kernel.slots import MAKERS, STAGES

STAGE_HOOKS = frozenset(slot.hook for slot in STAGES)
"""Hooks that return a callable, and that wrappers may surround."""


def _find_hooks() -> dict[str, tuple[str, ...]]:
    marker = f"{hookspecs.PROJECT}_spec"
    return {
        name: tuple(inspect.signature(function).parameters)
        for name, function in vars(hookspecs).items()
        if hasattr(function, marker)
    }


HOOKS: Mapping[str, tuple[str, ...]] = MappingProxyType(_find_hooks())
"""Every hook → the names of its arguments, in the order of `skyrl_kernel.hookspecs`."""

_HOOK_OF_SLOT = {slot.key: slot.hook for slot in (*MAKERS, *STAGES)} | {
    "environment.env_class": "make_env"
}


def implementations(
    module: ModuleType,
) -> dict[str, tuple[str, Callable[..., Any], Mapping[str, Any]]]:
    """The marked functions of a module: attribute → (hook, function, options of the marker)."""
    marker = f"{hookspecs.PROJECT}_impl"
    found: dict[str, tuple[str, Callable[..., Any], Mapping[str, Any]]] = {}
    for attribute, value in vars(module).items():
        options = getattr(value, marker, None)
        if isinstance(options, dict):
            found[attribute] = (options.get("specname") or attribute, value, options)
    return found


def check_hooks(module: ModuleType, plugin: str, *, may_be_empty: bool = False) -> None:
    """Refuse the first implementation of a module that cannot work.

    Args:
        module: A plugin's module, already imported.
        plugin: Who it is, for the message, such as ``algorithm 'grpo' (skyrl-grpo 0.1.0)``.
        may_be_empty: True if the plugin does something without any hook: it has a preset.

    Raises:
        HookError: Names the plugin, the hook, both sides and the fix.
    """
    found = implementations(module)
    if not found and not may_be_empty:
        unmarked = [name for name in HOOKS if inspect.isfunction(getattr(module, name, None))]
        raise HookError(
            f"{plugin}: {module.__name__} implements no hook. Functions with a hook's name that "
            f"lack @hookimpl (from skyrl_kernel.hookspecs): {listed(unmarked)}."
        )
    for attribute, (hook, function, options) in found.items():
        subject = f"{plugin}: {module.__name__}.{attribute}"
        if hook not in HOOKS:
            if options.get("optionalhook"):
                continue
            raise HookError(
                f"{subject} is marked as a hook implementation, but there is no hook '{hook}'."
                f"{did_you_mean(hook, HOOKS)} Hooks: {listed(HOOKS)}."
            )
        _check_async(subject, hook, function, options)
        _check_arguments(subject, hook, function)


def check_slots(module: ModuleType, plugin: str, slots: tuple[str, ...]) -> None:
    """Refuse a module that lacks a hook which its ``plugin.toml`` promises.

    Raises:
        HookError: Names the slot, the hook and what is implemented.
    """
    found = {hook for hook, _, _ in implementations(module).values()}
    for key in slots:
        hook = _HOOK_OF_SLOT.get(key)
        if hook is not None and hook not in found:
            raise HookError(
                f"{plugin}: its plugin.toml says that it fills '{key}', which takes an "
                f"implementation of hook '{hook}', but {module.__name__} implements "
                f"{listed(sorted(found))}. Implement it (with @hookimpl), or remove the slot."
            )


def _check_async(
    subject: str, hook: str, function: Callable[..., Any], options: Mapping[str, Any]
) -> None:
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise HookError(
            f"{subject} is 'async def', but hooks are synchronous: "
            "return an async callable instead, from a plain 'def'."
        )
    if options.get("hookwrapper"):
        raise HookError(
            f"{subject} is marked hookwrapper=True, pluggy's old style: use wrapper=True, "
            "take the inner result from 'yield' and return the outer one."
        )
    generator = inspect.isgeneratorfunction(function)
    if options.get("wrapper"):
        if hook not in STAGE_HOOKS:
            raise HookError(
                f"{subject} is a wrapper, but only stages can be wrapped: "
                f"{listed(name for name in HOOKS if name in STAGE_HOOKS)}. Remove wrapper=True."
            )
        if not generator:
            raise HookError(
                f"{subject} is marked wrapper=True, but has no 'yield': write "
                "'inner = yield', then return a callable around inner."
            )
    elif generator:
        raise HookError(
            f"{subject} has a 'yield', so calling it returns a generator and no result: "
            "mark it wrapper=True, or remove the 'yield'."
        )


def _check_arguments(subject: str, hook: str, function: Callable[..., Any]) -> None:
    offered = HOOKS[hook]
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is not inspect.Parameter.POSITIONAL_OR_KEYWORD:
            raise HookError(
                f"{subject} takes '{parameter}', which hooks never fill: name the arguments that "
                f"it wants. Hook '{hook}' offers: {listed(offered)}."
            )
        if parameter.name not in offered:
            raise HookError(
                f"{subject}{inspect.signature(function)} asks for '{parameter.name}', which hook "
                f"'{hook}' does not offer.{did_you_mean(parameter.name, offered)} "
                f"It offers: {listed(offered)}."
            )
