"""Runs `skyrl` as a user does, in a process of its own, and reads what it left behind."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from skyrl_kernel.testing.distributions import make_distribution

HERE = Path(__file__).parent
SKYRL = Path(sys.executable).with_name("skyrl")
CONTROLS = (
    "random_reward",
    "led_start",
    "time_limit",
    "flipped_advantages",
    "shuffled_advantages",
    "train_on_replies",
)

Numbers = Mapping[str, float]


class FailedError(RuntimeError):
    """A command of the benchmark failed; the message ends with what it said."""


def words(values: Mapping[str, Any]) -> list[str]:
    """Config as ``key=value`` words."""
    return [f"{key}={json.dumps(value)}" for key, value in values.items()]


def environment(*folders: Path, **variables: str) -> dict[str, str]:
    """This process's environment with these folders installed and these variables set.

    One thread unless the caller says otherwise: the figures should not depend on
    who else uses the machine's cores.
    """
    path = [str(folder) for folder in folders]
    if os.environ.get("PYTHONPATH"):
        path.append(os.environ["PYTHONPATH"])
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "SKYRL_NO_PROGRESS": "1",
        "PYTHONPATH": os.pathsep.join(path),
        **variables,
    }


def install_controls(folder: Path) -> list[Path]:
    """Make the plugins of controls/ installed for processes with these folders on their path."""
    make_distribution(
        folder,
        "skyrl-controls",
        entry_points={"skyrl.plugins": {name: f"skyrl_controls.{name}" for name in CONTROLS}},
        summary="Control experiments.",
    )
    return [folder, HERE / "controls"]


def call(command: Sequence[str | Path], env: Mapping[str, str], log: Path | None = None) -> str:
    """Run a command to its end.

    Args:
        command: Program and arguments.
        env: Its environment.
        log: Where to keep what it says; default: nowhere.

    Returns:
        Its standard output.

    Raises:
        FailedError: It ended with another code than 0.
    """
    return timed_call(command, env, log)[0]


def timed_call(
    command: Sequence[str | Path], env: Mapping[str, str], log: Path | None = None
) -> tuple[str, float]:
    """`call`, and the CPU seconds that it took."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(
            [str(part) for part in command], env=dict(env), stdout=out, stderr=err
        )
        # Not process.wait(): only this tells the time of one child apart from the others'.
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        said, complained = out.read(), err.read()
    if log is not None:
        log.write_text(said + complained)
    if process.returncode:
        words_of_it = (complained or said).strip()[-2000:]
        shown = " ".join(str(part) for part in command)
        raise FailedError(f"exit code {process.returncode} from: {shown}\n{words_of_it}")
    return said, used.ru_utime + used.ru_stime


def train(
    plugins: Sequence[str], values: Mapping[str, Any], env: Mapping[str, str], folder: Path
) -> float:
    """``skyrl run``, its run folder at ``folder``; continues what was interrupted.

    Returns:
        CPU seconds of the command, its start-up included.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    place = {"trainer.ckpt_path": str(folder.parent), "trainer.run_name": folder.name}
    flags = [flag for plugin in plugins for flag in ("--plugin", plugin)]
    _, seconds = timed_call(
        [SKYRL, "run", *flags, *words({**values, **place})],
        env,
        log=folder.with_suffix(".log"),
    )
    return seconds


def evaluate(
    target: str | Path,
    plugins: Sequence[str],
    values: Mapping[str, Any],
    env: Mapping[str, str],
) -> dict[str, float]:
    """``skyrl eval`` of a run or a model; names of metrics without their prefix."""
    flags = [flag for plugin in plugins for flag in ("--plugin", plugin)]
    said = call([SKYRL, "eval", target, *flags, "--json", *words(values)], env)
    numbers: dict[str, float] = json.loads(said.splitlines()[-1])["metrics"]
    return strip(numbers)


def strip(numbers: Numbers) -> dict[str, float]:
    """``eval/all/NAME`` as NAME."""
    prefix = "eval/all/"
    return {name[len(prefix) :]: v for name, v in numbers.items() if name.startswith(prefix)}


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The lines of a run folder's ``metrics.jsonl``; the first one is step 0, if it was evaluated."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def exported(folder: Path) -> Path:
    """The newest model that a run left behind."""
    models = list((folder / "export").glob("global_step_*"))
    return max(models, key=lambda path: int(path.name.rpartition("_")[2]))
