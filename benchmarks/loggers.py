"""What loggers cost the thread that trains, per step: each alone, all at once, and one that hangs.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/loggers.py

Runs of the scripted stack, whose steps take milliseconds, so that everything else about them is
small; what is timed is all that a run does for its loggers in the loop's thread, from the end of
one step to the beginning of the next. The stores are in a temporary folder; nothing is sent.
"""

import os
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from skyrl_kernel.feed import Feed
from skyrl_kernel.plan import make_plan
from skyrl_kernel.plugins import discover
from skyrl_kernel.progress import Progress
from skyrl_kernel.runner import carry_out
from skyrl_kernel.slots import LOGGERS
from skyrl_kernel.testing.distributions import make_distribution
from skyrl_kernel.testing.scripted import Script, installed, perform

STEPS = 200
HANGS = """
import time
from skyrl_kernel.hookspecs import hookimpl

class Hangs:
    def open(self, run): ...
    def log(self, record): time.sleep(3600)
    def close(self, end): ...

@hookimpl
def make_sink(name):
    return Hangs() if name == "hangs" else None
"""
CASES: dict[str, list[str]] = {
    "none": [],
    "wandb": ["wandb"],
    "tensorboard": ["tensorboard"],
    "trackio": ["trackio"],
    "mlflow": ["mlflow"],
    "all four": ["wandb", "tensorboard", "trackio", "mlflow"],
    "one that hangs": ["hangs"],
}


def measure(folder: Path, loggers: list[str]) -> tuple[list[float], float, float]:
    """Seconds per step in the loop's thread, of the end, and of CPU in the loggers' processes."""
    steps: list[float] = []
    end = 0.0
    observe = Feed.observe

    def timed(self: Feed, hook: str, **event: Any) -> list[str]:
        nonlocal end
        began = time.perf_counter()
        texts = observe(self, hook, **event)
        seconds = time.perf_counter() - began
        if hook == "on_step_end":
            steps.append(seconds)
        elif hook == "on_run_end":
            end = seconds
        return texts

    Feed.observe = timed  # type: ignore[method-assign]
    words = [
        f"trainer.ckpt_path={folder}",
        f"trainer.logger={loggers}",
        f"trainer.max_training_steps={STEPS}",
        "trainer.epochs=100",
        "trainer.ckpt_interval=0",
        "trainer.eval_interval=0",
        "trainer.logger_timeout_s=300" if loggers != ["hangs"] else "trainer.logger_timeout_s=5",
    ]
    before = elsewhere()
    try:
        with perform(Script()), open(os.devnull, "w") as nowhere:
            from rich.console import Console

            silent = Progress("run", STEPS, console=Console(file=nowhere), lines=False)
            carry_out(make_plan(["scripted"], overrides=words), progress=silent)
    finally:
        Feed.observe = observe  # type: ignore[method-assign]
    return steps, end, elsewhere() - before


def elsewhere() -> float:
    """CPU seconds of processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Print a table."""
    with tempfile.TemporaryDirectory() as name, installed(Path(name, "site")) as site:
        os.environ |= {"WANDB_MODE": "offline", "TRACKIO_DIR": str(Path(name, "trackio"))}
        entry_points = {LOGGERS: {"hangs": "skyrl_hangs"}}
        make_distribution(
            site, "skyrl-hangs", modules={"skyrl_hangs": HANGS}, entry_points=entry_points
        )
        discover(refresh=True)
        print(f"{STEPS} steps           µs per step: median   p99   s at the end   CPU s elsewhere")
        for case, loggers in CASES.items():
            steps, end, cpu = measure(Path(name, case), loggers)
            micros = sorted(1e6 * seconds for seconds in steps)
            median, last = statistics.median(micros), micros[int(0.99 * len(micros))]
            print(f"{case:34} {median:12.0f} {last:5.0f} {end:14.1f} {cpu:17.1f}")


if __name__ == "__main__":
    main()
