"""Ranks meet where they were told to, and nobody else hears of it."""

import os
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from skyrl_fsdp.meeting import listening_socket
from skyrl_fsdp.ranks import join
from skyrl_kernel.ray.network import tell_gloo
from skyrl_kernel.testing.ranks import on_ranks

LISTENS = "0A"
LOOPBACK = ("0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F")
"""127.0.0.1, ::1, and the first as an address of the second kind."""


def listened_on() -> set[str]:
    """The addresses that this process listens on for TCP, as Linux writes them; see proc(5)."""
    own = set()
    for number in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            own.add(os.readlink(f"/proc/self/fd/{number}"))
    found = set()
    for table in ("/proc/self/net/tcp", "/proc/self/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTENS and f"socket:[{fields[9]}]" in own:
                found.add(fields[1].split(":")[0])
    return found


def meet_at(address: str) -> tuple[list[int], set[str]]:
    """What the ranks tell each other, and what this one listens on meanwhile."""
    os.environ["MASTER_ADDR"] = address
    tell_gloo("127.0.0.1")
    ranks = join("cpu", timeout_s=20)
    try:
        return ranks.gather(ranks.rank), listened_on()
    finally:
        ranks.close()


@pytest.mark.skipif(sys.platform != "linux", reason="what a process listens on is read from /proc")
@pytest.mark.parametrize("address", ["127.0.0.1", "localhost"])
def test_ranks_of_one_machine_listen_on_loopback_alone(address: str) -> None:
    for told, listened in on_ranks(2, meet_at, address):
        assert told == [0, 1]
        assert listened
        assert listened <= set(LOOPBACK)


@pytest.mark.parametrize(
    "variables",
    [
        {"TORCHELASTIC_USE_AGENT_STORE": "True"},  # torchrun keeps the store itself
        {"MASTER_ADDR": "gpu-3"},  # 127.0.1.1 to itself, on Debian
        {"MASTER_ADDR": "192.0.2.77"},  # for examples in books: no machine has it
    ],
)
def test_what_the_first_rank_cannot_tell_is_left_to_torch(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    for name, value in (usual | variables).items():
        monkeypatch.setenv(name, value)
    assert listening_socket() is None
