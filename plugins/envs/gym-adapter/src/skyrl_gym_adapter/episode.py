"""One episode of a skyrl-gym class: found, made as SkyRL makes it, asked, and its answers made plain.

This file and `inside` also run in the sandbox, so they import the standard
library and skyrl-gym alone.
"""

import difflib
import importlib
import sys
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypedDict

if TYPE_CHECKING:
    from skyrl_gym.envs.registration import EnvSpec  # type: ignore[import-untyped]


class NoSuchEnv(ValueError):
    """A name leads to no environment class; the message says what was found instead."""


class Source(TypedDict):
    """Where classes come from; survives JSON."""

    folders: list[str]
    """Searched for modules after everything that is installed."""
    modules: list[str]
    """Imported first, because they register ids."""
    ids: dict[str, str]
    """Id → ``module:Class``."""


def find(name: str, source: Source) -> "EnvSpec":
    """What skyrl-gym makes the env of that name from.

    Args:
        name: A registered id, or ``module:Class``.
        source: See `Source`.

    Raises:
        NoSuchEnv: There is none, or it cannot be imported.
    """
    return _find(
        name,
        tuple(source["folders"]),
        tuple(source["modules"]),
        tuple(source["ids"].items()),
    )


@lru_cache(maxsize=256)
def _find(
    name: str,
    folders: tuple[str, ...],
    modules: tuple[str, ...],
    ids: tuple[tuple[str, str], ...],
) -> "EnvSpec":
    import omegaconf  # noqa: F401 -- episodes need it; in the sandbox they share what is imported here
    import skyrl_gym  # type: ignore[import-untyped]
    from skyrl_gym.envs.registration import EnvSpec

    sys.path.extend(folder for folder in folders if folder not in sys.path)
    for module in modules:
        _import(module, f"environment.skyrl_gym.modules names '{module}'")
    for env_id, entry in ids:
        known = skyrl_gym.registry.get(env_id)
        if known is None:
            skyrl_gym.register(id=env_id, entry_point=entry)
        elif known.entry_point != entry:
            raise NoSuchEnv(
                f"environment.skyrl_gym.ids.{env_id}={entry}, but the id '{env_id}' is "
                f"{known.entry_point} already; register another id"
            )
    if ":" in name:
        return EnvSpec(id=name, entry_point=_class(name))
    if name not in skyrl_gym.registry:
        known_ids = sorted(skyrl_gym.registry)
        raise NoSuchEnv(
            f"skyrl-gym has no env '{name}'.{_did_you_mean(name, known_ids)} "
            f"Registered: {', '.join(known_ids)}. Name a class of yours as module:Class, or give "
            f"it an id by environment.skyrl_gym.ids.{name}=module:Class"
        )
    spec: EnvSpec = skyrl_gym.registry[name]
    if isinstance(spec.entry_point, str):
        _class(spec.entry_point)
    return spec


def _class(entry: str) -> Any:
    """The class that ``module:Class`` names."""
    module_name, _, class_name = entry.partition(":")
    module = _import(module_name, f"'{entry}' names the module '{module_name}'")
    found = getattr(module, class_name, None)
    if callable(found):
        return found
    from skyrl_gym import Env

    classes = [
        one
        for one, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, Env)
    ]
    raise NoSuchEnv(
        f"the module '{module_name}' has no class '{class_name}'.{_did_you_mean(class_name, classes)} "
        f"Its environment classes: {', '.join(classes) or 'none'}"
    )


def _import(name: str, who: str) -> Any:
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise NoSuchEnv(
            f"{who}, which cannot be imported: {type(error).__name__}: {error}. A module is looked "
            "for among the installed packages, in environment.skyrl_gym.folders and in the "
            "current folder"
        ) from error


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean '{close[0]}'?" if close else ""


class Episode:
    """A fresh env, and what may be asked of it. What it answers is what JSON can hold.

    Args:
        spec: From `find`.
        env_config: Becomes the class's ``env_config``, as omegaconf's mapping.
        extras: Columns of the row.
    """

    def __init__(
        self, spec: "EnvSpec", env_config: Mapping[str, Any], extras: dict[str, Any]
    ) -> None:
        import skyrl_gym
        from omegaconf import OmegaConf

        self._conversation: Any = None
        """The list that `init` returned. SkyRL continues it, which some classes look at."""
        try:
            self._env: Any = skyrl_gym.make(
                spec, env_config=OmegaConf.create(dict(env_config)), extras=extras
            )
        except KeyError as error:
            if error.args != ("max_turns",) or "max_turns" in extras:
                raise
            raise KeyError(
                "the class reads extras['max_turns'], which SkyRL always sets: set generator.max_turns"
            ) from error

    def init(self, prompt: list[dict[str, Any]]) -> tuple[Any, Any]:
        """The conversation to begin with, and what the class says about it."""
        messages, info = self._env.init(prompt)
        self._conversation = messages
        return plain(messages), plain(info)

    def step(self, action: str) -> dict[str, Any]:
        """Judge one completion."""
        answer = self._env.step(action)
        if not isinstance(answer, Mapping):
            raise TypeError(
                f"step returned a {type(answer).__name__}; it must return a BaseTextEnvStepOutput"
            )
        if isinstance(self._conversation, list):
            said = answer.get("postprocessed_action") or action
            self._conversation.append({"role": "assistant", "content": said})
            self._conversation += answer.get("observations") or []
        return {key: plain(value) for key, value in answer.items()}

    def metrics(self) -> dict[str, Any]:
        """The class's own `aggregate_metrics` of this one episode; numbers alone."""
        from skyrl_gym.metrics import default_aggregate_metrics  # type: ignore[import-untyped]

        aggregate = getattr(type(self._env), "aggregate_metrics", default_aggregate_metrics)
        measure = getattr(self._env, "get_metrics", dict)
        numbers = default_aggregate_metrics([plain(aggregate([plain(measure())]))])
        return dict(numbers)

    def close(self) -> None:
        """The class's own `close`."""
        self._env.close()


def plain(value: Any) -> Any:
    """The value as JSON has it: numpy's scalars become numbers, and what is no data its text.

    Example:
        >>> import numpy
        >>> plain({"acc": numpy.float32(0.5), "seen": {3}, 1: (None, True)})
        {'acc': 0.5, 'seen': [3], '1': [None, True]}
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if isinstance(value, str):
        return str(value)
    to_list = getattr(value, "tolist", None)  # numpy's arrays and scalars, and pandas'
    return plain(to_list()) if callable(to_list) else str(value)
