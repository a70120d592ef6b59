"""Does the demo learn, and is it the reward that teaches it? (`make bench-learning`, long)

For each seed, of the model as well as of the run:

    start     the warm start: greedy, sampled, best of 8, and led into its best answering style
    RL        the demo, unchanged but for more evaluations on the way
    control A the same run with random rewards
    control B the same seconds of more supervised training, as the warm start ended

All are judged by exact match on the demo's held-out problems. The benchmark
passes if, on every seed, RL gains `LEAST_GAIN` and `LEAST_LEAD` more than either
control; otherwise the exit code is 1.

Finished seeds are kept in learning.json and not repeated, as long as the
recipe of the model and the preset of the demo stay the same.
"""

import hashlib
import json
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import commands
import learning_report
import report
from effective import effective
from machine import describe_machine
from text import to_json

from skyrl_kernel.plan import make_plan
from skyrl_multiply.problems import messages
from skyrl_tiny import teacher
from skyrl_tiny.recipe import RECIPE

LEAST_GAIN = 0.2
LEAST_LEAD = 0.15
SAMPLES = 8
"""Samples per problem where answers are sampled."""
CONTROL_STEPS = 4000
"""Examples of control B are for this many steps; its time must be up before."""
RESULTS = report.LEARNING
RUNS = commands.HERE.parent / "runs" / "benchmarks"
CURVE = {"trainer.eval_interval": 3, "trainer.max_ckpts_to_keep": 1}
"""More points than the demo has; evaluation is greedy and changes no weight."""


def key(*plugins: str) -> str:
    """Changes with everything that the numbers of a run with these presets are about; default: the demo."""
    names = [*plugins] or ["demo"]
    setting = effective(make_plan(names), names, {})
    text = json.dumps([RECIPE.digest(), setting], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@click.command()
@click.option("--seeds", default="0,1,2,3,4", show_default=True, help="Comma-separated.")
@click.option("--fresh", is_flag=True, help="Repeat seeds that are finished.")
def main(seeds: str, fresh: bool) -> None:
    results = load_results()
    with tempfile.TemporaryDirectory() as scratch:
        env = commands.environment(*commands.install_controls(Path(scratch)))
        for seed in map(int, seeds.split(",")):
            if str(seed) in results["seeds"] and not fresh:
                click.echo(f"seed {seed}: finished before; --fresh repeats it")
            else:
                results["seeds"][str(seed)] = measure(seed, env, fresh=fresh)
                RESULTS.write_text(to_json(results))
                report.write()
            click.echo(verdict(seed, results["seeds"][str(seed)]))
    passed = all(map(passes, results["seeds"].values()))
    click.echo(f"{'PASS' if passed else 'FAIL'}: {len(results['seeds'])} seeds")
    sys.exit(0 if passed else 1)


def load_results() -> dict[str, Any]:
    """What was measured before of the same recipe and preset."""
    if RESULTS.exists():
        found: dict[str, Any] = json.loads(RESULTS.read_text())
        if found["key"] == key():
            return found
        click.echo("the recipe or the preset has changed: all seeds are measured anew")
    return {
        "key": key(),
        "machine": describe_machine(),
        "least_gain": LEAST_GAIN,
        "least_lead": LEAST_LEAD,
        "seeds": {},
    }


def passes(numbers: Mapping[str, Any]) -> bool:
    """The promise, for one seed."""
    return learning_report.passes(numbers, LEAST_GAIN, LEAST_LEAD)


def verdict(seed: int, numbers: Mapping[str, Any]) -> str:
    """One line about one seed."""
    return (
        f"{'PASS' if passes(numbers) else 'FAIL'} seed {seed}: {numbers['start']:.3f} → "
        f"{numbers['rl']:.3f}; random rewards {numbers['random']:.3f}, more SFT "
        f"{numbers['sft']:.3f}"
    )


def measure(seed: int, env: Mapping[str, str], *, fresh: bool) -> dict[str, Any]:
    """All runs of one seed; runs that finished before are read, not repeated."""
    folder = RUNS / key() / f"seed{seed}"
    if fresh and folder.exists():
        shutil.rmtree(folder)
    model = f"builtin:tiny@{seed}"
    values = {"trainer.seed": seed, "trainer.policy.model.path": model}

    def say(what: str) -> None:
        click.echo(f"seed {seed}: {what}")

    say("RL")
    commands.train(["demo"], {**values, **CURVE}, env, folder / "rl")
    rl = commands.read_metrics(folder / "rl")
    seconds = training_seconds(rl)
    say("control A, random rewards")
    commands.train(["demo", "random_reward"], {**values, **CURVE}, env, folder / "random")
    coin = commands.read_metrics(folder / "random")
    say(f"control B, {seconds:.0f} s of supervised training")
    if not (folder / "sft" / "export").is_dir():  # a stopped run would go on
        continue_warm_start(seed, seconds, env, folder / "sft")
    sft = commands.read_metrics(folder / "sft")
    say("evaluations")
    sampling = {
        "generator.eval_n_samples_per_prompt": SAMPLES,
        "generator.eval_sampling_params.temperature": 1.0,
    }

    def judged(target: Path | str, *plugins: str, **more: Any) -> dict[str, float]:
        return commands.evaluate(target, ["demo", *plugins], {"trainer.seed": seed, **more}, env)

    start_sampled = judged(model, **sampling)
    rl_sampled = judged(commands.exported(folder / "rl"), **sampling)
    return {
        "problems": int(rl[0]["eval/all/num_trajectories"]),
        "start": curve(rl)[0][1],
        "start_led": judged(model, "led_start")["exact_match"],
        "start_sampled": start_sampled["exact_match"],
        f"start_pass_at_{SAMPLES}": start_sampled[f"pass_at_{SAMPLES}"],
        "rl": curve(rl)[-1][1],
        "rl_sampled": rl_sampled["exact_match"],
        f"rl_pass_at_{SAMPLES}": rl_sampled[f"pass_at_{SAMPLES}"],
        "random": curve(coin)[-1][1],
        "sft": judged(commands.exported(folder / "sft"))["exact_match"],
        "seconds": {
            "rl": seconds,
            "random": training_seconds(coin),
            "sft": training_seconds(sft),
        },
        "steps": {"rl": len(rl) - 1, "random": len(coin) - 1, "sft": len(sft)},
        "curves": {"rl": curve(rl), "random": curve(coin)},
        "training_reward": [line["reward/avg_raw_reward"] for line in rl[1:]],
    }


def training_seconds(lines: list[dict[str, float]]) -> float:
    """Seconds of all steps: generating, scoring, updating, syncing; evaluation aside."""
    return sum(line.get("timing/step", 0.0) for line in lines)


def curve(lines: list[dict[str, float]]) -> list[tuple[int, float]]:
    """(step, held-out exact match) wherever it was evaluated."""
    name = "eval/all/exact_match"
    return [(int(line.get("trainer/global_step", 0)), line[name]) for line in lines if name in line]


def continue_warm_start(seed: int, seconds: float, env: Mapping[str, str], folder: Path) -> None:
    """Control B: new examples of the same teacher, at the rate where the warm start ended."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    examples = folder.parent / "examples.parquet"
    save_examples(examples, seed, CONTROL_STEPS * RECIPE.batch_size)
    optimizer = {
        **RECIPE.optimizer,
        "lr": RECIPE.optimizer["lr"] * RECIPE.optimizer["min_lr_frac"],
        "muon_lr": RECIPE.optimizer["muon_lr"] * RECIPE.optimizer["min_lr_frac"],
        "scheduler": "constant_with_warmup",
        "num_warmup_steps": 0,
    }
    values = {
        "data.train_data": [str(examples)],
        "data.shuffle": False,
        "trainer.policy.model.path": f"builtin:tiny@{seed}",
        "trainer.seed": seed,
        "trainer.train_batch_size": RECIPE.batch_size,
        "trainer.policy_mini_batch_size": RECIPE.batch_size,
        "trainer.micro_train_batch_size_per_gpu": RECIPE.batch_size,
        "trainer.bf16": False,
        "trainer.gradient_checkpointing": False,
        "trainer.dump_trajectories": False,
        "trainer.ckpt_interval": -1,
        "trainer.hf_save_interval": 1,  # whichever step the time is up in
        "trainer.logger": [],
        "controls.time_limit.seconds": seconds,
        **{f"trainer.policy.optimizer_config.{name}": value for name, value in optimizer.items()},
    }
    commands.train(["sft", "fsdp", "time_limit"], values, env, folder)
    steps = len(commands.read_metrics(folder))
    if steps >= CONTROL_STEPS:
        raise commands.FailedError(
            f"control B used up its examples after {steps} steps, before its {seconds:.0f} s were "
            "over; raise CONTROL_STEPS"
        )


def save_examples(file: Path, seed: int, count: int) -> None:
    """Worked examples that the warm start did not see, of the teacher that it had."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    unreliable = teacher.Teacher(seed)
    rng = random.Random(f"more examples {seed}")
    pairs = teacher.training_pairs()
    drawn = [rng.choice(pairs) for _ in range(count)]
    rows = [
        {
            "prompt": messages(a, b),
            "response": unreliable.work_out(a, b, rng),
            "data_source": "worked_examples",
        }
        for a, b in drawn
    ]
    pq.write_table(pa.Table.from_pylist(rows), file)


if __name__ == "__main__":
    os.nice(10)
    main()
