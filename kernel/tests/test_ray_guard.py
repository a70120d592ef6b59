"""The last word of a run under which Ray ends: one of its own, or a cluster that it has joined."""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

pytest.importorskip("ray")

RUN = """
import os, time
from skyrl_kernel.ray.environment import prepare
prepare()
import ray
from skyrl_kernel.ray.cluster import Cluster

cluster = Cluster(num_cpus=1)

@ray.remote(num_cpus=0)
def variables():
    return {name: os.environ.get(name) for name in ("NCCL_DEBUG", "HF_TOKEN")}

print("begun", ray.get(variables.remote()), flush=True)
while True:
    ray.get(variables.remote())
    time.sleep(0.1)
"""
HANDED_ON, SECRET = {"NCCL_DEBUG": "INFO"}, {"HF_TOKEN": "hf_nobody"}
GOES_ON = "the same command goes on after the run's newest checkpoint"
QUICK = {"RAY_gcs_rpc_server_reconnect_timeout_s": "3"}


def begun(env: Mapping[str, str]) -> "tuple[subprocess.Popen[str], str]":
    """A process that has a Ray, and what another process of that Ray has of its variables."""
    process = subprocess.Popen(
        [sys.executable, "-c", RUN],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("begun "):
            return process, line.removeprefix("begun ").strip()
    raise AssertionError(process.communicate()[1])


def last_word(process: "subprocess.Popen[str]") -> str:
    """Of one that Ray ends."""
    try:
        _, err = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    assert process.returncode == 1, err
    assert err.count("skyrl: ") == 1
    return str(err.splitlines()[-1])


def children(pid: int) -> dict[str, int]:
    """Name → id of the processes that one has started."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return {Path(f"/proc/{one}/comm").read_text().strip(): int(one) for one in found}


def test_a_cluster_is_asked_when_the_run_has_ended_and_said_nothing(tmp_path: Path) -> None:
    from skyrl_kernel.ray.guard import ASK

    def said(port: int, by_the_run: str = "") -> str:
        words = ["127.0.0.1", str(port), "head", str(tmp_path / "raylet"), "raylet"]
        command = [sys.executable, "-I", "-S", "-c", ASK, *words]
        done = subprocess.run(command, input=by_the_run, capture_output=True, text=True)
        return done.stderr.strip()

    with socket.create_server(("127.0.0.1", 0)) as gcs:
        port = gcs.getsockname()[1]
        assert said(port) == "raylet"
        assert said(port, "goes") == ""
        with socket.socket(socket.AF_UNIX) as raylet:
            raylet.bind(str(tmp_path / "raylet"))
            raylet.listen()
            assert said(port) == ""
    assert said(port) == "head"
    assert said(port, "goes") == ""


@pytest.mark.slow
def test_a_ray_of_the_runs_own_without_its_gcs_is_told() -> None:
    names = ("RAY_ADDRESS", *HANDED_ON)
    process, _ = begun({key: value for key, value in os.environ.items() if key not in names})
    os.kill(children(process.pid)["gcs_server"], signal.SIGKILL)
    began = time.monotonic()
    line = last_word(process)
    assert line.startswith(
        "skyrl: Ray's own process that knows of all others (gcs_server) has ended"
    )
    assert GOES_ON in line
    assert time.monotonic() - began < 40  # by itself, Ray tries for 60 s


@pytest.fixture
def joins() -> Iterator[dict[str, str]]:
    """Variables of a process that joins a cluster of one node, whose processes have them too."""
    folder = Path(tempfile.mkdtemp(prefix="skyrl-"))  # paths of Ray's sockets must stay short
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    left_out = (*HANDED_ON, *SECRET)
    env = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith("RAY_") and key not in left_out
    }
    env |= {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # it keeps to the loopback interface
    }
    words = ["--head", f"--port={port}", "--node-ip-address=127.0.0.1", "--num-cpus=1"]
    words += [f"--temp-dir={folder}", "--include-dashboard=false", "--object-store-memory=80000000"]
    ray = Path(sys.executable).with_name("ray")
    done = subprocess.run([ray, "start", *words], capture_output=True, text=True, env=env)
    try:
        assert done.returncode == 0, done.stdout + done.stderr
        yield env | QUICK | {"RAY_ADDRESS": f"127.0.0.1:{port}"}
    finally:
        while found := of_cluster(env):
            for one in found.values():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(one, signal.SIGKILL)
            time.sleep(0.05)  # until they are gone
        shutil.rmtree(folder, ignore_errors=True)


def of_cluster(env: Mapping[str, str]) -> dict[str, int]:
    """Name → id of the processes that have a cluster's token."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # gone, or somebody else's
            if env["RAY_AUTH_TOKEN"].encode() in (folder / "environ").read_bytes():
                found[(folder / "comm").read_text().strip()] = int(folder.name)
    return found


@pytest.mark.slow
def test_a_cluster_without_its_head_is_told(joins: dict[str, str]) -> None:
    process, variables = begun(joins | HANDED_ON | SECRET)
    assert variables == str({**HANDED_ON, "HF_TOKEN": None})
    os.kill(of_cluster(joins)["gcs_server"], signal.SIGKILL)
    line = last_word(process)
    assert f"skyrl: the head of the Ray cluster ({joins['RAY_ADDRESS']}) does not answer" in line
    assert GOES_ON in line


@pytest.mark.slow
def test_one_whose_process_on_this_machine_ends_is_told(joins: dict[str, str]) -> None:
    process, _ = begun(joins)
    os.kill(of_cluster(joins)["raylet"], signal.SIGKILL)
    line = last_word(process)
    assert "skyrl: Ray's own process on this machine (the raylet) has ended" in line
    assert GOES_ON in line


@pytest.mark.slow
def test_a_run_that_is_killed_is_not_spoken_for(joins: dict[str, str]) -> None:
    process, _ = begun(joins)
    process.kill()
    _, err = process.communicate(timeout=60)  # ends when the guard has ended too
    assert "skyrl: " not in err
    assert "gcs_server" in of_cluster(joins)
