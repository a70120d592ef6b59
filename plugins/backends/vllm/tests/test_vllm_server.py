"""A server's process: how it starts, what is told of one that does not, and that it ends with its starter."""

import asyncio
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from skyrl_kernel.errors import PluginLoadError
from skyrl_vllm.client import ServerError
from skyrl_vllm.fleet import Deadlines, Fleet
from skyrl_vllm.server import Server, _reserved_port


def test_without_vllm_a_run_is_told_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skyrl_vllm.server.DISTRIBUTIONS", ("no-such-vllm",))
    with pytest.raises(PluginLoadError, match=r"pip install 'skyrl-vllm\[gpu\]'"):
        Server(tmp_path, log=tmp_path / "log")


def test_a_server_that_ends_at_once_is_an_error_with_the_end_of_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skyrl_vllm.server.DISTRIBUTIONS", ("pytest",))
    monkeypatch.setattr("skyrl_vllm.server.MODULE", "json.tool")  # knows none of vLLM's flags
    server = Server(tmp_path, log=tmp_path / "log")
    try:
        with pytest.raises(ServerError, match=r"did not start.*with code 2.*(?s:.)*usage: "):
            asyncio.run(server.wait_until_ready(30))
    finally:
        server.close()


def test_a_run_hears_that_servers_load_and_where_their_logs_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("skyrl_vllm.server.DISTRIBUTIONS", ("pytest",))
    (tmp_path / "idles.py").write_text("import time; time.sleep(60)")
    monkeypatch.setattr("skyrl_vllm.server.MODULE", "idles")  # never listens
    monkeypatch.setattr("skyrl_vllm.fleet.SAY_EVERY_S", 0.1)
    server = Server(tmp_path, log=tmp_path / "log", variables={"PYTHONPATH": str(tmp_path)})

    async def use() -> None:
        fleet = Fleet([server], deadlines=Deadlines(start_s=2))
        try:
            with pytest.raises(ServerError, match=r"was not ready within 2 s"):
                await fleet.wait_until_ready()
        finally:
            await fleet.close()

    asyncio.run(use())
    told = capsys.readouterr().out
    assert f"vLLM loads: 0 of 1 servers ready after 0 s; log: {tmp_path / 'log'}" in told


def test_a_port_is_held_for_its_server_and_for_nobody_else() -> None:
    held = [_reserved_port() for _ in range(20)]
    ports = {one.getsockname()[1] for one in held}
    assert len(ports) == 20
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(held[0].getsockname())
        server.listen()
        socket.create_connection(held[0].getsockname(), 5).close()
    for one in held:
        one.close()


def test_the_guard_ends_its_command_when_nobody_holds_its_input(tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    child = f"import time\nwhile True: open({str(alive)!r}, 'w').close(); time.sleep(0.02)"
    guard = subprocess.Popen(
        [sys.executable, "-m", "skyrl_vllm.guard", sys.executable, "-c", child],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )
    assert guard.stdin is not None
    until = time.monotonic() + 30
    while not alive.exists() and time.monotonic() < until:
        time.sleep(0.02)
    guard.stdin.close()
    assert guard.wait(30) == 128 + 15
    alive.unlink()
    time.sleep(0.2)
    assert not alive.exists()
