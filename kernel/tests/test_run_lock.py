import os
import signal
import subprocess
import sys
import time

import pytest

from skyrl_kernel.errors import ResumeError
from skyrl_kernel.run.folder import RunFolder

HOLD = """
import sys, time
from pathlib import Path
from skyrl_kernel.run.folder import RunFolder
folder = RunFolder.create(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""

HOLD_AND_FORK = """
import os, sys, time
from pathlib import Path
from skyrl_kernel.run.folder import RunFolder
folder = RunFolder.create(Path(sys.argv[1]))
child = os.fork()
if child == 0:
    time.sleep(60)
print(child, flush=True)
time.sleep(60)
"""


def start(code, path):
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    with process.stdout as out:
        return process, out.readline().strip()


def test_a_second_process_is_refused_by_one_line_that_names_the_first(tmp_path):
    holder, _ = start(HOLD, tmp_path / "run")
    try:
        with pytest.raises(ResumeError, match=f"in use by process {holder.pid} on ") as caught:
            RunFolder.create(tmp_path / "run")
        assert "trainer.run_name" in str(caught.value)
        assert "\n" not in str(caught.value)
        with pytest.raises(ResumeError, match="in use"):
            RunFolder(tmp_path / "run").set_aside()
        assert (tmp_path / "run").is_dir()
    finally:
        holder.kill()
        holder.wait()


def test_a_killed_process_holds_nothing(tmp_path):
    holder, _ = start(HOLD, tmp_path / "run")
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    RunFolder.create(tmp_path / "run").close()


def test_a_forked_worker_that_outlives_its_killed_controller_holds_nothing(tmp_path):
    controller, worker = start(HOLD_AND_FORK, tmp_path / "run")
    try:
        controller.send_signal(signal.SIGKILL)
        controller.wait()
        time.sleep(0.1)
        os.kill(int(worker), 0)  # it is still there
        RunFolder.create(tmp_path / "run").close()
    finally:
        os.kill(int(worker), signal.SIGKILL)


def test_two_objects_of_one_process_cannot_hold_the_same_folder(tmp_path):
    with RunFolder.create(tmp_path / "run"), pytest.raises(ResumeError, match="in use"):
        RunFolder.create(tmp_path / "run")
    RunFolder.create(tmp_path / "run").close()
