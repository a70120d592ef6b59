"""The demo on a Ray of its own: the numbers of one process, a kill in the middle, nothing left behind."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from skyrl_kernel.errors import CapabilityError
from skyrl_kernel.metrics import is_wall_clock
from skyrl_kernel.plan import make_plan

RAY = "trainer.runtime=ray"
SHORT = (
    "trainer.max_training_steps=4",
    "trainer.eval_interval=2",
    "trainer.ckpt_interval=1",
    "environment.multiply.test_size=64",
    "trainer.train_batch_size=8",
    "trainer.policy_mini_batch_size=8",
)
MARK = "SKYRL_TEST_MARK"


def start(folder: Path, *words: str, mark: str) -> "subprocess.Popen[bytes]":
    command = [str(Path(sys.executable).with_name("skyrl")), "run", "--plugin", "demo"]
    command += [*SHORT, f"trainer.ckpt_path={folder}", "trainer.logger=[]", *words]
    with (folder / "output.txt").open("ab") as output:
        return subprocess.Popen(
            command,
            stdout=output,
            stderr=output,
            env={**os.environ, MARK: mark, "OMP_NUM_THREADS": "1"},
        )


def finish(folder: Path, *words: str) -> list[dict[str, float]]:
    mark = uuid.uuid4().hex
    process = start(folder, *words, mark=mark)
    try:
        assert process.wait(300) == 0, (folder / "output.txt").read_text()
    finally:
        process.kill()
    assert processes_with(mark) == []
    return numbers(folder)


def numbers(folder: Path) -> list[dict[str, float]]:
    """Of each step, those that do not tell the time."""
    lines = (folder / "demo" / "metrics.jsonl").read_text().splitlines()
    return [
        {key: value for key, value in json.loads(line).items() if not is_wall_clock(key)}
        for line in lines
    ]


def processes_with(mark: str) -> list[str]:
    """Commands of all that were started, however indirectly, with this mark."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                if mark.encode() in (folder / "environ").read_bytes():
                    found.append((folder / "cmdline").read_bytes().decode().replace("\0", " "))
            except OSError:  # it has just ended, or is somebody else's
                continue
    return found


def wait_until(is_so: Callable[[], bool], seconds: float) -> bool:
    until = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
def test_killed_in_the_middle_it_goes_on_to_the_numbers_of_one_process_and_leaves_nothing(
    tmp_path: Path,
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    expected = finish(here, "trainer.runtime=local")

    mark = uuid.uuid4().hex
    process = start(there, RAY, mark=mark)
    steps = there / "demo" / "checkpoints" / "global_step_2"
    try:
        assert wait_until(steps.is_dir, 240), (there / "output.txt").read_text()
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    # Ray's own agent looks for its parent every now and then, on a busy machine after a minute.
    assert wait_until(lambda: not processes_with(mark), 180), processes_with(mark)

    assert finish(there, RAY) == expected  # bit for bit


def test_memory_that_is_not_shared_is_not_taken_for_shared() -> None:
    key = "generator.inference_engine.weight_sync_backend"
    plan = make_plan(["demo"], overrides=[RAY])
    assert plan.stages["sync_weights"].provider.name == "push"
    with pytest.raises(CapabilityError, match=rf"{key}=shared needs .*; use {key}=auto"):
        make_plan(["demo"], overrides=[RAY, f"{key}=shared"])


def test_several_ranks_choose_ray_and_one_does_not() -> None:
    ranks = ["trainer.placement.policy_num_gpus_per_node=2"]
    ranks += ["generator.inference_engine.num_engines=2"]
    several, one = make_plan(["demo"], overrides=ranks), make_plan(["demo"])
    assert several.tree.trainer.runtime == "ray"
    assert several.config.origins["trainer.runtime"] == f"auto, for {ranks[0]}"
    assert one.tree.trainer.runtime == "local"
