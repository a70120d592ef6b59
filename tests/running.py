"""Real runs that take seconds: the command line, a small config, and an env whose rewards vary.

`skyrl` calls the command in this process, since most of a short command is importing torch;
`start` makes a process of its own, where a process is the point.
"""

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skyrl_kernel import progress
from skyrl_kernel.cli import _exit_code
from skyrl_kernel.metrics import is_wall_clock
from skyrl_kernel.run import RunFolder
from skyrl_kernel.testing.distributions import make_distribution, on_path

COMMAND = Path(sys.executable).with_name("skyrl")


@dataclass(frozen=True)
class Outcome:
    """What a user saw."""

    code: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """What a refused command said: one message on standard error, exit code 2."""
        assert self.code == 2, f"exit code {self.code}\n{self.out}\n{self.err}"
        assert self.err.startswith("skyrl: ")
        assert "Traceback" not in self.out + self.err
        assert self.out == ""
        return self.err.removeprefix("skyrl: ").rstrip("\n")


def skyrl(*words: object) -> Outcome:
    """Call the command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = _exit_code([str(word) for word in words])
    progress.console().stderr = False  # ``--json`` moved it for the rest of the process
    return Outcome(code, out.getvalue(), err.getvalue())


def start(
    *words: object, site: Path | None = None, env: Mapping[str, str] | None = None
) -> "subprocess.Popen[str]":
    """Start the command in a process of its own; ``site`` holds distributions of the test."""
    added = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **(env or {})}
    if site is not None:
        added["PYTHONPATH"] = str(site)
    return subprocess.Popen(
        [str(COMMAND), *map(str, words)],
        env=os.environ | added,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: "subprocess.Popen[str]") -> Outcome:
    """Wait for it."""
    out, err = process.communicate(timeout=300)
    return Outcome(process.returncode, out, err)


# --- a run of seconds ---------------------------------------------------------------------

SMALL = {
    "trainer.train_batch_size": 4,
    "trainer.policy_mini_batch_size": 2,
    "trainer.micro_train_batch_size_per_gpu": 32,
    "trainer.micro_forward_batch_size_per_gpu": 32,
    "trainer.epochs": 2,
    "trainer.eval_interval": 2,
    "trainer.ckpt_interval": 2,
    "trainer.bf16": False,
    "trainer.gradient_checkpointing": False,
    "trainer.algorithm.use_kl_loss": False,
    "trainer.policy.optimizer_config.lr": 0.02,
    "generator.n_samples_per_prompt": 4,
    "generator.sampling_params.max_generate_length": 6,
    "generator.eval_sampling_params.temperature": 1.0,
    "environment.env_class": "probe",
}


def settings(values: Mapping[str, Any]) -> list[str]:
    """``key=value`` words."""
    return [f"{key}={json.dumps(value)}" for key, value in values.items()]


@dataclass(frozen=True)
class Lab:
    """A folder with data, where small runs of one model happen."""

    model: Path
    folder: Path

    def words(self, name: str = "run", /, *more: str, **changes: Any) -> list[str]:
        """The command that trains; ``changes`` are keys with ``__`` for the dot."""
        values = SMALL | {
            "trainer.policy.model.path": str(self.model),
            "trainer.ckpt_path": str(self.folder / "runs"),
            "trainer.run_name": name,
            "data.train_data": [str(self.rows("train", 8))],
            "data.val_data": [str(self.rows("val", 3))],
        }
        values |= {key.replace("__", "."): value for key, value in changes.items()}
        return ["run", *more, *settings(values)]

    def run(self, name: str = "run", /, *more: str, **changes: Any) -> Outcome:
        """Train in this process."""
        return skyrl(*self.words(name, *more, **changes))

    def rows(self, name: str, count: int, **columns: Any) -> Path:
        """A data file with ``count`` prompts; ``columns`` go into every row."""
        return self.write(
            name,
            [
                {
                    "prompt": [{"role": "user", "content": f"Digits please {number}"}],
                    "data_source": f"probe/{number % 2}",
                    **columns,
                }
                for number in range(count)
            ],
        )

    def write(self, name: str, rows: list[dict[str, Any]]) -> Path:
        """A data file with these rows."""
        file = self.folder / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return file

    def at(self, name: str = "run") -> RunFolder:
        """The folder of the run of that name."""
        return RunFolder(self.folder / "runs" / name)

    def leavings(self) -> list[str]:
        """Everything in the folder of run folders."""
        runs = self.folder / "runs"
        return sorted(str(path.relative_to(runs)) for path in runs.rglob("*"))


def without_times(metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Metrics that a repetition must reproduce."""
    return [
        {key: value for key, value in line.items() if not is_wall_clock(key)} for line in metrics
    ]


# --- an env that rewards digits, or makes trouble as its row says -----------------------------

PROBE = '''
"""Rewards the share of digits. A row's column ``trouble`` says what goes wrong instead: in the
first of its episodes, or in every one if the column ``always`` is true."""

import math
import threading
import time

from skyrl_kernel.env import EnvStep, TextEnv
from skyrl_kernel.hookspecs import hookimpl


_done = set()
_lock = threading.Lock()


def _trouble(extras):
    trouble = extras.get("trouble")
    with _lock:
        if trouble in _done and not extras.get("always"):
            return None
        _done.add(trouble)
    return trouble


class Probe(TextEnv):
    def __init__(self, extras):
        super().__init__(extras)
        self.trouble = _trouble(extras)
        self.share = 0.0

    def step(self, action):
        if self.trouble == "raises":
            raise RuntimeError("the judge is ill")
        if self.trouble == "hangs":
            time.sleep(600)
        if self.trouble == "wrong type":
            return [1.0, True]
        self.share = sum(c.isdigit() for c in action) / max(1, len(action))
        reward = {"not finite": math.nan, "constant": 0.5}.get(self.trouble, self.share)
        return EnvStep(observations=[], reward=reward, done=True, metadata={})

    def get_metrics(self):
        return {"exact_match": float(self.share == 1.0)}


@hookimpl
def make_env(name, extras):
    return Probe(extras) if name == "probe" else None
'''


def install_probe(site: Path) -> None:
    """The env ``probe``, as a distribution."""
    make_distribution(
        site,
        "skyrl-env-probe",
        modules={"skyrl_env_probe": PROBE},
        entry_points={"skyrl.envs": {"probe": "skyrl_env_probe"}},
    )


@contextlib.contextmanager
def probe_installed(site: Path) -> Iterator[Path]:
    """While the block runs, the env ``probe`` is installed in this process."""
    install_probe(site)
    with on_path(site):
        yield site
