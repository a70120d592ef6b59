"""Does a run learn the same on several processes? (`make bench-learning`, long)

The demo over five seeds, of the model as well as of the run, once in one process and once in
each layout of `LAYOUTS`. Numbers of one seed part ways after some steps, since sums of floats
depend on their order; the mean over seeds must not. The benchmark passes if each mean of held-out
exact match after the last step is within `MOST_DIFFERENCE` of that of one process.

Finished runs are kept in layouts.json and not repeated, as long as the recipe of the model and the
preset of the demo stay the same.
"""

import json
import os
import sys
from typing import Any

import click
import commands
import layouts_report
import learning
import report
from machine import describe_machine
from text import to_json

SEEDS = 5
MOST_DIFFERENCE = 0.03
ONE_PROCESS = "one process"
ON_RAY = {"trainer.runtime": "ray", "trainer.placement.policy_num_gpus_per_node": 2}
LAYOUTS: dict[str, dict[str, Any]] = {
    ONE_PROCESS: {},
    "2 ranks, 2 engines": {**ON_RAY, "generator.inference_engine.num_engines": 2},
    "2 ranks that divide each row, 2 engines": {
        **ON_RAY,
        "generator.inference_engine.num_engines": 2,
        "trainer.policy.sequence_parallel_size": 2,
    },
}


@click.command()
def main() -> None:
    results = load_results()
    env = commands.environment()
    for layout, values in LAYOUTS.items():
        for seed in range(SEEDS):
            done = results["layouts"].setdefault(layout, {})
            if str(seed) not in done:
                click.echo(f"{layout}: seed {seed}")
                done[str(seed)] = measure(layout, values, seed, env)
                report.LAYOUTS.write_text(to_json(results))
                report.write()
    for line in layouts_report.lines(results):
        click.echo(line)
    sys.exit(0 if layouts_report.passes(results) else 1)


def load_results() -> dict[str, Any]:
    """What was measured before of the same recipe and preset."""
    if report.LAYOUTS.exists():
        found: dict[str, Any] = json.loads(report.LAYOUTS.read_text())
        if found["key"] == learning.key():
            return found
        click.echo("the recipe or the preset has changed: all layouts are measured anew")
    return {
        "key": learning.key(),
        "machine": describe_machine(),
        "most_difference": MOST_DIFFERENCE,
        "against": ONE_PROCESS,
        "values": LAYOUTS,
        "layouts": {},
    }


def measure(
    layout: str, values: dict[str, Any], seed: int, env: dict[str, str]
) -> dict[str, float]:
    """One run to its end."""
    own = {"trainer.seed": seed, "trainer.policy.model.path": f"builtin:tiny@{seed}"}
    folder = learning.RUNS / learning.key() / f"layout{list(LAYOUTS).index(layout)}-seed{seed}"
    commands.train(["demo"], {**own, **values}, env, folder)
    lines = commands.read_metrics(folder)
    curve = learning.curve(lines)
    return {
        "problems": lines[0]["eval/all/num_trajectories"],
        "start": curve[0][1],
        "end": curve[-1][1],
    }


if __name__ == "__main__":
    os.nice(10)
    main()
