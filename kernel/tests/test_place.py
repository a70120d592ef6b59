"""Where trainer and engine are."""

import pytest

from skyrl_kernel import place
from skyrl_kernel.place import GPUS, SAME_GPU, SAME_MACHINE, STARTED_HERE, is_here, places

LOCAL, REMOTE = "http://127.0.0.1:8000", "http://192.0.2.1:8000"


def test_loopback_is_here_and_an_address_of_documentation_is_not() -> None:
    assert is_here(LOCAL)
    assert is_here("http://localhost:8000")
    assert not is_here(REMOTE)


@pytest.mark.parametrize(
    ("visible", "urls", "colocated", "expected"),
    [
        ("", [], True, {SAME_MACHINE, STARTED_HERE}),
        ("-1", [], False, {SAME_MACHINE, STARTED_HERE}),
        ("0", [], True, {SAME_MACHINE, STARTED_HERE, SAME_GPU, GPUS}),
        ("0", [], False, {SAME_MACHINE, STARTED_HERE}),
        ("0,1", [], False, {SAME_MACHINE, STARTED_HERE, GPUS}),
        ("0", [LOCAL], False, {SAME_MACHINE, GPUS}),
        ("0", [LOCAL, REMOTE], False, {GPUS}),
        ("", [REMOTE], False, set()),
    ],
)
def test_a_run_has_these_places(
    monkeypatch: pytest.MonkeyPatch,
    visible: str,
    urls: list[str],
    colocated: bool,
    expected: set[str],
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert places(urls, colocated=colocated) == expected


def test_engines_on_several_gpus_do_not_share_the_trainers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert places([], colocated=True, devices=2) == {SAME_MACHINE, STARTED_HERE}


def test_without_the_variable_the_driver_is_asked(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    driver = tmp_path_factory.mktemp("driver")
    for gpu in ("0000:07:00.0", "0000:08:00.0"):
        (driver / gpu).mkdir()
    monkeypatch.setattr(place, "_DRIVER", driver)
    assert place.num_gpus() == 2


@pytest.mark.parametrize(
    ("devices", "expected"),
    [
        (["nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"], 2),
        (["dxg"], 1),  # WSL 2
        (["null"], 0),
    ],
)
def test_where_the_driver_is_hidden_devices_are_counted(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
    devices: list[str],
    expected: int,
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    folder = tmp_path_factory.mktemp("dev")
    for one in devices:
        (folder / one).touch()
    monkeypatch.setattr(place, "_DRIVER", folder / "none")
    monkeypatch.setattr(place, "_DEVICES", folder)
    assert place.num_gpus() == expected
