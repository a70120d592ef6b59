"""Markdown and JSON as the results are written in."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

Numbers = Mapping[str, Any]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in lines)


def machine_line(machine: Numbers) -> str:
    """What it was measured on."""
    versions = ", ".join(f"{key} {machine[key]}" for key in ("python", "torch", "transformers"))
    return (
        f"Measured on {machine['date']}: {machine['processor']}, {machine['system']}; {versions}."
    )


def to_json(results: Numbers) -> str:
    """Indented, but lists of numbers on one line."""
    text = json.dumps(results, indent=1)
    return re.sub(r"\[[^\[\]{}\"]*\]", _on_one_line, text) + "\n"


def _on_one_line(found: "re.Match[str]") -> str:
    return "[" + " ".join(found[0][1:-1].split()) + "]"
