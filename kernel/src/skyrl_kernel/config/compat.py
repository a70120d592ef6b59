"""What SkyRL has and this project does not read: the table in ``skyrl.toml``, and its answers.

Every key, value and environment variable of SkyRL is either read, or has a row
there with one of these answers, so that nothing is ignored in silence:

========  ==================================================================
moved     the key has another name here; its value goes there
not read  accepted whatever its value, and reported: it has no effect to lose
not yet   accepted and reported where it asks for nothing that is missing;
          otherwise a run is refused, and ``--dry-run`` lists it and goes on
not here  the same, but ``--dry-run`` refuses it too: says what to use instead
========  ==================================================================

A value asks for nothing that is missing if it is SkyRL's default, or if it
belongs to a feature that is not asked for: the row's ``with`` names the key
that asks for it.
"""

import os
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from skyrl_kernel.config.words import read_word
from skyrl_kernel.errors import ConfigError
from skyrl_kernel.masking import mask_secrets

Status = Literal["read", "not read", "not yet", "not here"]
Accepts = Literal["default", "any", "none"]

TABLE = Path(__file__).with_name("skyrl.toml")


@dataclass(frozen=True, kw_only=True, slots=True)
class Topic:
    """Something that is not there yet, as docs/roadmap.md has it."""

    name: str
    """What rows call it."""
    title: str
    """Its heading."""
    text: str
    """What it will bring, and how things are until then."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """The answer to one key, one value or one environment variable."""

    name: str
    """Dotted key, value of a key, or variable."""
    status: Status
    """``read``: of variables only, by the plugin or package that the text names."""
    text: str
    """Why, or what is there instead; stands behind a colon."""
    instead: str = ""
    """The keys that it is here, where each key of a group has its own."""
    topic: str = ""
    """What will bring it, if it is *not yet* there."""
    default: Any = None
    """SkyRL's."""
    accepts: Accepts = "default"
    """Which values a run accepts although it does not read them."""
    switch: str = ""
    """``KEY`` or ``KEY=NAME|NAME``: the row counts only where that is switched on."""

    @property
    def is_open(self) -> bool:
        """True if keys may stand below this one."""
        return self.default is None or isinstance(self.default, Mapping)

    def default_of(self, key: str) -> Any:
        """SkyRL's default of this key or of one below it; ``...`` if it has none."""
        default = self.default
        for part in key.removeprefix(self.name).strip(".").split("."):
            if part:
                default = default.get(part, ...) if isinstance(default, Mapping) else ...
        return default

    def typed(self, key: str, value: Any) -> Any:
        """``value`` as the type of SkyRL's default; a key without a default takes anything.

        Raises:
            ValueError: It is of another type.
        """
        default = self.default_of(key)
        if value is None or default is None or default is ... or isinstance(default, Mapping):
            return value
        try:
            return TypeAdapter(type(default)).validate_python(value)
        except ValidationError as error:
            message = error.errors()[0]["msg"]
            raise ValueError(f"{message[0].lower()}{message[1:]}") from error


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """One thing that was set and is not read."""

    name: str
    """Dotted key, or variable."""
    value: Any
    """What it was set to."""
    origin: str
    """Where it was set."""
    row: Row
    """What there is to say of it."""

    def __str__(self) -> str:
        return f"{self.setting} ({self.origin}): {self.row.text}"

    @property
    def setting(self) -> str:
        """``name=value``, secrets masked."""
        return f"{self.name}={shown(mask_secrets({self.name: self.value})[self.name])}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """``skyrl.toml``."""

    topics: Mapping[str, Topic]
    """Name → topic, in the order of the roadmap."""
    keys: Mapping[str, Row]
    """Dotted key → row."""
    moved: Mapping[str, str]
    """Dotted key → the key that it is here; so are keys below it."""
    values: Mapping[tuple[str, str], Row]
    """(dotted key, name) → row."""
    variables: Mapping[str, Row]
    """Environment variable → row."""

    def row(self, key: str) -> Row | None:
        """The row of a key, or of the nearest key above it that takes anything."""
        name = key
        while name:
            found = self.keys.get(name)
            if found is not None:
                return found if name == key or found.is_open else None
            name = name.rpartition(".")[0]
        return None


@cache
def table() -> Table:
    """The table, read once."""
    content = tomllib.loads(TABLE.read_text(encoding="utf-8"))
    topics = {name: Topic(name=name, **text) for name, text in content["topics"].items()}
    return Table(
        topics=topics,
        keys={row.name: row for group in content["keys"] for row in key_rows(group)},
        moved={old: new for group in content["moved"] for old, new in group["to"].items()},
        values={
            (group["key"], name): _row(name, group)
            for group in content["values"]
            for name in group["names"]
        },
        variables={
            group["name"]: _row(group["name"], group, group.get("default", "null"))
            for group in content["variables"]
        },
    )


def key_rows(group: Mapping[str, Any]) -> Iterator[Row]:
    """The rows of one ``[[keys]]`` of the file: of each role, where it names some."""
    for key, default in group.get("defaults", {}).items():
        for role in group.get("roles", [""]):
            yield _row(key.replace("{role}", role), group, default)
    for key, instead in group.get("instead", {}).items():
        yield _row(key, group, instead=instead)


def _row(name: str, group: Mapping[str, Any], default: str = "null", *, instead: str = "") -> Row:
    return Row(
        name=name,
        status=group["status"],
        text=group["text"],
        instead=instead,
        topic=group.get("topic", ""),
        default=read_word(default),
        accepts="any" if group["status"] == "not read" else group.get("accepts", "default"),
        switch=group.get("with", ""),
    )


# --- keys that are called otherwise ---------------------------------------------------------------


def renamed(layer: Mapping[str, Any]) -> dict[str, tuple[str, Any]]:
    """Key here → (key as written, value), of one file, preset or command line.

    Raises:
        ConfigError: Two names of one key have different values.

    Example:
        >>> renamed({"environment.skyrl_gym.search.topk": 5})
        {'environment.search.topk': ('environment.skyrl_gym.search.topk', 5)}
    """
    found: dict[str, tuple[str, Any]] = {}
    for key, value in layer.items():
        new = _name_here(key)
        other = found.setdefault(new, (key, value))
        if other[0] != key and other[1] != value:
            raise ConfigError(
                f"{other[0]}={shown(other[1])} and {key}={shown(value)} are one key under two names; "
                f"set {new} alone"
            )
    return found


def _name_here(key: str) -> str:
    moved = table().moved
    above, below = key, ""
    while above:
        if above in moved:
            return moved[above] + below
        above, _, last = above.rpartition(".")
        below = f".{last}{below}"
    return key


# --- answers --------------------------------------------------------------------------------------


@dataclass(slots=True)
class Answers:
    """What was set and is not read."""

    not_read: list[Answer] = field(default_factory=list)
    """Asks for nothing that is missing."""
    not_yet: list[Answer] = field(default_factory=list)
    """Asks for what is not built yet."""
    not_here: list[Answer] = field(default_factory=list)
    """Asks for what will not be here."""

    def add(self, answer: Answer, *, is_missed: bool) -> None:
        """Sort an answer in.

        Args:
            answer: To a key or to a value.
            is_missed: It asks for something that is not there.
        """
        if not is_missed:
            self.not_read.append(answer)
        elif answer.row.status == "not yet":
            self.not_yet.append(answer)
        else:
            self.not_here.append(answer)


def refusals(answers: Iterable[Answer]) -> list[str]:
    """Why a run cannot be done as asked: a sentence for all that have the same answer."""
    alike: dict[tuple[str, str], list[Answer]] = {}
    for answer in answers:
        alike.setdefault((answer.row.topic, answer.row.text), []).append(answer)
    return [_refusal(some) for some in alike.values()]


def _refusal(answers: list[Answer]) -> str:
    settings = ", ".join(answer.setting for answer in answers)
    origins = " and ".join(dict.fromkeys(answer.origin for answer in answers))
    row = answers[0].row
    places = [f"{one.row.name} is {one.row.instead}" for one in answers if one.row.instead]
    here = f". Here {', '.join(places)}" if places else ""
    if row.status == "not yet":
        title = table().topics[row.topic].title
        end = f"SkyRL has it, this project not yet: docs/roadmap.md, '{title}'"
    else:
        end = "It is SkyRL's, and not here"
    return f"{settings} ({origins}): {row.text}{here}. {end}"


def unread_variables() -> list[Answer]:
    """SkyRL's environment variables that are set, to more than nothing, and not read."""
    return [
        Answer(name=name, value=os.environ[name], origin="environment", row=row)
        for name, row in table().variables.items()
        if row.status != "read" and os.environ.get(name)
    ]


def shown(value: Any) -> str:
    """A value as it would stand on the command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)
