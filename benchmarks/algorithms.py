"""Does every algorithm learn? (`make bench-learning`, long)

Each row of `ENTRIES` is a run that a user could type, on `builtin:tiny@SEED` or,
over two turns, on `builtin:tiny-retry@SEED`: the demo's prompts, samples, steps and
optimizer unless the row says otherwise. It passes if on every seed the exact match
of the greedy answer on held-out problems gains `LEAST_GAIN` over the start; over two
turns the rescue rate (right later, among those wrong at first) must also rise by
`LEAST_RESCUE_RISE`. Two rows are sabotaged and must not pass on any seed. Otherwise
the exit code is 1.

Finished runs are kept in algorithms.json and not repeated, as long as what they are
about stays the same: `digest`.
"""

import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import algorithms_report
import click
import commands
import report
from effective import effective
from machine import describe_machine
from sources import source_digest
from text import to_json

from skyrl_kernel.errors import UsageError
from skyrl_kernel.plan import make_plan
from skyrl_kernel.plugins import discover
from skyrl_tiny.recipe import RECIPES

LEAST_GAIN = 0.2
LEAST_RESCUE_RISE = 0.1
SEEDS = "0,1,2,3,4"
RESULTS = report.ALGORITHMS
RUNS = commands.HERE.parent / "runs" / "benchmarks" / "algorithms"
CURVE = {"trainer.eval_interval": 3, "trainer.max_ckpts_to_keep": 1}
"""More points than the demo has; evaluation is greedy and changes no weight."""

Expectation = Literal["learns", "rescues", "fails", "reported"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One row: a setting that runs once for each seed."""

    key: str
    """In algorithms.json, and for ``--only``."""
    title: str
    plugins: tuple[str, ...] = ()
    """``--plugin`` names behind the demo's."""
    values: Mapping[str, Any] = field(default_factory=dict)
    """``key=value`` words."""
    turns: Literal[1, 2] = 1
    expect: Expectation = "learns"

    @property
    def demo(self) -> str:
        """The preset that it is a variation of."""
        return "demo" if self.turns == 1 else "demo_multi_turn"

    @property
    def model(self) -> str:
        """The built-in model that it starts from, without the seed."""
        return "tiny" if self.turns == 1 else "tiny-retry"

    @property
    def typed(self) -> str:
        """What a user types behind ``skyrl run``."""
        flags = [f"--plugin {name}" for name in (self.demo, *self.plugins)]
        return " ".join([*flags, *commands.words(self.values)])


ENTRIES = (
    Entry(key="grpo", title="GRPO", plugins=("grpo",)),
    Entry(key="dr_grpo", title="Dr. GRPO", plugins=("dr_grpo",)),
    Entry(key="rloo", title="RLOO", plugins=("rloo",)),
    Entry(key="reinforce++", title="REINFORCE++", plugins=("reinforce++",)),
    Entry(key="ppo", title="PPO", plugins=("ppo",)),
    Entry(key="dapo", title="DAPO", plugins=("dapo",)),
    Entry(key="gspo", title="GSPO", plugins=("gspo",)),
    Entry(key="cispo", title="CISPO", plugins=("cispo",)),
    Entry(key="sapo", title="SAPO", plugins=("sapo",)),
    Entry(key="grpo_turns", title="GRPO", plugins=("grpo",), turns=2, expect="rescues"),
    Entry(key="ppo_turns", title="PPO", plugins=("ppo",), turns=2, expect="rescues"),
    Entry(
        key="replies_turns",
        title="GRPO, trained on replies too",
        plugins=("grpo", "train_on_replies"),
        turns=2,
        expect="reported",
    ),
    Entry(
        key="flipped",
        title="GRPO, sign flipped",
        plugins=("grpo", "flipped_advantages"),
        expect="fails",
    ),
    Entry(
        key="shuffled",
        title="GRPO, advantages shuffled",
        plugins=("grpo", "shuffled_advantages"),
        expect="fails",
    ),
)
"""All that is run. A value here has its reason beside it; without values, the demo's hold."""


def digest(entry: Entry) -> str:
    """Changes with everything that a row's numbers are about.

    That is the model's recipe, the setting, and the code of the algorithms and controls
    that take part: what it computes, not how it is explained.

    Raises:
        UsageError: It cannot be run here.
    """
    names = [entry.demo, *entry.plugins]
    plan = make_plan(names, overrides=commands.words(entry.values))
    typed = [discover().find(name) for name in names]
    code = {one.value for one in plan.entries if one.kind == "algorithm"}
    code |= {one.value for one in typed if one.distribution == "skyrl-controls"}
    ingredients = {
        "model": RECIPES[entry.model].digest(),
        "setting": effective(plan, names, entry.values),
        "code": {name: source_digest(name) for name in sorted(code)},
    }
    text = json.dumps(ingredients, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@click.command()
@click.option("--only", default="", help="Keys of rows, comma-separated; default: all.")
@click.option("--seeds", default=SEEDS, show_default=True, help="Comma-separated.")
@click.option("--jobs", default=min(2, os.cpu_count() or 1), show_default=True, help="At a time.")
@click.option("--fresh", is_flag=True, help="Repeat runs that are finished.")
def main(only: str, seeds: str, jobs: int, fresh: bool) -> None:
    entries = choose(only)
    with tempfile.TemporaryDirectory() as scratch:
        folders = commands.install_controls(Path(scratch))
        sys.path[:0] = map(str, folders)  # for `digest`
        results = load_results()
        able = list(ready(entries, results))
        todo = [
            (entry, seed)
            for seed in map(int, seeds.split(","))
            for entry in able
            if fresh or str(seed) not in results["rows"][entry.key]["seeds"]
        ]
        failures = run_all(todo, results, commands.environment(*folders), jobs=jobs, fresh=fresh)
    report.write()
    verdicts = [verdict(entry, results, seeds.split(",")) for entry in entries]
    for failure in failures:
        click.echo(failure)
    for _, line in verdicts:
        click.echo(line)
    passed = all(ok for ok, _ in verdicts)
    click.echo("PASS" if passed else "FAIL")
    sys.exit(0 if passed else 1)


def choose(only: str) -> list[Entry]:
    """The rows named, or all."""
    wanted = [key for key in only.split(",") if key]
    unknown = set(wanted) - {entry.key for entry in ENTRIES}
    if unknown:
        there = ", ".join(entry.key for entry in ENTRIES)
        raise click.UsageError(f"no row named {', '.join(sorted(unknown))}; there are {there}")
    return [entry for entry in ENTRIES if not wanted or entry.key in wanted]


def load_results() -> dict[str, Any]:
    """What was measured before."""
    if RESULTS.exists():
        found: dict[str, Any] = json.loads(RESULTS.read_text())
        return found
    return {
        "machine": describe_machine(),
        "group_size": discover().find("demo").manifest.preset["generator.n_samples_per_prompt"],
        "least_gain": LEAST_GAIN,
        "least_rescue_rise": LEAST_RESCUE_RISE,
        "rows": {},
    }


def save(results: dict[str, Any]) -> None:
    """Write the file, its rows in the order of `ENTRIES`."""
    rows = results["rows"]
    results["rows"] = {entry.key: rows[entry.key] for entry in ENTRIES if entry.key in rows}
    results["machine"] = describe_machine()
    RESULTS.write_text(to_json(results))


def ready(entries: Sequence[Entry], results: dict[str, Any]) -> Iterator[Entry]:
    """Those that can be run here; forgets what was measured of another version of them."""
    for entry in entries:
        try:
            now = digest(entry)
        except UsageError as error:
            results["rows"].pop(entry.key, None)
            click.echo(f"{entry.key} cannot be run: {error}")
            continue
        known = results["rows"].get(entry.key)
        seeds = known["seeds"] if known is not None and known["digest"] == now else {}
        if known is not None and known["digest"] != now:
            click.echo(f"{entry.key} has changed: all of its seeds are measured anew")
        results["rows"][entry.key] = {
            "title": entry.title,
            "typed": entry.typed,
            "turns": entry.turns,
            "expect": entry.expect,
            "digest": now,
            "seeds": seeds,
        }
        yield entry


def run_all(
    todo: Sequence[tuple[Entry, int]],
    results: dict[str, Any],
    env: Mapping[str, str],
    *,
    jobs: int,
    fresh: bool,
) -> list[str]:
    """Run what there is to run, so many at a time, each in one thread.

    Returns:
        What went wrong, a line or more for each run that failed.
    """
    started, failures = time.monotonic(), []
    with ThreadPoolExecutor(jobs) as pool:
        running = {
            pool.submit(measure, entry, seed, results["rows"][entry.key]["digest"], env, fresh): (
                entry,
                seed,
            )
            for entry, seed in todo
        }
        for count, done in enumerate(as_completed(running), start=1):
            entry, seed = running[done]
            left = (time.monotonic() - started) / count * (len(todo) - count) / 60
            place = f"[{count}/{len(todo)}, {left:.0f} min left]"
            try:
                numbers = done.result()
            except commands.FailedError as error:
                failures.append(f"{entry.key} seed {seed} failed: {error}")
                click.echo(f"{place} {entry.key} seed {seed}: FAILED")
                continue
            results["rows"][entry.key]["seeds"][str(seed)] = numbers
            save(results)
            click.echo(f"{place} {entry.key} seed {seed}: {algorithms_report.one_line(numbers)}")
    return failures


def measure(
    entry: Entry, seed: int, version: str, env: Mapping[str, str], fresh: bool
) -> dict[str, Any]:
    """One run, or what is left of it, and its numbers."""
    folder = RUNS / f"{entry.key}-{version}" / f"seed{seed}"
    if fresh and folder.exists():
        shutil.rmtree(folder)
    click.echo(f"started: {entry.key} seed {seed}")
    values = {
        **entry.values,
        **CURVE,
        "trainer.seed": seed,
        "trainer.policy.model.path": f"builtin:{entry.model}@{seed}",
    }
    is_continued = folder.exists()
    cpu_s = commands.train([entry.demo, *entry.plugins], values, env, folder)
    numbers = numbers_of(commands.read_metrics(folder))
    return numbers if is_continued else numbers | {"cpu_seconds": cpu_s}


def numbers_of(lines: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """What is kept of a run's ``metrics.jsonl``."""
    curves = {name: curve(lines, name) for name in ("exact_match", *TURN_METRICS)}
    steps = [line for line in lines if "timing/step" in line]
    return {
        "start": curves["exact_match"][0][1],
        "final": curves["exact_match"][-1][1],
        "problems": int(lines[0]["eval/all/num_trajectories"]),
        "steps": len(steps),
        "trained_trajectories": int(sum(line["generate/batch_num_seq"] for line in steps)),
        "dropped_groups": [int(line.get("generate/groups_dropped", 0.0)) for line in steps],
        "seconds": sum(line["timing/step"] for line in steps),
        "curves": {name: points for name, points in curves.items() if points},
        "training_reward": [line["reward/avg_raw_reward"] for line in steps],
    }


TURN_METRICS = ("exact_match_first_turn", "rescued")


def curve(lines: Sequence[Mapping[str, float]], name: str) -> list[tuple[int, float]]:
    """(step, held-out number) wherever it was evaluated."""
    key = f"eval/all/{name}"
    return [(int(line.get("trainer/global_step", 0)), line[key]) for line in lines if key in line]


def verdict(entry: Entry, results: Mapping[str, Any], seeds: Sequence[str]) -> tuple[bool, str]:
    """Whether a row does what is promised of it, and a line that says so."""
    row = results["rows"].get(entry.key)
    missing = [seed for seed in seeds if row is None or seed not in row["seeds"]]
    if row is None or missing:
        return False, f"FAIL {entry.key}: not measured on seed {', '.join(missing)}"
    limits = algorithms_report.Limits(gain=LEAST_GAIN, rescue_rise=LEAST_RESCUE_RISE)
    ok = algorithms_report.row_passes(row, limits)
    gains = ", ".join(f"{algorithms_report.gain(row['seeds'][seed]):+.3f}" for seed in seeds)
    return ok, f"{'PASS' if ok else 'FAIL'} {entry.key} ({entry.expect}): {gains}"


if __name__ == "__main__":
    os.nice(10)
    main()
