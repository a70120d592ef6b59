"""What do several processes cost? (part of `make bench`)

The same runs of the demo in one process and under Ray, in turns; what the controller's process
hands over and gets back; two ranks beside two processes that know nothing of each other; and how
long it takes until a run's processes are there. Seconds are the least of several, of a step the least
of each of its stages: other users of the machine disturb those least.
"""

import json
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import click
import commands
import ray_report
import report
from machine import describe_machine
from text import to_json

HERE = Path(__file__).parent
RESULTS = report.RAY
REPEATS = 3
STEPS = 5
"""Of each run; the first, in which everything is touched for the first time, does not count."""
STAGES = (
    *("generate", "fwd_logprobs_values_reward", "compute_advantages_and_returns"),
    *("convert_to_training_input", "train_critic_and_policy", "sync_weights"),
)
"""Of a step: all that it does."""
PROMPTS = 32
DEMO = {
    "trainer.max_training_steps": STEPS,
    "trainer.eval_before_train": False,
    "trainer.eval_interval": -1,
    "trainer.ckpt_interval": -1,
    "trainer.resume_mode": "none",
    "data.val_data": [],
}
RAY = {"trainer.runtime": "ray"}


@click.command()
@click.option("--only", help="steps, traffic or ranks; the other numbers stay as they are.")
def main(only: str | None) -> None:
    parts = {"steps": steps_and_start, "traffic": traffic, "ranks": two_ranks}
    results = json.loads(RESULTS.read_text()) if only and RESULTS.exists() else {"numbers": {}}
    numbers = results["numbers"]
    for name, measure in parts.items():
        if only in (None, name):
            with tempfile.TemporaryDirectory() as scratch:
                numbers |= measure(Path(scratch))
    results = {"machine": describe_machine(), "limits": ray_report.LIMITS, "numbers": numbers}
    RESULTS.write_text(to_json(results))
    late = ray_report.missed(results)
    for key, (limit, is_most) in ray_report.LIMITS.items():
        if key in numbers:
            sign = "≤" if is_most else "≥"
            verdict = "FAIL" if key in late else "ok"
            click.echo(f"{verdict:4} {key} {numbers[key]:.4g} ({sign} {limit:g})")
    report.write()
    sys.exit(1 if late else 0)


# --- a step, and the start ------------------------------------------------------------


def steps_and_start(scratch: Path) -> dict[str, Any]:
    """Seconds of a step in one process and under Ray, and where the seconds of a start go."""
    env = commands.environment()
    seconds: dict[str, list[list[dict[str, float]]]] = {"local": [], "ray": []}
    starts = []
    for repeat in range(REPEATS):
        for runtime, found in seconds.items():
            folder = scratch / f"{runtime}{repeat}"
            click.echo(f"{STEPS} steps of the demo, runtime {runtime}")
            began_at = time.time()
            commands.train(["demo"], {**DEMO, "trainer.runtime": runtime}, env, folder)
            found.append([line for line in commands.read_metrics(folder) if line["step"] > 1])
            if runtime == "ray":
                starts.append(start_up(folder, began_at))
    least = {
        runtime: [
            sum(min(line.get(f"timing/{stage}", 0.0) for line in step) for stage in STAGES)
            for step in zip(*found, strict=True)
        ]
        for runtime, found in seconds.items()
    }
    differences = [ray - local for ray, local in zip(least["ray"], least["local"], strict=True)]
    extra = statistics.median(differences)
    return {
        "steps": STEPS,
        "local_step_s": statistics.median(least["local"]),
        "ray_step_s": statistics.median(least["ray"]),
        "extra_step_s": extra,
        "extra_step_range_s": [min(differences), max(differences)],
        "overhead_of_2_s": extra / 2.0,
        "start_up": min(starts, key=lambda parts: sum(parts.values())),
    }


def start_up(folder: Path, began_at: float) -> dict[str, float]:
    """Seconds until each of `STEPS` of the report, from the one before."""
    moments = {}
    for file in (folder / "log.jsonl", folder / "logs" / "trainer_rank_0.jsonl"):
        for line in map(json.loads, file.read_text().splitlines()):
            moments.setdefault(line["event"], datetime.fromisoformat(line["time"]).timestamp())
    parts, before = {}, began_at
    for event in ray_report.STEPS:
        parts[event] = moments[event] - before
        before = moments[event]
    return parts


# --- what goes from process to process --------------------------------------------------

METER = '''
"""Counts what this process hands to Ray and gets from it, and runs the demo."""
import json
import sys

from skyrl_kernel.ray.environment import prepare

prepare()
from ray._private import serialization

sent, got = [], []
serialize = serialization.SerializationContext.serialize
deserialize = serialization.SerializationContext.deserialize_objects


def counted(self, value):
    found = serialize(self, value)
    sent.append(found.total_bytes)
    return found


def counted_back(self, objects, *args):
    got.extend(len(one[0] or b"") for one in objects)
    return deserialize(self, objects, *args)


serialization.SerializationContext.serialize = counted
serialization.SerializationContext.deserialize_objects = counted_back

from skyrl_kernel.cli import _exit_code

if code := _exit_code(sys.argv[2:]):
    sys.exit(code)
open(sys.argv[1], "w").write(json.dumps({"sent": sum(sent), "got": sum(got)}))
'''


def traffic(scratch: Path) -> dict[str, float]:
    """Bytes through the controller for each trajectory, and how much of a large tensor is pickled."""
    click.echo("bytes of the demo's trajectories")
    totals = {}
    for steps in (2, STEPS):  # what a start and a weight sync move is the same in both
        values = {**DEMO, **RAY, "trainer.max_training_steps": steps}
        place = {"trainer.ckpt_path": str(scratch), "trainer.run_name": f"meter{steps}"}
        told = scratch / f"meter{steps}.json"
        words = ["run", "--plugin", "demo", *commands.words({**values, **place})]
        commands.call([sys.executable, "-c", METER, str(told), *words], commands.environment())
        totals[steps] = json.loads(told.read_text())
    lines = commands.read_metrics(scratch / f"meter{STEPS}")
    tokens = statistics.mean(line["generate/avg_num_tokens"] for line in lines)
    trajectories = PROMPTS * 8 * (STEPS - 2)
    return {
        **{
            f"{way}_bytes": (totals[STEPS][way] - totals[2][way]) / trajectories
            for way in ("sent", "got")
        },
        "tokens": tokens,
        "pickled_share": pickled_share(),
    }


def pickled_share() -> float:
    """Bytes of a parcel with one tensor of 4 MiB that are pickled, over all of its bytes."""
    import torch

    from skyrl_kernel.ray.parcels import parcels

    (parcel,) = parcels([("layer.weight", torch.zeros(2**20))])
    beside: list[pickle.PickleBuffer] = []
    inside = pickle.dumps(parcel, protocol=5, buffer_callback=beside.append)
    moved = sum(len(buffer.raw()) for buffer in beside)
    assert moved >= 4 * 2**20
    return len(inside) / (len(inside) + moved)


# --- two ranks ------------------------------------------------------------------------


def two_ranks(_: Path) -> dict[str, float]:
    """Tokens/s of two ranks, and of two processes of their own that do the same at the same time."""
    script = [sys.executable, str(HERE / "rank_speed.py")]
    found = {}
    for _ in range(REPEATS):
        for layout in ("alone", "ranks"):
            click.echo(f"training on two cores: {layout}")
            done = subprocess.run(
                [*script, layout], env=commands.environment(), capture_output=True, text=True
            )
            if done.returncode:
                raise commands.FailedError(done.stderr[-2000:])
            speed = float(done.stdout.splitlines()[-1])
            found[layout] = max(found.get(layout, 0.0), speed)
    return {
        "alone_tokens_per_s": found["alone"],
        "ranks_tokens_per_s": found["ranks"],
        "two_ranks": found["ranks"] / found["alone"],
    }


if __name__ == "__main__":
    main()
