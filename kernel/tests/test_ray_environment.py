"""What Ray reads from the environment."""

import os
import sys

import pytest

from skyrl_kernel.errors import CapabilityError
from skyrl_kernel.ray.environment import address, exported, prepare
from skyrl_kernel.ray.plugin import make_runtime


@pytest.fixture(autouse=True)
def none_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", *exported()):
        monkeypatch.delenv(name, raising=False)
    assert exported() == {}


def test_a_ray_of_the_runs_own_asks_for_a_token_whatever_the_user_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "environ", {"RAY_AUTH_MODE": "disabled"})
    assert address() is None
    prepare()
    assert os.environ["RAY_AUTH_MODE"] == "token"
    token = os.environ["RAY_AUTH_TOKEN"]
    assert len(token) == 64
    prepare()
    assert os.environ["RAY_AUTH_TOKEN"] == token


def test_a_cluster_is_entered_with_the_users_own_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"RAY_ADDRESS": "10.0.0.1:6379"})
    prepare()
    assert os.environ == {"RAY_ADDRESS": "10.0.0.1:6379"}
    assert address() == "10.0.0.1:6379"


def test_skyrls_switches_hand_paths_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def paths() -> dict[str, str]:
        return {name: value for name, value in exported().items() if name.endswith("PATH")}

    monkeypatch.setenv("PYTHONPATH", "/home/me/own")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/opt/lib")
    assert paths() == {}
    monkeypatch.setenv("SKYRL_PYTHONPATH_EXPORT", "true")
    assert paths() == {"PYTHONPATH": "/home/me/own"}
    monkeypatch.setenv("SKYRL_LD_LIBRARY_PATH_EXPORT", "1")
    assert paths() == {"PYTHONPATH": "/home/me/own", "LD_LIBRARY_PATH": "/opt/lib"}
    monkeypatch.delenv("PYTHONPATH")
    assert paths() == {"LD_LIBRARY_PATH": "/opt/lib"}


def test_what_is_read_in_other_processes_is_handed_on_and_no_secret_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    handed_on = {
        "SKYRL_WAIT_UNTIL_INFERENCE_SERVER_HEALTHY_TIMEOUT_S": "1200",
        "HF_HOME": "/shared/hf",
        "HF_HUB_OFFLINE": "1",
        "NCCL_SOCKET_IFNAME": "eth0",
        "GLOO_SOCKET_IFNAME": "eth0",
        "VLLM_LOGGING_LEVEL": "DEBUG",
    }
    secret = {"HF_TOKEN": "t", "VLLM_API_KEY": "k", "WANDB_API_KEY": "k"}
    others = {"VLLM_HOST_IP": "10.0.0.1", "SKYRL_DATABASE_URL": "u", "HOME": "/home/me"}
    for name, value in {**handed_on, **secret, **others}.items():
        monkeypatch.setenv(name, value)
    assert exported() == handed_on


def test_without_ray_its_runtime_is_refused_with_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # as where it is not installed
    with pytest.raises(CapabilityError, match=r'pip install "skyrl-kernel\[ray\]"'):
        make_runtime("ray", {})  # type: ignore[arg-type]  # nothing is read of them
    assert make_runtime("local", {}) is None  # type: ignore[arg-type]
