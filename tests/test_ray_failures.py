"""What becomes of a run under Ray when one of its processes fails, dies, hangs or has no disk left.

Two ranks of the trainer and an engine, real processes that meet over gloo. Each trouble ends the
run within its deadline and with a line that says which process and why; the same command goes on,
and at last the run has the numbers of one that nothing happened to.
"""

import json
import os
import re
import signal
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from running import Lab, Outcome, ended, install_probe, settings, start, without_times

from skyrl_kernel.testing.distributions import make_distribution

pytest.importorskip("ray")
pytestmark = pytest.mark.slow

RUNTIME = {
    "trainer.runtime": "ray",
    "trainer.placement.colocate_all": False,
    "trainer.placement.policy_num_gpus_per_node": 2,
    "trainer.fsdp.timeout_s": 20,
    "trainer.ckpt_interval": 1,
    "trainer.eval_interval": -1,
    "data.val_data": [],
}
STEPS = 6
UPDATES_PER_STEP = 2
WITHIN_S = 90.0
"""For a run to end after trouble: the deadline of collectives, the grace for other ranks, and what a
busy machine adds."""
MARK = "SKYRL_TEST_MARK"

TROUBLE = '''
"""Does once, in some computation of the loss in one rank, what ``order.json`` beside this says."""

import dataclasses
import json
import os
import resource
import signal
import time
from pathlib import Path

from skyrl_kernel.hookspecs import hookimpl

ORDER = Path(__file__).with_name("order.json")
seen = 0


def do(what):
    if what == "dies":
        print("these are my last words", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "hangs":
        time.sleep(600)
    if what == "raises":
        raise RuntimeError("no such luck")
    if what == "has no disk":
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))


@hookimpl(wrapper=True)
def loss():
    inner = yield

    def fn(inputs):
        global seen
        seen += 1
        order = json.loads(ORDER.read_text()) if ORDER.exists() else {}
        if order.get("rank") == os.environ.get("RANK") and order.get("count") == seen:
            ORDER.unlink()
            do(order["what"])
        return inner.fn(inputs)

    return dataclasses.replace(inner, fn=fn)
'''


class Runs:
    """The same command, again and again."""

    def __init__(self, lab: Lab, site: Path) -> None:
        self.lab, self.site = lab, site
        self.order = site / "order.json"
        self.mark = uuid.uuid4().hex

    def words(self, name: str) -> list[str]:
        values = {"trainer.epochs": 3, "trainer.run_name": name} | RUNTIME
        return [*self.lab.words(name, "--plugin", "grpo", "--plugin", "trouble"), *settings(values)]

    def start(self, name: str) -> Any:
        return start(*self.words(name), site=self.site, env={MARK: self.mark})

    def after(self, what: str, *, rank: int = 1, step: int = 1) -> Outcome:
        """Repeat the command; one rank has trouble in the ``step``-th step that it does now."""
        count = UPDATES_PER_STEP * (step - 1) + 1
        self.order.write_text(json.dumps({"rank": str(rank), "count": count, "what": what}))
        began = time.monotonic()
        done = ended(self.start("run"))
        assert not self.order.exists(), done.err
        assert time.monotonic() - began < 2 * WITHIN_S
        assert done.code == 1, done.out + done.err
        assert "Traceback" not in done.out + done.err
        self.check_nothing_is_left()
        print(done.err)  # for who reads why this failed
        return done

    def check_nothing_is_left(self) -> None:
        """No process of the run lives on: of the command, of Ray, of the run's."""
        until = time.monotonic() + 20
        while left := processes_with(self.mark):
            assert time.monotonic() < until, left
            time.sleep(0.2)

    def steps(self, name: str = "run") -> list[dict[str, Any]]:
        return without_times(self.lab.at(name).read_metrics())


def processes_with(mark: str) -> list[str]:
    """Command lines of all processes that were started with this mark."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_text().replace("\0", " "))
        except OSError:  # gone, or somebody else's
            continue
    return found


def complaint(done: Outcome) -> str:
    """The line that says what happened."""
    (line,) = [line for line in done.err.splitlines() if line.startswith("skyrl: ")]
    return line


def first_processes(folder: Path) -> Mapping[str, int]:
    """Process → its id, in its latest life."""
    found = {}
    for file in (folder / "logs").glob("*.jsonl"):
        for line in map(json.loads, file.read_text().splitlines()):
            if line["event"] == "begun":
                found[line["process"]] = line["pid"]
    return found


@pytest.fixture(scope="module")
def runs(random_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    site = tmp_path_factory.mktemp("site")
    install_probe(site)
    make_distribution(
        site,
        "skyrl-trouble",
        modules={"skyrl_trouble": TROUBLE},
        entry_points={"skyrl.plugins": {"trouble": "skyrl_trouble"}},
    )
    return Runs(Lab(random_model, tmp_path_factory.mktemp("lab")), site)


@pytest.mark.timeout(1800)
def test_whatever_happens_to_a_process_is_told_and_the_same_command_loses_nothing(
    runs: Runs,
) -> None:
    undisturbed = ended(runs.start("undisturbed"))
    assert undisturbed.code == 0, undisturbed.err
    runs.check_nothing_is_left()

    line = complaint(runs.after("raises"))
    assert re.search(
        r"plugin 'trouble' \(skyrl-trouble [\d.]+\) failed in hook 'loss', step 1, process trainer rank 1 "
        r"on \S+: RuntimeError: .*no such luck",
        line,
    )

    done = runs.after("dies", step=2)
    line = complaint(done)
    assert "trainer rank 1 on " in line
    assert "has died: its process ended without a word to Ray, as after kill -9" in line
    assert "The last it printed: 'these are my last words'" in line
    assert "the same command goes on after step 1" in done.err

    line = complaint(runs.after("hangs", rank=0, step=2))
    assert "trainer rank 0 on " in line
    assert "does not answer: it hangs" in line

    done = runs.after("has no disk")
    assert "trainer rank 1 on " in complaint(done)
    assert "File too large" in complaint(done)
    assert "the same command goes on after step 2" in done.err

    process = runs.start("run")
    wait_for_step(runs, process)
    os.kill(first_processes(runs.lab.at().path)["engine 0"], signal.SIGKILL)
    done = ended(process)
    assert done.code == 1
    assert "engine 0 on " in complaint(done)
    assert "has died" in complaint(done)
    runs.check_nothing_is_left()

    done = ended(runs.start("run"))
    assert done.code == 0, done.err
    assert f"finished at step {STEPS}" in done.out
    assert runs.steps() == runs.steps("undisturbed")


@pytest.mark.timeout(400)
def test_a_ray_that_ends_under_a_run_is_told_in_a_line(runs: Runs) -> None:
    process = runs.start("without_ray")
    wait_for_step(runs, process, "without_ray")
    os.kill(raylet_of(process.pid), signal.SIGKILL)
    done = ended(process)
    assert done.code == 1
    assert "Traceback" not in done.out + done.err
    assert "the raylet" in complaint(done)
    runs.check_nothing_is_left()


def raylet_of(pid: int) -> int:
    """The process of Ray's that manages this machine, of the Ray that the command has started."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    names = {int(child): Path(f"/proc/{child}/comm").read_text() for child in children}
    (found,) = [child for child, name in names.items() if name.startswith("raylet")]
    return found


def wait_for_step(runs: Runs, process: Any, name: str = "run") -> None:
    """Return when the run has done one more step than before."""
    before = len(runs.steps(name))
    while len(runs.steps(name)) <= before:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
