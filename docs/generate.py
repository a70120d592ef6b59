"""Writes the reference pages that repeat what the code says.

    python docs/generate.py            write docs/reference/config.md and cli.md, and docs/roadmap.md
    python docs/generate.py --check    exit 1 if one of them is not current

Only packages of this repository appear, whatever else is installed.
"""

import json
import re
import sys
import tomllib
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import annotated_types
import click
from click.testing import CliRunner
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from skyrl_kernel.cli import skyrl
from skyrl_kernel.config import compat
from skyrl_kernel.config.tree import Config
from skyrl_kernel.plugins import Catalog, PluginEntry, PluginManager, discover
from skyrl_kernel.slots import SETS, SLOTS, SWITCHES

DOCS = Path(__file__).parent
ROOT = DOCS.parent
NOTICE = "<!-- Written by docs/generate.py. Change the code, then run `make docs`. -->\n"
WIDTH = 90
"""Columns of the help texts."""


def main() -> None:
    """Write the pages, or compare them."""
    check = "--check" in sys.argv[1:]
    stale = []
    for name, text in pages().items():
        path = (DOCS / "reference" / name).resolve()
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(path.relative_to(ROOT).as_posix())
        if not check:
            path.write_text(text, encoding="utf-8")
    if stale and check:
        print(f"not current: {', '.join(stale)}. Run: python docs/generate.py", file=sys.stderr)
        sys.exit(1)


def pages() -> dict[str, str]:
    """Path from ``docs/reference`` → the page's text as it should be."""
    catalog = own_plugins()
    return {
        "config.md": config_page(catalog),
        "cli.md": cli_page(catalog),
        "../roadmap.md": roadmap_page(),
        "algorithms/README.md": algorithms_page(catalog),
        **{f"algorithms/{page.name}": with_results(page.read_text()) for page in measured_pages()},
    }


def own_plugins() -> list[PluginEntry]:
    """The plugins of this repository, in the catalog's order."""
    files = [ROOT / "kernel" / "pyproject.toml", *ROOT.glob("plugins/*/*/pyproject.toml")]
    names = {tomllib.loads(file.read_text())["project"]["name"] for file in files}
    return [entry for entry in discover() if entry.distribution in names]


# --- config.md --------------------------------------------------------------------------


def config_page(plugins: list[PluginEntry]) -> str:
    """All keys, by section; then slots and presets."""
    kernel = list(keys_of(Config))
    owned = plugin_sections(discover(), plugins)
    parts = [
        NOTICE,
        "# Config keys\n",
        INTRODUCTION,
        "## Defaults that are not SkyRL's\n",
        "Keys have SkyRL's names and defaults, except:\n",
        table(
            ("key", "default here", "meaning, and what SkyRL has"),
            [
                (f"`{key}`", default_of(field), prose(field.description))
                for key, field in kernel
                if "SkyRL" in (field.description or "")
            ],
        ),
        "## Keys of the kernel\n",
        *sections(kernel),
        "## Keys of plugins\n",
        "Set one only with its plugin selected; otherwise the run is refused and the plugin named.\n",
    ]
    for path, (entry, model) in owned.items():
        fields = [(f"{path}.{key}", field) for key, field in keys_of(model)]
        parts += [f"### {path}\n", f"Owned by `{entry.qualified}` ({entry.distribution}).\n"]
        parts.append(key_table(fields, path))
    parts += ["## Slots\n", SLOTS_TEXT, slot_table(plugins), "## Presets\n", PRESETS_TEXT]
    for entry in plugins:
        if entry.manifest.preset:
            parts += [f"### {entry.qualified}\n", entry.manifest.summary + "\n", preset(entry)]
    return "\n".join([*parts, *skyrl_parts()])


INTRODUCTION = """\
Set a key on the command line (`trainer.epochs=2`; the value is read as YAML), or in a YAML or
TOML file (`--config FILE`). What is given later in this list wins: kernel defaults, presets of
`--plugin NAME`, files, command line. An unknown key is refused with the nearest known one. The
resolved tree, with the origin of every value, is in `config.yaml` of the run folder;
`skyrl run --dry-run …` prints it.
"""

SLOTS_TEXT = """\
A slot is a key whose value is the name of an implementation. Naming one selects its plugin
without its preset. `auto` and null stand for the default. Other keys select one plugin by any
value but false, 0 and null.
"""

PRESETS_TEXT = """\
What `--plugin NAME` sets, unless a file or the command line sets it otherwise. Of presets that differ
on a slot, that of the plugin which fills it wins; others that differ are refused, naming both.
"""


def keys_of(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Dotted key and field of every leaf."""
    for name, field in model.model_fields.items():
        below = field.annotation
        if isinstance(below, type) and issubclass(below, BaseModel):
            yield from keys_of(below, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def plugin_sections(
    catalog: Catalog, plugins: list[PluginEntry]
) -> dict[str, tuple[PluginEntry, type[BaseModel]]]:
    """Dotted path → owner and model, of every section of a plugin."""
    found = {}
    for entry in plugins:
        if entry.manifest.config:
            manager = PluginManager(catalog)
            manager.load([entry])
            for path, model in manager.sections().items():
                found[path] = (entry, model)
    return dict(sorted(found.items()))


def sections(keys: list[tuple[str, FieldInfo]]) -> Iterator[str]:
    """A heading and a table for each section, in the order of the tree."""
    by_section: dict[str, list[tuple[str, FieldInfo]]] = {}
    for key, field in keys:
        by_section.setdefault(key.rpartition(".")[0], []).append((key, field))
    for path, members in by_section.items():
        yield f"### {path}\n"
        yield key_table(members, path)


def key_table(keys: list[tuple[str, FieldInfo]], path: str) -> str:
    """One row per key; the section's path, which the heading shows, is left out."""
    return table(
        ("key", "type", "default", "meaning"),
        [
            (
                f"`{key.removeprefix(path + '.')}`",
                type_of(field),
                default_of(field),
                prose(field.description),
            )
            for key, field in keys
        ],
    )


OR_NULL = " or null"


def type_of(field: FieldInfo) -> str:
    """``int ≥ 1``, ``float > 0 or null``, ``one of a, b``."""
    bounds = [*field.metadata]
    text = _type(field.annotation, bounds)
    plain = text.removesuffix(OR_NULL)
    limits = " and ".join(map(_bound, filter(_is_bound, bounds)))
    return f"{plain} {limits}".rstrip() + text[len(plain) :]


def _type(annotation: Any, bounds: list[Any]) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        for extra in arguments[1:]:
            bounds += extra.metadata if isinstance(extra, FieldInfo) else [extra]
        return _type(arguments[0], bounds)
    if origin is typing.Literal:
        return "one of " + ", ".join(f"`{value}`" for value in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type(argument, bounds) for argument in arguments)
    if origin is list:
        return f"list of {_type(arguments[0], bounds)}"
    if origin is tuple:
        return f"{len(arguments)} × {_type(arguments[0], bounds)}"
    if origin is dict:
        return "mapping"
    return "null" if annotation is type(None) else str(annotation.__name__)


def _is_bound(one: Any) -> bool:
    return isinstance(
        one, annotated_types.Ge | annotated_types.Gt | annotated_types.Le | annotated_types.Lt
    )


def _bound(one: Any) -> str:
    sign = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    return next(f"{sign[name]} {getattr(one, name)}" for name in sign if hasattr(one, name))


def default_of(field: FieldInfo) -> str:
    """The default as it would be written on the command line."""
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "required"
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def slot_table(plugins: list[PluginEntry]) -> str:
    """Every slot, set and switch, and who can stand in it."""
    defaults = {key: default_of(field) for key, field in keys_of(Config)}
    switched = {key: name for key, name, _ in SWITCHES}

    def able(key: str) -> str:
        return ", ".join(
            f"`{entry.name}`"
            for entry in plugins
            if key in entry.manifest.slots or entry.name == switched.get(key)
        )

    rows = [
        (f"`{slot.key}`", f"[`{slot.hook}`](hooks.md)", defaults[slot.key], able(slot.key))
        for slot in SLOTS
    ]
    rows += [(f"`{key}`", "a set of names", defaults[key], able(key)) for key, _ in SETS]
    rows += [
        (f"`{key}`", f"a value selects `{name}`", defaults.get(key, "`null`"), able(key))
        for key, name, _ in SWITCHES
    ]
    return table(("key", "hook", "default", "in this repository"), rows)


def preset(entry: PluginEntry) -> str:
    """The preset as words of the command line."""
    lines = [f"{key}={json.dumps(value)}" for key, value in entry.manifest.preset.items()]
    return "```text\n" + "\n".join(lines) + "\n```\n"


# --- what of SkyRL is not read: config.md and roadmap.md ----------------------------------


def skyrl_parts() -> Iterator[str]:
    """SkyRL's keys, names and environment variables, each with its answer."""
    answers = compat.table()
    yield "## SkyRL's other keys\n"
    yield SKYRL_TEXT
    for status, text in STATUSES.items():
        yield f"### {status.capitalize()}\n"
        yield f"{text}\n"
        yield answer_table(status, [row for row in answers.keys.values() if row.status == status])
    yield "### Called otherwise\n"
    yield "The value goes to the key here. Setting both to different values is refused.\n"
    yield table(
        ("SkyRL's key", "key here"),
        [(f"`{old}`", f"`{new}`") for old, new in sorted(answers.moved.items())],
    )
    yield "## SkyRL's other values\n"
    yield VALUES_TEXT
    yield table(
        ("value", "status", "what there is"),
        [
            (f"`{key}={name}`", status_of(row), prose(row.text))
            for (key, name), row in answers.values.items()
        ],
    )
    yield "## Environment variables\n"
    yield VARIABLES_TEXT
    yield table(
        ("variable", "SkyRL's default", "status", "meaning"),
        [
            (
                f"`{row.name}`",
                "" if row.default is None else word(row.default),
                status_of(row),
                prose(row.text),
            )
            for row in answers.variables.values()
        ],
    )


SKYRL_TEXT = """\
No key of SkyRL is an unknown key, and none is ignored in silence. What is not read has one of
these answers; the run names the keys that it was given and does not read, and
`skyrl run --dry-run …` says why of each.
"""

STATUSES = {
    "not read": ("Accepted whatever the value: there is no effect to lose."),
    "not yet": (
        "A value is accepted where it asks for nothing that is missing: SkyRL's default, or any "
        "value of a feature that is not asked for (the key that asks for it is behind *with*). "
        "Otherwise a run is refused, and `--dry-run` lists the key, checks the rest and succeeds. "
        "The [roadmap](../roadmap.md) says what will bring it."
    ),
    "not here": ("Refused, `--dry-run` included, unless the value is the default shown."),
}

VALUES_TEXT = """\
Names that SkyRL has for a [slot](#slots), and no package of this repository. A plugin of that name
fills the slot, whoever wrote it. For the time being `--dry-run` puts the default in its place.
"""

VARIABLES_TEXT = """\
`--dry-run` lists those that are set and not read; a run names those that begin with `SKYRL_`. None
is an error: a variable may have been set for another program.
"""


def answer_table(status: str, rows: list[compat.Row]) -> str:
    """One row per key; what two keys share stands in one row."""
    header = ("key", "SkyRL's default", "with", "instead")
    lines = [
        (
            f"`{row.name}`",
            word(row.default),
            f"`{row.switch}`" if row.switch else "",
            prose(row.text),
        )
        for row in rows
    ]
    if not any(line[2] for line in lines):
        header = ("key", "SkyRL's default", "instead")
        lines = [(key, default, text) for key, default, _, text in lines]
    return table(header, lines)


def status_of(row: compat.Row) -> str:
    """The status; of what is not there yet with a link."""
    if not row.topic:
        return row.status
    return f"[{row.status}](../roadmap.md#{anchor(compat.table().topics[row.topic].title)})"


def answer_of(row: compat.Row) -> str:
    """What the row says."""
    return f"{prose(row.text)}. Here {row.instead}" if row.instead else prose(row.text)


def default_word(row: compat.Row) -> str:
    """SkyRL's default; nothing where it is not accepted either."""
    return "" if row.accepts == "none" else word(row.default)


def word(value: Any) -> str:
    """A value as a word of the command line."""
    return f"`{compat.shown(value) if not isinstance(value, dict | list) else json.dumps(value)}`"


def anchor(heading: str) -> str:
    """What a link to a heading ends with."""
    kept = "".join(one for one in heading.lower() if one.isalnum() or one in " -_")
    return kept.replace(" ", "-")


def roadmap_page() -> str:
    """What SkyRL has and this project not yet, by what will bring it."""
    answers = compat.table()
    parts = [NOTICE, "# Roadmap\n", ROADMAP_TEXT]
    for topic in answers.topics.values():
        parts += [f"## {topic.title}\n", f"{topic.text}\n"]
        values = [
            f"{key}={name}"
            for (key, name), row in answers.values.items()
            if row.topic == topic.name
        ]
        keys = [row.name for row in answers.keys.values() if row.topic == topic.name]
        variables = [row.name for row in answers.variables.values() if row.topic == topic.name]
        parts.append(
            "\n".join([*bullets("=", values), *bullets(".", keys), *bullets("", variables)]) + "\n"
        )
    return "\n".join(parts)


def bullets(mark: str, names: Sequence[str]) -> Iterator[str]:
    """Names that begin alike, up to the last ``mark``, on one line each."""
    alike: dict[str, list[str]] = {}
    for name in names:
        head, _, tail = name.rpartition(mark) if mark else (name, "", "")
        alike.setdefault(head, []).append(tail)
    for head, tails in alike.items():
        listed = ", ".join(f"`{tail}`" for tail in tails if tail)
        yield "- " + ": ".join(part for part in (head and f"`{head}`", listed) if part)


ROADMAP_TEXT = """\
What SkyRL has and this project not yet, by what will bring it. Its keys are accepted where they
ask for nothing that is missing; otherwise a run is refused, and `skyrl run --dry-run` lists them
([how](reference/config.md#skyrls-other-keys)).
"""

# --- algorithms/README.md ---------------------------------------------------------------

ALGORITHMS = DOCS / "reference" / "algorithms"

ALGORITHMS_TEXT = """\
Each is a package of its own, and its page says the formula, the settings, the metrics and what a
run gave. `--plugin NAME` applies its preset; a key of the tables below takes its name without. They
combine freely: `skyrl run --plugin demo --plugin rloo --plugin cispo`. How they compare on the
built-in model: [results](results.md). How to write one: the hooks
[`advantage`](../hooks.md#advantagename-settings) and [`loss`](../hooks.md#lossname-settings).
"""

ALGORITHM_SLOTS = (
    ("trainer.algorithm.advantage_estimator", "Advantages"),
    ("trainer.algorithm.policy_loss_type", "Losses"),
    ("trainer.algorithm.loss_reduction", "Reductions"),
    ("trainer.algorithm.dynamic_sampling.type", "Which groups are trained on"),
)
"""Slot and heading; every other algorithm stands under `WHOLE` or, if it has no preset, `AROUND`."""
WHOLE = "Methods"
AROUND = "Around any of them"
AROUND_NAMES = ("kl_loss", "kl_in_reward", "entropy_loss", "advantage_batch_normalize")
"""The kernel's own plugins that belong to algorithms."""


def algorithms_page(plugins: list[PluginEntry]) -> str:
    """What there is, with a link to each page."""
    entries = [
        entry
        for entry in plugins
        if entry.group == "skyrl.algorithms"
        or entry.name in AROUND_NAMES
        or set(entry.manifest.slots) & {slot for slot, _ in ALGORITHM_SLOTS}
    ]
    parts = [NOTICE, "# Algorithms\n", ALGORITHMS_TEXT]
    found: dict[str, list[PluginEntry]] = {WHOLE: []}
    found |= {heading: [] for _, heading in ALGORITHM_SLOTS} | {AROUND: []}
    for entry in entries:
        headings = [heading for slot, heading in ALGORITHM_SLOTS if slot in entry.manifest.slots]
        is_method = not headings and "trainer.algorithm" in str(dict(entry.manifest.preset))
        is_around = entry.name in AROUND_NAMES or not is_method
        for heading in headings or [AROUND if is_around else WHOLE]:
            found[heading].append(entry)
    for heading, members in found.items():
        rows = [(page_link(one.name), one.manifest.summary, one.distribution) for one in members]
        parts += [f"## {heading}\n", table(("name", "what it does", "package"), rows)]
    return "\n".join(parts)


def page_link(name: str) -> str:
    """The name, linked to the page that introduces it: that has it before its first section."""
    for page in sorted(ALGORITHMS.glob("*.md")):
        introduction = page.read_text(encoding="utf-8").partition("\n## ")[0]
        if page.name not in ("README.md", "results.md") and f"`{name}`" in introduction:
            return f"[`{name}`]({page.name})"
    return f"`{name}`"


MEASURED = re.compile(r"(<!-- result: (\S+) -->\n).*?(<!-- end -->)", re.S)
"""Where a page has what the benchmark's row of that name gave."""


def measured_pages() -> list[Path]:
    """The pages with a place for a result."""
    return [page for page in sorted(ALGORITHMS.glob("*.md")) if MEASURED.search(page.read_text())]


def with_results(page: str) -> str:
    """The page, its results those of benchmarks/algorithms.json."""
    rows = json.loads((ROOT / "benchmarks" / "algorithms.json").read_text())["rows"]
    return MEASURED.sub(lambda found: f"{found[1]}{result(rows[found[2]])}\n{found[3]}", page)


def result(row: dict[str, Any]) -> str:
    """One sentence about five seeds."""
    seeds = row["seeds"].values()
    gains = [one["final"] - one["start"] for one in seeds]
    start, final = (sum(one[key] for one in seeds) / len(seeds) for key in ("start", "final"))
    return (
        f"`skyrl run {row['typed']}`, {len(seeds)} seeds: held-out exact match {start:.3f} → "
        f"{final:.3f} on average, a gain of {min(gains):.3f} at least and {max(gains):.3f} at most "
        "([all seeds and curves](results.md))."
    )


# --- cli.md -----------------------------------------------------------------------------


def cli_page(plugins: list[PluginEntry]) -> str:
    """The help text of every command."""
    parts = [NOTICE, "# Commands\n", EXIT_CODES]
    for words in commands(skyrl, plugins):
        parts.append(f"## {' '.join(['skyrl', *words])}\n")
        parts.append(f"```text\n{help_of(words)}\n```\n")
    return "\n".join(parts)


def commands(command: click.Command, plugins: list[PluginEntry]) -> Iterator[list[str]]:
    """The words of a command and of those below it; below ``data`` stand the data sets."""
    yield []
    if command.name == "data":
        yield from ([entry.name] for entry in plugins if "data_recipe" in entry.manifest.offers)
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from ([name, *words] for words in commands(below, plugins))


EXIT_CODES = """\
| exit code | meaning |
|---|---|
| 0 | done; also a run that an observer stopped, and a finished run that was asked for again |
| 1 | it began and could not go on (disk full included); what was finished is kept |
| 2 | it cannot be done as asked; nothing was started |
| 130 | Ctrl-C; what was finished is kept |

Errors are one message on standard error: what was asked, what was found, what exists, what to do.
"""


def help_of(words: list[str]) -> str:
    """What ``skyrl … --help`` prints."""
    arguments = [*words, "--help"]
    result = CliRunner().invoke(
        skyrl, arguments, prog_name="skyrl", terminal_width=WIDTH, max_content_width=WIDTH
    )
    if result.exit_code != 0:
        raise click.ClickException(f"skyrl {' '.join(arguments)}: {result.output}")
    return result.output.rstrip()


# --- markdown ---------------------------------------------------------------------------


def table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """A markdown table; bars inside cells are escaped."""
    lines = [header, tuple("---" for _ in header), *rows]
    cells = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells) + "\n"


def prose(text: str | None) -> str:
    """A docstring on one line, its marks as markdown's."""
    return " ".join((text or "").replace("``", "`").split())


if __name__ == "__main__":
    main()
