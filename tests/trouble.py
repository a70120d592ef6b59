"""A run under Ray, repeated again and again, in which one process of a chosen kind has trouble once.

    runs = Runs(lab, site, settings)
    done = runs.after("dies", rank=1, step=2)     # of the trainer; role="critic" for the critic's
    assert "trainer rank 1 on " in complaint(done)

What it ends with is judged here as far as every run must end so: within its deadline, with one
line and no traceback, and with no process left.
"""

import json
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from running import Lab, Outcome, ended, install_probe, settings, start, without_times

from skyrl_kernel.testing.distributions import make_distribution

RUNTIME = {
    "trainer.runtime": "ray",
    "trainer.placement.colocate_all": False,
    "trainer.fsdp.timeout_s": 20,
    "trainer.ckpt_interval": 1,
    "trainer.eval_interval": -1,
    "data.val_data": [],
}
UPDATES_PER_STEP = 2
WITHIN_S = 90.0
"""For a run to end after trouble: the deadline of collectives, the grace for other ranks, and what a
busy machine adds."""
MARK = "SKYRL_TEST_MARK"

TROUBLE = '''
"""Does once, in some computation of a loss in one rank, what ``order.json`` beside this says."""

import dataclasses
import json
import os
import resource
import signal
import sys
import time
from collections import Counter
from pathlib import Path

from skyrl_kernel.hookspecs import hookimpl

ORDER = Path(__file__).with_name("order.json")
seen = Counter()


def die():
    print("these are my last words", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def die_on_writing(name):
    def heard(event, args):
        if event == "open" and str(args[0]).endswith(name):
            die()

    sys.addaudithook(heard)


def do(what):
    if what == "dies":
        die()
    if what == "dies in its checkpoint":
        die_on_writing("trainer.json")
    if what == "hangs":
        time.sleep(600)
    if what == "raises":
        raise RuntimeError("no such luck")
    if what == "has no disk":
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))


def troubled(fn, role):
    def call(inputs):
        seen[role] += 1
        order = json.loads(ORDER.read_text()) if ORDER.exists() else {}
        here = {"role": role, "rank": os.environ.get("RANK"), "count": seen[role]}
        if here.items() <= order.items():
            ORDER.unlink()
            do(order["what"])
        return fn(inputs)

    return call if fn is not None else None


@hookimpl(wrapper=True)
def loss():
    inner = yield
    critic = troubled(inner.critic, "critic")
    return dataclasses.replace(inner, fn=troubled(inner.fn, "policy"), critic=critic)
'''


class Runs:
    """The same command, again and again.

    Args:
        lab: Has data, model and the folders of the runs.
        site: Where the plugins ``trouble`` and ``probe`` are installed to.
        algorithm: Name of a plugin.
        values: Settings besides those of the lab and `RUNTIME`.
    """

    def __init__(self, lab: Lab, site: Path, algorithm: str, values: Mapping[str, Any]) -> None:
        self.lab, self.site = lab, site
        self.order = site / "order.json"
        self.mark = uuid.uuid4().hex
        self._algorithm, self._values = algorithm, values
        install_probe(site)
        make_distribution(
            site,
            "skyrl-trouble",
            modules={"skyrl_trouble": TROUBLE},
            entry_points={"skyrl.plugins": {"trouble": "skyrl_trouble"}},
        )

    def words(self, name: str, changes: Mapping[str, Any]) -> list[str]:
        values = {"trainer.run_name": name} | RUNTIME | self._values | changes
        plugins = ("--plugin", self._algorithm, "--plugin", "trouble")
        return [*self.lab.words(name, *plugins), *settings(values)]

    def start(self, name: str = "run", **changes: Any) -> Any:
        """Start it; ``changes`` are keys with ``__`` for the dot."""
        words = self.words(name, {key.replace("__", "."): one for key, one in changes.items()})
        return start(*words, site=self.site, env={MARK: self.mark})

    def whole(self, name: str = "run", **changes: Any) -> Outcome:
        """Let it come to its end."""
        done = ended(self.start(name, **changes))
        assert done.code == 0, done.out + done.err
        self.check_nothing_is_left()
        return done

    def after(self, what: str, *, role: str = "policy", rank: int = 1, step: int = 1) -> Outcome:
        """Repeat the command; one rank has trouble in the ``step``-th step that it does now."""
        order = {
            "role": role,
            "rank": str(rank),
            "count": UPDATES_PER_STEP * (step - 1) + 1,
            "what": what,
        }
        self.order.write_text(json.dumps(order))
        began = time.monotonic()
        done = ended(self.start())
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

    def wait_for_step(self, process: Any, name: str = "run") -> None:
        """Return when the run has done one more step than before."""
        before = len(self.steps(name))
        while len(self.steps(name)) <= before:
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)


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


def process_ids(folder: Path) -> Mapping[str, int]:
    """Process → its id, in its latest life."""
    found = {}
    for file in (folder / "logs").glob("*.jsonl"):
        for line in map(json.loads, file.read_text().splitlines()):
            if line["event"] == "begun":
                found[line["process"]] = line["pid"]
    return found
