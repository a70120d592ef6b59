"""How busy the machines of a run are: SkyRL's ``ray/…`` metrics.

Ray's own counters of its nodes are served only where Ray was installed with its dashboard, so
here an actor on each node looks by itself, every few seconds, beside the step. What the
controller asks for when a step has ended is there already.
"""

import collections
import contextlib
import shutil
import subprocess
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from skyrl_kernel.logs import get_logger

INTERVAL_S = 5.0
"""Between two looks at a machine; SkyRL's."""
PATIENCE_S = 0.5
"""Longest wait for machines at the end of a step. One that is late is not waited for again until
it has answered."""
_SAID_AFTER_S = 30.0
"""For which a machine may be silent before that is said: its actor may only just begin."""
_GPU_DEADLINE_S = 10.0
_GIB, _MIB_PER_GIB = 2**30, 1024
_QUERY = "index,utilization.gpu,memory.used"
_CGROUPS = (
    ("memory/memory.usage_in_bytes", "memory/memory.stat", "total_"),  # version 1
    ("memory.current", "memory.stat", ""),
)
"""Bytes in use, where they are counted by kind, and how those names begin."""

Sample = Mapping[str, float]
"""``cpu_ram_used_gb`` of one machine, and of each GPU ``gpu.N.util`` and ``gpu.N.mem_used_gb``."""

log = get_logger(__name__)


def node_metrics(nodes: Sequence[Sample]) -> dict[str, float]:
    """``ray/…`` of all machines and their averages; nothing stands for what was not measured.

    Args:
        nodes: [nodes] what each measured, in the order of their numbers; empty of one that is silent.

    Example:
        >>> one = {"cpu_ram_used_gb": 8.0, "gpu.0.util": 90.0, "gpu.1.util": 30.0}
        >>> found = node_metrics([one, {}, {"cpu_ram_used_gb": 4.0}])
        >>> found["ray/node.0.gpu.1.util"], found["ray/gpu.util.avg"]
        (30.0, 60.0)
        >>> found["ray/node.2.cpu_ram_used_gb"], found["ray/cpu_ram_used_gb.avg"]
        (4.0, 6.0)
    """
    named = [(name, value) for sample in nodes for name, value in sample.items()]
    averages = {
        "gpu.util.avg": [value for name, value in named if name.endswith(".util")],
        "gpu.mem_used_gb.avg": [value for name, value in named if name.endswith(".mem_used_gb")],
        "cpu_ram_used_gb.avg": [value for name, value in named if name == "cpu_ram_used_gb"],
    }
    return {
        **{
            f"ray/node.{number}.{name}": value
            for number, sample in enumerate(nodes)
            for name, value in sample.items()
        },
        **{f"ray/{name}": sum(of) / len(of) for name, of in averages.items() if of},
    }


def mean_sample(samples: Sequence[Sample]) -> dict[str, float]:
    """The mean of each number over the samples that have it.

    Example:
        >>> mean_sample([{"gpu.0.util": 100.0}, {"gpu.0.util": 50.0, "cpu_ram_used_gb": 3.0}])
        {'gpu.0.util': 75.0, 'cpu_ram_used_gb': 3.0}
    """
    columns: dict[str, list[float]] = {}
    for sample in samples:
        for name, value in sample.items():
            columns.setdefault(name, []).append(value)
    return {name: sum(values) / len(values) for name, values in columns.items()}


def parse_gpus(text: str) -> dict[str, float]:
    r"""What ``nvidia-smi`` says of GPUs, as numbers of a `Sample`.

    Args:
        text: A line for each: its index, percent of the time in which it computed, MiB in use. What
            it does not know, as of a GPU that is divided, is no number, and left out.

    Example:
        >>> parse_gpus("0, 87, 40960\n1, [N/A], 512\n")
        {'gpu.0.util': 87.0, 'gpu.0.mem_used_gb': 40.0, 'gpu.1.mem_used_gb': 0.5}
    """
    found: dict[str, float] = {}
    for line in text.splitlines():
        index, *cells = (cell.strip() for cell in line.split(","))
        for name, cell, unit in zip(
            ("util", "mem_used_gb"), cells, (1, _MIB_PER_GIB), strict=False
        ):
            with contextlib.suppress(ValueError):
                found[f"gpu.{index}.{name}"] = float(cell) / unit
    return found


def used_bytes(
    cgroup: Path = Path("/sys/fs/cgroup"), meminfo: Path = Path("/proc/meminfo")
) -> int | None:
    """Memory in use on this machine, without cached files; in a container, its own alone.

    Args:
        cgroup: Where Linux counts what a container uses.
        meminfo: And what the whole machine has.

    Returns:
        Bytes; None where neither is known, as on other systems than Linux.
    """
    for usage, stat, prefix in _CGROUPS:
        with contextlib.suppress(OSError, ValueError, KeyError):
            kinds = dict(line.split() for line in (cgroup / stat).read_text().splitlines())
            cached = sum(int(kinds[f"{prefix}{kind}"]) for kind in ("inactive_file", "active_file"))
            return max(int((cgroup / usage).read_text()) - cached, 0)
    with contextlib.suppress(OSError):
        rows = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        total, available = (int(rows[key].split()[0]) for key in ("MemTotal", "MemAvailable"))
        return (total - available) * 1024
    return None


def look() -> dict[str, float]:
    """One sample of this machine."""
    used = used_bytes()
    sample = {} if used is None else {"cpu_ram_used_gb": used / _GIB}
    command = shutil.which("nvidia-smi")
    if command is None:
        return sample
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        asked = subprocess.run(
            [command, f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=_GPU_DEADLINE_S,
            check=True,
        )
        sample |= parse_gpus(asked.stdout)
    return sample


class Gauge:
    """An actor: looks at its machine every `INTERVAL_S`, from a thread of its own."""

    def __init__(self) -> None:
        self._last: Sample = {}
        self._samples: collections.deque[Sample] = collections.deque(maxlen=10_000)
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        while True:
            self._last = look()
            self._samples.append(self._last)
            time.sleep(INTERVAL_S)

    def take(self) -> Sample:
        """The mean since the call before; the newest sample again if that was just now."""
        samples = [self._samples.popleft() for _ in range(len(self._samples))]
        return mean_sample(samples) if samples else self._last


class Monitor:
    """The gauges of all machines of a run; knows none at first."""

    def __init__(self) -> None:
        self._nodes: dict[str, _Node] = {}

    def watch(self, nodes: Iterable[str], environment: Mapping[str, Any]) -> None:
        """Begin to measure machines.

        Args:
            nodes: Ray's ids; those that are watched already stay as they are.
            environment: Ray's ``runtime_env`` of a process that has the kernel there.
        """
        for node in nodes:
            if node not in self._nodes:
                self._nodes[node] = _Node(node, environment)

    def measure(self) -> dict[str, float]:
        """``ray/…`` since the call before, of the machines that answer in time."""
        asked = [reference for node in self._nodes.values() if (reference := node.ask())]
        if asked:
            ray.wait(asked, num_returns=len(asked), timeout=PATIENCE_S)
        return node_metrics([node.answer() for node in self._nodes.values()])

    def close(self) -> None:
        """End the gauges."""
        for node in self._nodes.values():
            ray.kill(node.gauge)
        self._nodes.clear()


class _Node:
    """One machine, and what it was asked."""

    def __init__(self, node: str, environment: Mapping[str, Any]) -> None:
        options: dict[str, Any] = {"runtime_env": dict(environment)} if environment else {}
        pinned = NodeAffinitySchedulingStrategy(node_id=node, soft=False)
        self.gauge: Any = (
            ray.remote(Gauge).options(num_cpus=0, scheduling_strategy=pinned, **options).remote()
        )
        self._node = node
        self._asked: Any = None
        self._since = 0.0
        self._is_lost = self._is_said = False

    def ask(self) -> Any:
        """A reference to the answer, unless the one before is still waited for, or none will come."""
        if self._asked is not None or self._is_lost:
            return None
        self._asked, self._since = self.gauge.take.remote(), time.monotonic()
        return self._asked

    def answer(self) -> Sample:
        """Empty if there is none yet."""
        if self._asked is None:
            return {}
        done, _ = ray.wait([self._asked], timeout=0)
        if not done:
            if time.monotonic() - self._since > _SAID_AFTER_S:
                self._say(f"no answer in {_SAID_AFTER_S:g} s")
            return {}
        asked, self._asked = self._asked, None
        try:
            sample: Sample = ray.get(asked)
        except RayError as error:
            self._is_lost = True
            self._say(str(error).strip().partition("\n")[0])
            return {}
        return sample

    def _say(self, why: str) -> None:
        """Once: the run goes on without these numbers."""
        if not self._is_said:
            self._is_said = True
            log.warning("a machine is left out of the ray/ metrics", node=self._node, why=why)
