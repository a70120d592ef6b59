"""Clusters that cannot be joined, and a run on Ray that is told to end."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from skyrl_kernel.errors import CapabilityError

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


OWN = """
import time
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
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=30)  # ends when Ray's processes have ended too
    finally:
        process.kill()
        process.wait()
    assert said == ""
    assert process.returncode == -signal.SIGTERM
