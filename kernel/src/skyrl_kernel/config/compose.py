"""Layers of values become one checked config, and every value knows where it came from."""

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from skyrl_kernel.config.compat import Answer, Answers, Row, refusals, table
from skyrl_kernel.config.layers import Layers
from skyrl_kernel.config.rules import broken_rules, is_missed
from skyrl_kernel.config.sources import flatten, unflatten
from skyrl_kernel.config.tree import KERNEL_SECTIONS, Config
from skyrl_kernel.errors import ConfigError

SectionT = TypeVar("SectionT", bound=BaseModel)

_SHOWN_KEYS = 6
_INTERPOLATION = re.compile(r"\$\{[\w.]+(:[^}]*)?\}")
"""``${trainer.seed}``, ``${oc.env:HOME}``: what SkyRL's command line fills in."""


@dataclass(frozen=True, slots=True)
class ResolvedConfig:
    """The checked config of one run."""

    config: Config
    sections: Mapping[type[BaseModel], BaseModel]
    """Every section that plugins may ask for, by class."""
    tree: Mapping[str, Any]
    """Everything, defaults included, as plain values."""
    origins: Mapping[str, str]
    """Dotted key of each leaf of ``tree`` → where its value came from."""
    not_read: tuple[Answer, ...] = ()
    """SkyRL's keys that were set and that nothing here reads."""
    not_yet: tuple[Answer, ...] = ()
    """What was asked for and is not built yet; never of a config that a run may have."""

    def __getitem__(self, section: type[SectionT]) -> SectionT:
        """The section of that class; this makes it a `skyrl_kernel.protocols.Settings`."""
        try:
            found = self.sections[section]
        except KeyError:
            raise KeyError(
                f"no config section {section.__name__} in this run: the plugin that owns it "
                f"({section.__module__.split('.')[0]}) is not selected"
            ) from None
        assert isinstance(found, section)
        return found


def resolve_config(
    layers: Layers,
    plugin_sections: Mapping[str, type[BaseModel]],
    unselected: Mapping[str, str],
    *,
    allow_not_yet: bool = False,
) -> ResolvedConfig:
    """Check the merged values against the kernel's tree and the selected plugins' sections.

    Args:
        layers: What was set.
        plugin_sections: Dotted path → model, of the selected plugins.
        unselected: Dotted path → plugin name, of installed plugins that are not selected.
        allow_not_yet: Go on although something is asked for that is not built yet.

    Raises:
        ConfigError: An unknown key (with the nearest known one), a key of an
            unselected plugin (with its name), a value of the wrong type or range,
            values that contradict each other, or something that is not built yet or
            not here.
    """
    known = _known_keys(Config)
    for path, model in plugin_sections.items():
        known.update({f"{path}.{key}": leaf for key, leaf in _known_keys(model).items()})
    kernel_values, answers, problems = _sort_out(layers, known, unselected)
    problems = problems or broken_rules(layers)
    refused = answers.not_here if allow_not_yet else [*answers.not_here, *answers.not_yet]
    problems += refusals(refused)
    if problems:
        raise ConfigError("\n".join(problems))

    instances: dict[type[BaseModel], BaseModel] = {}
    tree: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for path, model in plugin_sections.items():
        own = {k: kernel_values.pop(k) for k in list(kernel_values) if k.startswith(f"{path}.")}
        stripped = {k[len(path) + 1 :]: v for k, v in own.items()}
        instances[model] = _validate(model, stripped, path, layers.origins)
    config = _validate(Config, kernel_values, "", layers.origins)
    assert isinstance(config, Config)
    for path, section in KERNEL_SECTIONS:
        node: Any = config
        for part in path.split(".") if path else ():
            node = getattr(node, part)
        instances[section] = node
    tree.update(flatten(config.model_dump(mode="json")))
    for path, model in plugin_sections.items():
        tree.update(flatten(instances[model].model_dump(mode="json"), f"{path}."))
    for key in tree:
        origins[key] = _origin(key, layers.origins)
    return ResolvedConfig(
        config=config,
        sections=instances,
        tree=unflatten(tree),
        origins=origins,
        not_read=tuple(answers.not_read),
        not_yet=tuple(answers.not_yet),
    )


def _sort_out(
    layers: Layers, known: Mapping[str, bool], unselected: Mapping[str, str]
) -> tuple[dict[str, Any], Answers, list[str]]:
    """Values of keys that are read, answers to SkyRL's others, and what is wrong with the rest."""
    answers, problems = Answers(), []
    for answer in layers.replaced:
        answers.add(answer, is_missed=True)
    values: dict[str, Any] = {}
    for key, value in layers.values.items():
        origin = layers.origins[key]
        if isinstance(value, str) and (found := _INTERPOLATION.search(value)):
            problems.append(
                f"{key}={value} ({origin}): {found[0]} would be taken as it stands; values refer to no "
                "other keys and no variables, so write the value, or let the shell fill it in"
            )
        elif _is_known(key, known):
            values[key] = value
        elif row := _row(key, unselected):
            answer = Answer(name=key, value=value, origin=origin, row=row)
            try:
                answers.add(answer, is_missed=is_missed(answer, layers))
            except ValueError as error:
                problems.append(f"{key}={value!r} ({origin}): {error}")
        else:
            problems.append(_key_problem(key, known, unselected, origin))
    return values, answers, problems


def _row(key: str, unselected: Mapping[str, str]) -> Row | None:
    """The row of one of SkyRL's keys that this run does not read."""
    row = table().row(key)
    owner = _owner(key, unselected)
    if row is None or owner is None:
        return row
    text = f"read by the plugin '{owner}', which is not selected"
    return replace(row, status="not read", accepts="any", text=text)


def _origin(key: str, origins: Mapping[str, str]) -> str:
    """Origin of a leaf; a value may have been set for it, above it or below it."""
    for candidate, origin in origins.items():
        if key == candidate or key.startswith(f"{candidate}.") or candidate.startswith(f"{key}."):
            return origin
    return "default"


def _known_keys(model: type[BaseModel], prefix: str = "") -> dict[str, bool]:
    """Dotted key of each leaf → whether anything may follow it (free-form mappings)."""
    known: dict[str, bool] = {}
    for name, info in model.model_fields.items():
        annotation = info.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            known.update(_known_keys(annotation, f"{prefix}{name}."))
        else:
            known[f"{prefix}{name}"] = str(annotation).startswith("dict")
    return known


def _is_known(key: str, known: Mapping[str, bool]) -> bool:
    return key in known or any(free and key.startswith(f"{leaf}.") for leaf, free in known.items())


def _owner(key: str, unselected: Mapping[str, str]) -> str | None:
    """The unselected plugin whose section the key is in, if any."""
    for path, plugin in unselected.items():
        if key == path or key.startswith(f"{path}."):
            return plugin
    return None


def _key_problem(
    key: str, known: Mapping[str, bool], unselected: Mapping[str, str], origin: str
) -> str:
    plugin = _owner(key, unselected)
    if plugin is not None:
        return (
            f"config key '{key}' ({origin}) belongs to the plugin '{plugin}', which is not "
            f"selected; add --plugin {plugin}"
        )
    below = sorted(leaf for leaf in known if leaf.startswith(f"{key}."))
    below = below or sorted(leaf for leaf in table().keys if leaf.startswith(f"{key}."))
    if below:
        more = f", and {len(below) - _SHOWN_KEYS} more" if len(below) > _SHOWN_KEYS else ""
        return (
            f"config key '{key}' ({origin}) is a section and takes no value; it has the keys "
            f"{', '.join(below[:_SHOWN_KEYS])}{more}"
        )
    nearest = _nearest(key, known)
    hint = (
        f"; did you mean '{nearest}'?" if nearest else "; docs/reference/config.md lists all keys"
    )
    return f"no config key '{key}' ({origin}){hint}"


def _nearest(key: str, known: Iterable[str]) -> str | None:
    """The key most like ``key``: of those that end alike if there are any, else of all.

    One of SkyRL's that is not read is named only if it is almost the same.
    """
    names = list(known)
    if (of_policy := key.replace("trainer.", "trainer.policy.", 1)) in names:
        return of_policy  # whoever names no role means this one
    leaf = key.rpartition(".")[2]
    by_leaf = [name for name in names if name.rpartition(".")[2] == leaf]
    close = difflib.get_close_matches(key, by_leaf, n=1, cutoff=0.0)
    close = close or difflib.get_close_matches(key, [*names, *table().keys], n=1, cutoff=0.85)
    close = close or difflib.get_close_matches(key, names, n=1, cutoff=0.5)
    return close[0] if close else None


def _validate(
    model: type[BaseModel], values: Mapping[str, Any], path: str, origins: Mapping[str, str]
) -> BaseModel:
    try:
        return model.model_validate(unflatten(values))
    except ValidationError as error:
        problems: dict[str, list[str]] = {}
        for one in error.errors():
            message = one["msg"].removeprefix("Value error, ")
            parts = [path] if path else []
            parts += [str(part) for part in one["loc"] if isinstance(part, str) and "[" not in part]
            key = ".".join(parts)
            while key and key not in origins and key.rpartition(".")[0] in origins:
                key = key.rpartition(".")[0]  # union branches and list places end the location
            subject = f"{key}={one['input']!r} ({_origin(key, origins)}): "
            if one["type"] == "value_error":
                names_it = key not in origins or key.rpartition(".")[2] in message
                problems[message if names_it else f"{subject}{message}"] = []
                continue
            wanted = problems.setdefault(subject, [])
            if one["type"] == "list_type" and isinstance(one["input"], str):
                message += f"""; write {key}="['{one["input"]}']\""""
            wanted.append(f"{message[0].lower()}{message[1:]}")
        lines = [head + " or ".join(dict.fromkeys(tail)) for head, tail in problems.items()]
        raise ConfigError("\n".join(lines)) from error
