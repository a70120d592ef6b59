"""Clusters that cannot be joined, and a run on Ray that is told to end."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from skyrl_kernel.errors import CapabilityError
from skyrl_kernel.logs import RunLogs

pytest.importorskip("ray")


def join(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    from skyrl_kernel.ray import cluster

    monkeypatch.setattr(cluster, "_ANSWER_S", 0.0)
    cluster.Cluster(num_cpus=1)


def test_an_address_where_nothing_listens_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    begun = time.monotonic()
    with pytest.raises(
        CapabilityError,
        match=rf"nothing listens at RAY_ADDRESS=127\.0\.0\.1:{port}.* 'ray start --head' run there",
    ):
        join(f"127.0.0.1:{port}", monkeypatch)
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize("address", ["ray://10.0.0.1:10001", "http://127.0.0.1:8265"])
def test_an_address_for_clients_outside_is_refused(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CapabilityError, match=r"a run is on a node of it: give HOST:PORT"):
        join(address, monkeypatch)


def test_what_rays_core_writes_while_it_connects_goes_into_the_log(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from skyrl_kernel.ray.quiet import warnings_of_ray

    found: list[str] = []
    with RunLogs(tmp_path) as logs:
        with warnings_of_ray(found):
            os.write(2, b"W: no\nW: no again\n")
        os.write(2, b"heard\n")
    assert found == ["W: no", "W: no again"]
    assert "W: no\\nW: no again" in logs.path.read_text()
    assert capfd.readouterr().err == "heard\n"


def first_line(process: "subprocess.Popen[str]") -> str:
    """The first line that it prints, but for what it waits for."""
    assert process.stdout is not None
    return next(line.strip() for line in process.stdout if not line.startswith("waiting for "))


JOIN = """
from skyrl_kernel.errors import CapabilityError
from skyrl_kernel.ray.cluster import Cluster
try:
    Cluster(num_cpus=1)
except CapabilityError as error:
    print("refused:", error)
"""


@pytest.mark.slow  # Ray tries for 20 seconds
def test_a_wrong_token_is_one_line(tmp_path: Path) -> None:
    head = subprocess.Popen(
        [sys.executable, "-c", OWN.replace('"begun"', "ray.get_runtime_context().gcs_address")],
        stdout=subprocess.PIPE,
        text=True,
        env={name: text for name, text in os.environ.items() if name != "RAY_ADDRESS"},
    )
    try:
        found = {
            "RAY_ADDRESS": first_line(head),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": "0" * 64,
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # it keeps to the loopback interface
        }
        done = subprocess.run(
            [sys.executable, "-c", JOIN], env=os.environ | found, capture_output=True, text=True
        )
    finally:
        head.terminate()
        head.communicate(timeout=30)
    assert done.stderr == ""
    *waits, line = done.stdout.splitlines()
    assert "does not accept the token of this machine" in line
    assert all(wait.startswith("waiting for the Ray cluster 127.0.0.1:") for wait in waits)


OWN = """
import time

import ray
from skyrl_kernel.ray.environment import prepare
prepare()
from skyrl_kernel.ray.cluster import Cluster
Cluster(num_cpus=1)
print("begun", flush=True)
time.sleep(60)
"""


@pytest.mark.slow
def test_sigterm_ends_a_run_at_once_without_a_word_of_ray() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", OWN],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={name: text for name, text in os.environ.items() if name != "RAY_ADDRESS"},
    )
    try:
        assert first_line(process) == "begun"
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=30)  # ends when Ray's processes have ended too
    finally:
        process.kill()
        process.wait()
    assert said == ""
    assert process.returncode == -signal.SIGTERM
