"""The network card that gloo is told to use."""

import sys

import pytest

from skyrl_kernel.ray.network import device_of, tell_gloo

linux = pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for its network cards")


@linux
def test_the_card_with_an_address_is_found() -> None:
    assert device_of("127.0.0.1") == "lo"


def test_an_address_that_is_not_of_this_machine_has_no_card() -> None:
    assert device_of("192.0.2.77") is None
    environ: dict[str, str] = {}
    tell_gloo("192.0.2.77", environ)
    assert environ == {}


@linux
def test_gloo_uses_it_unless_the_user_has_named_one() -> None:
    environ: dict[str, str] = {}
    tell_gloo("127.0.0.1", environ)
    assert environ == {"GLOO_SOCKET_IFNAME": "lo"}
    environ["GLOO_SOCKET_IFNAME"] = "eth7"
    tell_gloo("127.0.0.1", environ)
    assert environ == {"GLOO_SOCKET_IFNAME": "eth7"}
