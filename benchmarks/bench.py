"""How fast is it, how much memory does it take, and what does the kernel cost? (`make bench`)

Commands are started as a user starts them, each in a process of its own with
one thread. Times of commands are the best of several, which other users of the
machine disturb least. The parts of a step are ratios of CPU seconds within one run, which
others do not change.
"""

import importlib.util
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import commands
import report
from machine import describe_machine
from text import to_json

from skyrl_kernel.testing.distributions import make_distribution

NUM_PLUGINS = 40
REPEATS = 10
STEPS = 16
"""Of the measured demo; the first and the last, which evaluate, are left out."""
RESULTS = report.SPEED
LIMITS = {
    "help_s": 0.3,
    "plugins_list_s": 0.5,
    "kernel_share": 0.01,
    "peak_mib": 1536.0,
    "prompt_computations": 1.0,
}
"""What is promised: at most so much."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What one process took."""

    seconds: float
    peak_mib: float
    """Most memory that was resident at once."""
    began_at: float
    """Seconds since the epoch."""


@click.command()
def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        numbers = {**measure_commands(Path(scratch)), **measure_demo(Path(scratch))}
    results = {
        "machine": describe_machine(),
        "limits": LIMITS,
        "plugins": NUM_PLUGINS,
        "numbers": numbers,
    }
    RESULTS.write_text(to_json(results))
    report.write()
    late = [name for name, limit in LIMITS.items() if numbers[name] > limit]
    for name, limit in LIMITS.items():
        click.echo(f"{'FAIL' if name in late else 'ok':4} {name} {numbers[name]:.4g} (≤ {limit:g})")
    sys.exit(1 if late else 0)


# --- commands -----------------------------------------------------------------------


def measure_commands(scratch: Path) -> dict[str, Any]:
    """``skyrl --help`` and ``skyrl plugins list``, with many plugins installed."""
    folder = scratch / "many"
    for number in range(NUM_PLUGINS):
        install_plugin(folder, number)
    env = commands.environment(folder)
    numbers: dict[str, Any] = {}
    for name, words in (("help", ["--help"]), ("plugins_list", ["plugins", "list"])):
        click.echo(f"skyrl {' '.join(words)}")
        times = [timed([commands.SKYRL, *words], env).seconds for _ in range(REPEATS)]
        numbers[f"{name}_s"] = min(times)
        numbers[f"{name}_median_s"] = statistics.median(times)
        numbers[f"{name}_imports"] = imported_packages(words, env)
    listed = commands.call([commands.SKYRL, "plugins", "list"], env)
    assert listed.count("Extra plugin number") == NUM_PLUGINS, "every extra plugin is listed"
    bare = [timed([sys.executable, "-c", "pass"], env).seconds for _ in range(REPEATS)]
    return {**numbers, "python_s": min(bare)}


def install_plugin(folder: Path, number: int) -> None:
    """A distribution with one env, as a third party would publish it."""
    package = f"skyrl_extra_{number}"
    make_distribution(
        folder,
        f"skyrl-extra-{number}",
        modules={f"{package}.__init__": "raise ImportError('listing imports no plugin')\n"},
        files={
            f"{package}/plugin.toml": f'[extra{number}]\nsummary = "Extra plugin number {number}."\n'
        },
        entry_points={"skyrl.envs": {f"extra{number}": package}},
    )


def imported_packages(words: Sequence[str], env: Mapping[str, str]) -> list[str]:
    """Third-party packages that the command imports, ours included."""
    command = [sys.executable, "-X", "importtime", str(commands.SKYRL), *words]
    done = subprocess.run(command, env=dict(env), capture_output=True, text=True, check=True)
    names = re.findall(r"^import time:.*\|\s*([A-Za-z]\w*)$", done.stderr, flags=re.MULTILINE)
    tried = set(names) - sys.stdlib_module_names - {"site", "sitecustomize"}
    return sorted(name for name in tried if importlib.util.find_spec(name))


def timed(command: Sequence[str | Path], env: Mapping[str, str], log: Path | None = None) -> Cost:
    """Run a command and measure it.

    Raises:
        FailedError: It ended with another code than 0.
    """
    began_at, began = time.time(), time.perf_counter()
    with (log or Path(os.devnull)).open("w") as out:
        process = subprocess.Popen(
            [str(part) for part in command], env=dict(env), stdout=out, stderr=subprocess.STDOUT
        )
        _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        said = log.read_text()[-2000:] if log else ""
        raise commands.FailedError(f"exit code {process.returncode} from: {command}\n{said}")
    return Cost(seconds=seconds, peak_mib=_mib(usage.ru_maxrss), began_at=began_at)


def _mib(maxrss: int) -> float:
    """Linux reports KiB, macOS bytes."""
    return maxrss / (2**20 if sys.platform == "darwin" else 2**10)


# --- the demo -----------------------------------------------------------------------


def measure_demo(scratch: Path) -> dict[str, Any]:
    """Some steps of the demo, engine and trainer under a clock; the model is made first."""
    env = commands.environment(
        *install_stopwatch(scratch / "stopwatch"), SKYRL_CACHE=str(scratch / "cache")
    )
    click.echo("making builtin:tiny")
    make = "from skyrl_tiny.plugin import tiny; tiny(0)"
    made = timed([sys.executable, "-c", make], env, scratch / "make.log")
    click.echo(f"{STEPS} steps of the demo")
    folder = scratch / "demo"
    values = {
        "trainer.max_training_steps": STEPS,
        "trainer.eval_interval": -1,
        "trainer.ckpt_interval": -1,
        "trainer.ckpt_path": str(scratch),
        "trainer.strategy": "stopwatch",
        "generator.inference_engine.backend": "stopwatch",
        "generator.tokenizer": "stopwatch",
        "trainer.logger": ["console", "stopwatch_end"],
    }
    # fsdp owns keys that the demo sets, so it stays selected; its trainer comes from the stopwatch.
    flags = ["--plugin", "demo", "--plugin", "fsdp"]
    cost = timed(
        [commands.SKYRL, "run", *flags, *commands.words(values)], env, scratch / "demo.log"
    )
    watch = json.loads((folder / "stopwatch.json").read_text())
    evaluated = commands.read_metrics(folder)
    return {
        "warm_start_s": made.seconds,
        "warm_start_peak_mib": made.peak_mib,
        "start_up_s": watch["run_started_at"] - cost.began_at,
        "first_step_s": watch["first_step_at"] - cost.began_at,
        "evaluation_s": evaluated[-1]["timing/eval"],
        "peak_mib": cost.peak_mib,
        **step_numbers(watch["laps"][1:-1], watch["replayed"]),
    }


def install_stopwatch(folder: Path) -> list[Path]:
    make_distribution(
        folder,
        "skyrl-stopwatch",
        entry_points={
            "skyrl.backends": {"stopwatch": "skyrl_stopwatch"},
            "skyrl.plugins": {"stopwatch_end": "skyrl_stopwatch.end"},
        },
    )
    return [folder, commands.HERE / "stopwatch"]


PARTS = {
    "engine_s": "engine: prompts, decoding, sampling",
    "update_s": "trainer: updates",
    "score_s": "trainer: scores",
    "tokenizer_s": "tokenizer: prompts to ids, ids to text",
    "agent_s": "agent loop",
    "envs_s": "env: multiply",
    "reward_s": "reward: env_reward",
    "advantage_s": "advantage: grpo",
    "rollouts_s": "kernel: rollouts, threads, checks",
    "batches_s": "kernel: batches, weights of tokens, checks",
    "reports_s": "kernel: metrics, progress",
    "files_s": "kernel: the trajectory file, written beside the updates",
    "loggers_s": "logger: console",
}
"""What the stopwatch counts, and what it means."""
MODEL = ("engine_s", "update_s", "score_s")
TOLD = ("reports_s", "files_s")
"""What the kernel writes down of a run: metrics and trajectories."""
KERNEL = ("rollouts_s", "batches_s", *TOLD)


def step_numbers(
    laps: Sequence[Mapping[str, float]], replayed: Mapping[str, float]
) -> dict[str, Any]:
    """Where the time of a step goes, and what was computed in it.

    Args:
        laps: What the stopwatch counted, step by step.
        replayed: CPU seconds of one step, within each lap's ``rollouts_s``.
    """

    def total(name: str) -> float:
        return sum(lap.get(name, 0.0) for lap in laps)

    seconds = {name: total(name) for name in PARTS}
    for name, one_step in replayed.items():
        seconds[name] = one_step * len(laps)
        seconds["rollouts_s"] -= seconds[name]
    cpu = sum(seconds.values())
    kernel = sum(seconds[name] for name in KERNEL)
    return {
        "step_s": total("wall_s") / len(laps),
        "step_cpu_s": cpu / len(laps),
        "parts": {text: seconds[name] / cpu for name, text in PARTS.items()},
        "kernel_share": kernel / cpu,
        "told_share": sum(seconds[name] for name in TOLD) / cpu,
        "kernel_us_per_trajectory": 1e6 * kernel / total("trajectories"),
        "outside_share": 1 - sum(seconds[name] for name in MODEL) / cpu,
        "generated_tokens_per_s": total("tokens_generated") / total("engine_s"),
        "trained_tokens_per_s": total("tokens") / total("update_s"),
        "prompt_computations": total("prompt_tokens_computed") / total("prompt_tokens"),
        "group_size": total("trajectories") / total("prompts"),
    }


if __name__ == "__main__":
    main()
