"""The schedule of asynchronous training as a discrete-event simulation, for 1 to 1024 engines.

    .venv/bin/python benchmarks/simulation.py            if engines.json has other seconds than before
    .venv/bin/python benchmarks/simulation.py --fresh    in any case

When a group may begin is decided by the kernel's own `Admission`; the rest is the loop's order of
events (skyrl_kernel.producer and skyrl_kernel.loop):

| who | waits for | takes |
|---|---|---|
| a group | admission | until the last of its trajectories has ended |
| a trajectory | a slot of the engine with the fewest trajectories | its tokens, then its env's wait without a slot |
| the trainer | the step's groups, in the order in which they began | training, then the sync |
| the sync | – | some time in which no engine generates; then the version advances |

The seconds are those of the synchronous runs in engines.json, one slot for each trajectory of a
step. It is checked with the asynchronous runs there: nothing of them was used. Then the work
grows with the engines, and completions and waits differ in length.
"""

import heapq
import itertools
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import click
import numpy as np
import report
import simpy
from overlap import UNSTEADY
from text import Numbers, to_json

from skyrl_kernel.admission import Admission

ENGINES = [2**power for power in range(3, 11)]
STALENESS = [0, 1, 2, 4]
GROUPS_PER_ENGINE = 2
"""Of a step; few, so that a thousand engines are simulated within a minute."""
STEADY = 12, 64
"""Steps that are looked at, fewest and most, after those that more staleness makes ready at once."""
TRAJECTORIES = 2**16
"""That are looked at, between those bounds: the last one of a step differs much from step to step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """What is simulated."""

    engines: int = 1
    slots: int
    """Trajectories that one engine generates at a time."""
    groups: int
    """Of a step."""
    samples: int
    """Trajectories of a group."""
    tokens: int
    """Of a completion; the mean where they vary."""
    token_s: float
    wait_s: float
    """Of the env, after a completion; the mean where they vary."""
    train_s: float
    sync_s: float
    staleness: int
    """``max_staleness``."""
    steps: int
    varies: bool = False
    """Lengths are uniform from 1 token to twice the mean, waits exponential; else all are equal."""


def simulate(work: Workload) -> list[float]:
    """Seconds from the start of the run to the end of each step."""
    return _Run(work).step_ends


class _Run:
    """One run, from its start to its end."""

    def __init__(self, work: Workload) -> None:
        self.work = work
        self.step_ends: list[float] = []
        self._time = simpy.Environment()
        self._rng = np.random.default_rng(0)
        self._admission = Admission(
            target=work.groups, max_staleness=work.staleness, total=work.groups * work.steps
        )
        self._advanced = self._time.event()
        self._groups: list[simpy.Process] = []
        self._slots = [simpy.Resource(self._time, work.slots) for _ in range(work.engines)]
        self._assigned = [0] * work.engines
        self._least = [(0, engine) for engine in range(work.engines)]
        self._resumes_at = 0.0
        self._stopped_s = 0.0
        """In all, the sync in progress included."""
        self._time.process(self._producer())
        self._time.run(self._time.process(self._trainer()))

    def _producer(self) -> Iterator[simpy.Event]:
        while len(self._groups) < self._admission.total:
            while self._admission.capacity:
                self._admission.begin()
                self._groups.append(self._time.process(self._group()))
            yield self._advanced

    def _group(self) -> Iterator[simpy.Event]:
        yield self._time.all_of(
            [self._time.process(self._trajectory()) for _ in range(self.work.samples)]
        )
        self._admission.end()

    def _trajectory(self) -> Iterator[simpy.Event]:
        work = self.work
        tokens, wait_s = work.tokens, work.wait_s
        if work.varies:
            tokens = int(self._rng.integers(1, 2 * tokens))
            wait_s = self._rng.exponential(wait_s)
        engine = self._take_engine()
        with self._slots[engine].request() as slot:
            yield slot
            yield from self._generating(tokens * work.token_s)
        self._give_back(engine)
        yield self._time.timeout(wait_s)

    def _generating(self, seconds: float) -> Iterator[simpy.Event]:
        """So many seconds in which no sync stops the engines."""
        if self._time.now < self._resumes_at:
            yield self._time.timeout(self._resumes_at - self._time.now)
        while seconds > 0:
            stopped_s = self._stopped_s
            yield self._time.timeout(seconds)
            seconds = self._stopped_s - stopped_s  # what a sync took of them

    def _trainer(self) -> Iterator[simpy.Event]:
        work = self.work
        for step in range(work.steps):
            for index in range(step * work.groups, (step + 1) * work.groups):
                yield self._groups[index]
            yield self._time.timeout(work.train_s)
            self._stopped_s += work.sync_s
            self._resumes_at = self._time.now + work.sync_s
            yield self._time.timeout(work.sync_s)
            self.step_ends.append(self._time.now)
            self._admission.advance()
            advanced, self._advanced = self._advanced, self._time.event()
            yield advanced.succeed()  # the producer hears of it first

    def _take_engine(self) -> int:
        """The one with the fewest trajectories."""
        while True:
            assigned, engine = heapq.heappop(self._least)
            if assigned == self._assigned[engine]:  # else there is a newer entry
                break
        self._assign(engine, +1)
        return engine

    def _give_back(self, engine: int) -> None:
        self._assign(engine, -1)

    def _assign(self, engine: int, change: int) -> None:
        self._assigned[engine] += change
        heapq.heappush(self._least, (self._assigned[engine], engine))


# --- what is asked of it ---------------------------------------------------------------------


def measured_workload(overlap: Numbers, synchronous: Numbers, staleness: int) -> Workload:
    """The workload of engines.json with the stages of one of its synchronous runs."""
    generation_s = synchronous["generate_s"] - overlap["generation_s"]  # the rest is the env's wait
    return Workload(
        slots=overlap["groups"] * overlap["samples"],
        groups=overlap["groups"],
        samples=overlap["samples"],
        tokens=overlap["output_tokens"],
        token_s=generation_s / overlap["output_tokens"],
        wait_s=overlap["generation_s"],
        train_s=synchronous["train_s"],
        sync_s=synchronous["sync_s"],
        staleness=staleness,
        steps=overlap["steps"],
    )


def check(overlap: Numbers) -> list[dict[str, float]]:
    """By pair of runs: seconds of an asynchronous step, measured and simulated."""
    checked = []
    for pair in overlap["pairs"]:
        work = measured_workload(overlap, pair["sync"], overlap["staleness"])
        ends = simulate(work)
        seconds = [after - before for before, after in itertools.pairwise([0.0, *ends])]
        simulated = statistics.median(seconds[UNSTEADY:])
        checked.append({"measured_s": pair["async"]["step_s"], "simulated_s": simulated})
    return checked


def throughput(work: Workload) -> float:
    """Trained steps over those that the engines' slots or the trainer would allow, whichever are fewer."""
    ahead = work.staleness + 2
    fewest, most = STEADY
    steady = min(max(TRAJECTORIES // (work.groups * work.samples), fewest), most)
    ends = simulate(replace(work, steps=steady + 2 * ahead))
    step_s = (ends[ahead + steady - 1] - ends[ahead - 1]) / steady
    generated = work.groups * work.samples * work.tokens * work.token_s
    return max(generated / (work.engines * work.slots), work.train_s + work.sync_s) / step_s


def grow(overlap: Numbers) -> Mapping[str, Sequence[float]]:
    """`throughput` by staleness, at each of `ENGINES`: a step has twice as many groups on twice as many engines."""
    stages = [pair["sync"] for pair in overlap["pairs"]]
    typical = {name: statistics.median(one[name] for one in stages) for name in stages[0]}
    curves: dict[str, list[float]] = {}
    for staleness in STALENESS:
        one = measured_workload(overlap, typical, staleness)
        curves[str(staleness)] = []
        for engines in ENGINES:
            work = replace(
                one,
                engines=engines,
                slots=GROUPS_PER_ENGINE * one.samples,
                groups=GROUPS_PER_ENGINE * engines,
                varies=True,
            )
            curves[str(staleness)].append(throughput(work))
            click.echo(
                f"simulation: {engines} engines, max_staleness {staleness}: "
                f"{100 * curves[str(staleness)][-1]:.0f} %"
            )
    return curves


@click.command()
@click.option("--fresh", is_flag=True, help="Also if it was simulated with these seconds before.")
def main(fresh: bool) -> None:
    """Check, simulate, and write simulation.json and RESULTS.md."""
    engines = json.loads(report.ENGINES.read_text()) if report.ENGINES.exists() else {}
    known = json.loads(report.SIMULATION.read_text()) if report.SIMULATION.exists() else {}
    if "overlap" not in engines:
        click.echo(
            "simulation: not run: engines.json has no asynchronous runs to take the seconds from; "
            'make bench-engines ARGS="--only overlap" measures them'
        )
    elif fresh or known.get("pairs") != engines["overlap"]["pairs"]:
        overlap = engines["overlap"]
        results = {
            "pairs": overlap["pairs"],
            "check": check(overlap),
            "engines": ENGINES,
            "groups_per_engine": GROUPS_PER_ENGINE,
            "samples": overlap["samples"],
            "curves": grow(overlap),
        }
        report.SIMULATION.write_text(to_json(results))
    report.write()


if __name__ == "__main__":
    main()
