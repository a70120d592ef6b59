"""Does a run learn the same on several processes? (`make bench-learning`, long)

The demo over five seeds, of the model as well as of the run, once in one process and once in
each other layout of `COMPARISONS`. Where several ranks add up, numbers of one seed part ways after
some steps, since sums of floats depend on their order; the mean over seeds must not. The benchmark
passes if each mean of held-out exact match after the last step is within `MOST_DIFFERENCE` of that
of one process.

Finished runs are kept in layouts.json and not repeated, as long as the recipe of the model and the
presets of their comparison stay the same.
"""

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import click
import commands
import layouts_report
import learning
import report
from machine import describe_machine
from text import to_json

SEEDS = "0,1,2,3,4"
MOST_DIFFERENCE = 0.03
ONE_PROCESS = "one process"
TWO_RANKS = {
    "trainer.runtime": "ray",
    "trainer.placement.policy_num_gpus_per_node": 2,
    "generator.inference_engine.num_engines": 2,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Layouts of one run."""

    title: str
    """In layouts.json, and above its table."""
    plugins: tuple[str, ...]
    """``--plugin`` names."""
    layouts: Mapping[str, Mapping[str, Any]]
    """Name → ``key=value`` words of each besides `ONE_PROCESS`."""


COMPARISONS = (
    Comparison(
        title="GRPO",
        plugins=("demo",),
        layouts={
            "2 ranks, 2 engines": TWO_RANKS,
            "2 ranks that divide each row, 2 engines": {
                **TWO_RANKS,
                "trainer.policy.sequence_parallel_size": 2,
            },
        },
    ),
    Comparison(
        title="PPO",
        plugins=("demo", "ppo"),
        layouts={
            "1 rank of the policy, 1 of the critic, 1 engine": {
                "trainer.runtime": "ray",
                "trainer.placement.colocate_all": False,
            },
        },
    ),
)


@click.command()
@click.option("--seeds", default=SEEDS, show_default=True, help="Comma-separated.")
def main(seeds: str) -> None:
    env = commands.environment()
    results = load_results()
    for one in COMPARISONS:
        found = results[one.title]
        for layout, values in {ONE_PROCESS: {}, **one.layouts}.items():
            done = found["layouts"].setdefault(layout, {})
            for seed in seeds.split(","):
                if seed not in done:
                    click.echo(f"{one.title}, {layout}: seed {seed}")
                    done[seed] = measure(one, layout, values, int(seed), env)
                    report.LAYOUTS.write_text(to_json(results))
                    report.write()
    for line in layouts_report.lines(results):
        click.echo(line)
    sys.exit(0 if layouts_report.passes(results) else 1)


def load_results() -> dict[str, Any]:
    """What was measured before of the same recipe and presets; by the title of the comparison."""
    found = json.loads(report.LAYOUTS.read_text()) if report.LAYOUTS.exists() else {}
    results = {}
    for one in COMPARISONS:
        key, before = learning.key(*one.plugins), found.get(one.title, {})
        if before and before["key"] != key:
            click.echo(f"{one.title}: the recipe or a preset has changed: all is measured anew")
            before = {}
        results[one.title] = {
            "key": key,
            "plugins": one.plugins,
            "machine": before.get("machine") or describe_machine(),
            "most_difference": MOST_DIFFERENCE,
            "against": ONE_PROCESS,
            "values": one.layouts,
            "layouts": before.get("layouts", {}),
        }
    return results


def measure(
    one: Comparison, layout: str, values: Mapping[str, Any], seed: int, env: Mapping[str, str]
) -> dict[str, float]:
    """One run to its end."""
    own = {"trainer.seed": seed, "trainer.policy.model.path": f"builtin:tiny@{seed}"}
    number = [ONE_PROCESS, *one.layouts].index(layout)
    folder = learning.RUNS / learning.key(*one.plugins) / f"layout{number}-seed{seed}"
    commands.train(one.plugins, {**own, **values}, env, folder)
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
