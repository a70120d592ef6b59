"""``skyrl data NAME``: makes the data set that a plugin has a recipe for.

Which options there are depends on the recipe, so the words after NAME are read
here and not by click.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from skyrl_kernel.errors import (
    DataError,
    PluginSelectionError,
    SkyrlError,
    UsageError,
    is_disk_full,
)
from skyrl_kernel.plugins.wording import did_you_mean, listed
from skyrl_kernel.slots import ENVS, GROUPS

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

    from skyrl_kernel.plugins import Catalog, PluginEntry, PluginManager
    from skyrl_kernel.protocols import DataRecipe

CAPABILITY = "data_recipe"
"""Offered in ``plugin.toml`` by the plugins that this command lists."""

_COMMON = {
    "output_dir": "Folder of the files; default: ~/data/NAME.",
    "source": "Folder with the original files, for data sets that are published.",
}


@click.command(
    "data",
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
    options_metavar="",
)
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[NAME] [--option value]...")
@click.pass_context
def data(context: click.Context, words: tuple[str, ...]) -> None:
    """Make a data set: parquet files with prompts and what judges the answers.

    Without NAME, lists the data sets that can be made; 'skyrl data NAME --help'
    shows the options of one.
    """
    from skyrl_kernel.plugins import PluginManager, discover

    if words[:1] == ("--help",):
        click.echo(context.get_help())
        return
    catalog = discover()
    if not words:
        _print_recipes(catalog)
        return
    name, *rest = words
    entry = _find(catalog, name)
    manager = PluginManager(catalog)
    manager.load([entry])
    recipe = _recipe(manager, entry)
    if "--help" in rest:
        _print_options(entry.name, recipe.options)
        return
    try:
        _make(entry.name, recipe, parse_words(rest))
    except Exception as error:
        if isinstance(error, SkyrlError) or is_disk_full(error):
            raise
        raise manager.attribute(error, "data_recipe", step=None, provider=entry) from error


def parse_words(words: Sequence[str]) -> dict[str, str]:
    """Options as written: ``--num-digits 4`` or ``--num_digits=4``; of equal ones the last wins.

    Raises:
        UsageError: A word is no option, or an option has no value.

    Example:
        >>> parse_words(["--num-digits", "4", "--seed=7"])
        {'num_digits': '4', 'seed': '7'}
    """
    values: dict[str, str] = {}
    left = iter(words)
    for word in left:
        option, equals, value = word.partition("=")
        if not option.startswith("--") or option == "--":
            raise UsageError(
                f"'{word}' is not an option; write skyrl data NAME --option value, the name first"
            )
        if not equals:
            value = next(left, "")
            if not value or value.startswith("--"):
                raise UsageError(f"{option} has no value; write {option} VALUE")
        values[option.removeprefix("--").replace("-", "_")] = value
    return values


def parse_options(name: str, model: "type[BaseModel]", values: Mapping[str, str]) -> "BaseModel":
    """The recipe's options from their texts.

    Raises:
        UsageError: The recipe has no such option, or the value does not fit it.
    """
    from pydantic import ValidationError

    known = [f"--{option}" for option in (*model.model_fields, *_COMMON)]
    for option in values:
        if f"--{option}" not in known:
            raise UsageError(
                f"data '{name}' has no option --{option}."
                f"{did_you_mean(f'--{option}', known)} Options: {listed(known)}"
            )
    try:
        return model.model_validate({key: values[key] for key in values if key not in _COMMON})
    except ValidationError as error:
        first = error.errors()[0]
        message = first["msg"].removeprefix("Value error, ")
        if not first["loc"]:
            raise UsageError(f"data '{name}': {message}") from error
        option = str(first["loc"][0])
        what = _plain(model.model_fields[option].description)
        raise UsageError(f"--{option}={values.get(option, '')}: {message}. {what}") from error


def _make(name: str, recipe: "DataRecipe", values: Mapping[str, str]) -> None:
    from skyrl_kernel.data.recipe import write_recipe

    options = parse_options(name, recipe.options, values)
    output_dir = Path(values.get("output_dir", f"~/data/{name}")).expanduser()
    source = Path(values["source"]).expanduser() if "source" in values else None
    if source is not None and not source.is_dir():
        raise DataError(
            f"--source {values['source']}: no such folder; name one with the original files"
        )
    for file in write_recipe(recipe, options, output_dir, source):
        repeated = (
            "" if file.num_distinct == file.num_rows else f" ({file.num_distinct} distinct prompts)"
        )
        click.echo(f"{file.path}: {file.num_rows} rows{repeated}")


def _find(catalog: "Catalog", name: str) -> "PluginEntry":
    if name.startswith("-"):
        raise UsageError(f"'{name}' stands where the name does; write skyrl data NAME {name} …")
    if not catalog.named(name):
        recipes = [entry.name for entry in catalog.offering(CAPABILITY)]
        raise PluginSelectionError(
            f"no data set named '{name}'.{did_you_mean(name, recipes)} "
            f"Installed plugins make: {_makers(catalog)}. If one exists: pip install skyrl-{name}"
        )
    return catalog.find(name, groups=(ENVS, *(group for group in GROUPS.values() if group != ENVS)))


def _recipe(manager: "PluginManager", entry: "PluginEntry") -> "DataRecipe":
    try:
        recipe: DataRecipe = manager.make("data_recipe", entry.name, name=entry.name)
    except PluginSelectionError as error:
        raise PluginSelectionError(
            f"{entry} makes no data set. Installed plugins make: {_makers(manager.catalog)}"
        ) from error
    return recipe


def _makers(catalog: "Catalog") -> str:
    return listed(entry.name for entry in catalog.offering(CAPABILITY))


def _print_recipes(catalog: "Catalog") -> None:
    entries = catalog.offering(CAPABILITY)
    if not entries:
        click.echo("No installed plugin makes a data set. For example: pip install skyrl-multiply")
        return
    click.echo("Data sets that can be made with 'skyrl data NAME':")
    width = max(len(entry.name) for entry in entries)
    for entry in entries:
        click.echo(f"  {entry.name:<{width}}  {entry.manifest.summary}")


def _print_options(name: str, model: "type[BaseModel]") -> None:
    rows: list[tuple[str, Any]] = [
        (f"--{option}", f"{_plain(field.description)}{_default(field)}")
        for option, field in model.model_fields.items()
    ]
    rows += [(f"--{option}", what.replace("NAME", name)) for option, what in _COMMON.items()]
    click.echo(f"Usage: skyrl data {name} [--option value]...\n\nOptions:")
    width = max(len(option) for option, _ in rows)
    for option, what in rows:
        click.echo(f"  {option:<{width}}  {what}")


def _default(field: "FieldInfo") -> str:
    return "" if field.default is None else f" [default: {field.default}]"


def _plain(description: str | None) -> str:
    """A field's description without the marks of its docstring."""
    return (description or "").replace("``", "")
