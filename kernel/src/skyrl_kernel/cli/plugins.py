"""``skyrl plugins``: what is installed, told without importing any of it."""

import json
import shutil
import sys
from collections.abc import Sequence
from typing import Any

import click

from skyrl_kernel.plugins.catalog import Catalog, PluginEntry
from skyrl_kernel.plugins.discovery import discover
from skyrl_kernel.plugins.wording import listed


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def plugins() -> None:
    """See which plugins are installed and what they bring."""


@plugins.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array.")
def list_plugins(as_json: bool) -> None:
    """List all installed plugins."""
    catalog = discover()
    if as_json:
        click.echo(json.dumps([_record(entry) for entry in catalog], indent=2, default=str))
    else:
        _print_table(catalog)
    for problem in catalog.problems:
        click.echo(f"problem: {problem}", err=True)


@plugins.command("info")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array.")
def plugin_info(name: str, as_json: bool) -> None:
    """Show all that is known about NAME, or kind/NAME."""
    catalog = discover()
    entries = catalog.named(name) or [catalog.find(name)]  # find says what there is instead
    if as_json:
        click.echo(json.dumps([_record(entry) for entry in entries], indent=2, default=str))
        return
    click.echo("\n\n".join(_described(entry) for entry in entries))


def _status(entry: PluginEntry) -> str:
    return "broken" if entry.problems else "warning" if entry.warnings else "ok"


def _record(entry: PluginEntry) -> dict[str, Any]:
    manifest = entry.manifest
    return {
        "name": entry.name,
        "kind": entry.kind,
        "distribution": entry.distribution,
        "version": entry.version,
        "module": entry.value,
        "requires_kernel": entry.requires_kernel,
        "summary": manifest.summary,
        "slots": list(manifest.slots),
        "config": list(manifest.config),
        "preset": dict(manifest.preset),
        "needs": list(manifest.needs),
        "offers": list(manifest.offers),
        "status": _status(entry),
        "problems": list(entry.problems),
        "warnings": list(entry.warnings),
    }


# --- text ---------------------------------------------------------------------------

_HEADER = ("NAME", "KIND", "DISTRIBUTION", "VERSION", "STATUS", "SUMMARY")


def _print_table(catalog: Catalog) -> None:
    """One aligned line per plugin, cut to the width of a terminal but whole in a pipe."""
    rows = [
        (e.name, e.kind, e.distribution, e.version, _status(e), e.manifest.summary) for e in catalog
    ]
    widths = [max(len(row[column]) for row in (_HEADER, *rows)) for column in range(5)]
    limit = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    click.secho(_line(_HEADER, widths, limit), bold=True)
    for entry, row in zip(catalog, rows, strict=True):
        line, status = _line(row, widths, limit), _status(entry)
        colour = {"warning": "yellow", "broken": "red"}.get(status)
        click.echo(line if colour is None else click.style(line, fg=colour))
    for line in _faults(catalog):
        click.echo(line, err=True)


def _faults(catalog: Catalog) -> list[str]:
    """One line per fault; what concerns a whole distribution names all its plugins."""
    concerned: dict[tuple[str, str, str], list[str]] = {}
    for entry in catalog:
        for label, faults in (("problem", entry.problems), ("warning", entry.warnings)):
            for fault in faults:
                names = concerned.setdefault((label, entry.label, fault), [])
                names.append(f"{entry.kind} '{entry.name}'")
    return [
        f"{label}: {listed(names)} ({distribution}): {fault}"
        for (label, distribution, fault), names in concerned.items()
    ]


def _line(cells: Sequence[str], widths: Sequence[int], limit: int | None) -> str:
    padded = [cell.ljust(width) for cell, width in zip(cells, widths, strict=False)]
    line = "  ".join((*padded, cells[-1])).rstrip()
    return line if limit is None or len(line) <= limit else line[: limit - 1] + "…"


def _described(entry: PluginEntry) -> str:
    manifest = entry.manifest
    preset = [f"{key}={json.dumps(value, default=str)}" for key, value in manifest.preset.items()]
    lines = [
        ("plugin", entry.qualified),
        ("summary", manifest.summary),
        ("distribution", entry.label),
        ("module", entry.value),
        ("kernel", entry.requires_kernel or "any"),
        ("slots", listed(manifest.slots)),
        ("config", listed(manifest.config)),
        ("needs", listed(manifest.needs)),
        ("offers", listed(manifest.offers)),
        ("preset", preset[0] if preset else "none"),
        *(("", value) for value in preset[1:]),
        ("status", _status(entry)),
        *(("problem", problem) for problem in entry.problems),
        *(("warning", warning) for warning in entry.warnings),
    ]
    return "\n".join(f"{label:<14}{text}".rstrip() for label, text in lines)
