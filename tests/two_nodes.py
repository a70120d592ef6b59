"""Two Ray nodes on one machine, each with a network of its own, and a cable between them.

Each node lives in a network namespace of the kernel of Linux; a pair of virtual network cards is
the cable. So a node can be unplugged while its processes live on, as when a switch fails, or lose
all its processes at once, as when the power fails. Needs root and `ip` (Debian: iproute2).

Both nodes see the same files, as nodes of a cluster with a shared file system do.
"""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

RAY = Path(sys.executable).with_name("ray")
UV = Path(sys.executable).with_name("uv")
HEAD, WORKER = "192.0.2.1", "192.0.2.2"
"""Addresses that belong to nobody: RFC 5737 keeps them for documentation."""
PORT = 6379
UP_WITHIN_S = 60.0
QUICK_TO_NOTICE = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}
"""Ray takes a silent node for dead after some 5 s, not after the minute that its defaults make."""


def why_not() -> str | None:
    """Why there can be no such nodes here; None if there can."""
    if sys.platform != "linux" or shutil.which("ip") is None:
        return "two nodes on one machine need Linux and the command ip (Debian: iproute2)"
    name = f"skyrl-try-{os.getpid()}"
    made = _ip("netns", "add", name, check=False)
    if made.returncode:
        return f"two nodes on one machine need root: {made.stderr.strip()}"
    _ip("netns", "delete", name)
    return None


@dataclass(frozen=True)
class Node:
    """One of the two."""

    namespace: str
    device: str
    """Its network card."""
    address: str

    def start(
        self,
        *words: str | Path,
        env: Mapping[str, str],
        output: Path | None = None,
        folder: Path | None = None,
    ) -> "subprocess.Popen[str]":
        """Start a process on it; without ``output`` what it prints is for the caller to read."""
        with contextlib.ExitStack() as files:
            out = subprocess.PIPE if output is None else files.enter_context(output.open("w"))
            return subprocess.Popen(
                ["ip", "netns", "exec", self.namespace, *map(str, words)],
                # What a test before has set for a Ray of its own is not a node's.
                env={k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | dict(env),
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=subprocess.PIPE if output is None else subprocess.STDOUT,
                text=True,
                cwd=folder,
            )

    def processes(self) -> list[int]:
        """Ids of all processes on it."""
        return [int(word) for word in _ip("netns", "pids", self.namespace).stdout.split()]

    def unplug(self) -> None:
        """Pull the cable: nothing comes or goes, and nobody is told."""
        _ip("-n", self.namespace, "link", "set", self.device, "down")

    def plug_in(self) -> None:
        """Undo `unplug`."""
        _ip("-n", self.namespace, "link", "set", self.device, "up")

    def power_off(self) -> None:
        """End all its processes at once."""
        while found := self.processes():
            for process in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            time.sleep(0.05)  # until they are gone


@dataclass(frozen=True)
class Cluster:
    """Both, and how a command joins them."""

    folder: Path
    """Its Ray's files, and what both nodes printed."""
    head: Node
    worker: Node
    env: Mapping[str, str]
    """What a process on either needs to join."""
    cpus: int
    started: list["subprocess.Popen[str]"] = field(default_factory=list)

    def start(self, *words: object, folder: Path, **env: str) -> "subprocess.Popen[str]":
        """Start `skyrl` on the head, under ``uv run``, in a working folder that is the run's alone."""
        command = [UV, "run", "--active", "--no-project", "skyrl", *map(str, words)]
        process = self.head.start(*command, env={**self.env, **env}, folder=folder)
        self.started.append(process)
        return process

    def replace_worker(self) -> None:
        """Another machine, new to the cluster, in the place of the one that was unplugged."""
        self.worker.power_off()
        self.worker.plug_in()
        self.join()

    def join(self) -> None:
        """Start Ray on the worker."""
        _start_ray(self, self.worker, f"--address={HEAD}:{PORT}")

    def python(self, code: str, **env: str) -> "subprocess.Popen[str]":
        """Start a script on the head."""
        process = self.head.start(sys.executable, "-c", code, env={**self.env, **env})
        self.started.append(process)
        return process

    def printed(self) -> str:
        """What both nodes said, for a failed test to show."""
        return "\n".join(f"== {log}\n{log.read_text()}" for log in self.folder.glob("*.log"))


@contextlib.contextmanager
def two_nodes(cpus: int = 1) -> Iterator[Cluster]:
    """Both nodes, joined and up; at the end nothing of them is left.

    Args:
        cpus: What each tells Ray that it has.
    """
    folder = Path(tempfile.mkdtemp(prefix="skyrl-"))  # paths of Ray's sockets must stay short
    head, worker = (
        Node(f"skyrl-{name}-{os.getpid()}", f"skyrl-{name}", address)
        for name, address in (("head", HEAD), ("worker", WORKER))
    )
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    env = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        # What `uv run --active` runs in, on both.
        "VIRTUAL_ENV": sys.prefix,
        "PATH": f"{UV.parent}{os.pathsep}{os.environ['PATH']}",
    }
    cluster = Cluster(folder, head, worker, env | {"RAY_ADDRESS": f"{HEAD}:{PORT}"}, cpus)
    try:
        _wire(head, worker)
        first = ("--head", f"--port={PORT}", f"--temp-dir={folder}", "--include-dashboard=false")
        _start_ray(cluster, head, *first)
        cluster.join()
        yield cluster
    finally:
        for node in (worker, head):
            with contextlib.suppress(subprocess.CalledProcessError):
                node.power_off()
                _ip("netns", "delete", node.namespace)
        for process in cluster.started:
            process.communicate()
        shutil.rmtree(folder, ignore_errors=True)


def _wire(head: Node, worker: Node) -> None:
    for node in (head, worker):
        _ip("netns", "add", node.namespace)
    first = ("name", head.device, "netns", head.namespace)
    second = ("name", worker.device, "netns", worker.namespace)
    _ip("link", "add", *first, "type", "veth", "peer", *second)
    for node in (head, worker):
        _ip("-n", node.namespace, "address", "add", f"{node.address}/24", "dev", node.device)
        for device in (node.device, "lo"):
            _ip("-n", node.namespace, "link", "set", device, "up")


def _start_ray(cluster: Cluster, node: Node, *options: str) -> None:
    log = cluster.folder / f"{node.device}.log"
    env = {key: value for key, value in cluster.env.items() if key != "RAY_ADDRESS"}
    process = node.start(
        RAY,
        "start",
        "--block",
        *options,
        f"--node-ip-address={node.address}",
        f"--num-cpus={cluster.cpus}",
        "--object-store-memory=200000000",
        env={**env, **QUICK_TO_NOTICE},
        output=log,
        folder=cluster.folder,
    )
    cluster.started.append(process)
    _wait_until_up(process, log)


def _wait_until_up(process: "subprocess.Popen[str]", log: Path) -> None:
    deadline = time.monotonic() + UP_WITHIN_S
    while "Ray runtime started" not in log.read_text():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"a Ray node did not come up:\n{log.read_text()}")
        time.sleep(0.1)


def _ip(*words: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(["ip", *words], check=check, capture_output=True, text=True)
