"""What vLLM's server, weight sync and asynchronous training cost and give: needs vLLM. (`make bench-engines`)

    .venv-engines/bin/python benchmarks/engines.py                   all of it, into engines.json
    .venv-engines/bin/python benchmarks/engines.py --only serving    one measurement, the others stay

Each measurement takes some minutes and is a module of its own. What is compared takes turns
within one run, so that figures are ratios which others who use the machine disturb least; servers
and what is measured with them come before others, where the system permits it.
"""

import importlib.metadata
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import engines_report
import overlap
import servers
import serving
import weight_sync
from machine import describe_machine
from text import to_json

from skyrl_vllm.server import CPU_BUILD

RESULTS = Path(__file__).with_name("engines.json")
MEASUREMENTS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "serving": serving.measure,
    "overlap": overlap.measure,
    "sync": weight_sync.measure,
}


@click.command()
@click.option(
    "--only", type=click.Choice([*MEASUREMENTS]), multiple=True, help="Which; default all."
)
def main(only: tuple[str, ...]) -> None:
    """Measure, write engines.json after each, and say what is missed."""
    os.environ["OMP_NUM_THREADS"] = "1"
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in only or MEASUREMENTS:
        with tempfile.TemporaryDirectory() as scratch, servers.preferred():
            measured = MEASUREMENTS[name](Path(scratch))
        # The load is that of the last minutes, and the measurement's own is part of it.
        machine = {**describe_machine(), "vllm": importlib.metadata.version(CPU_BUILD)}
        results[name] = {**measured, "machine": machine, "load": os.getloadavg()[1]}
        RESULTS.write_text(to_json(results))
    goals = [
        goal for goal in engines_report.goals(results) if goal.measurement in (only or results)
    ]
    for goal in goals:
        click.echo(f"{'ok' if goal.is_met else 'FAIL':4} {goal.what}: {goal.shown} ({goal.wanted})")
    sys.exit(0 if all(goal.is_met for goal in goals) else 1)


if __name__ == "__main__":
    main()
