"""Engines over several GPUs of the trainer's, on a Ray that is told of GPUs which are not there."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from skyrl_kernel.config import InferenceEngineConfig
from skyrl_kernel.config.trainer import PlacementConfig
from skyrl_kernel.errors import CapabilityError
from skyrl_kernel.plugins import discover
from skyrl_kernel.ray.demands import POLICY, demands
from skyrl_kernel.ray.placement import Placement, Seat
from skyrl_kernel.ray.wide import VISIBLE, seats_of_engines
from skyrl_kernel.slots import BACKENDS
from skyrl_kernel.testing.distributions import make_distribution
from skyrl_kernel.testing.scripted import run_scripted

ENGINE = "generator.inference_engine"
POLICY_GPUS = "trainer.placement.policy_num_gpus_per_node"

SEER = f'''
"""An engine that logs which GPUs it may use."""

import subprocess

from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.logs import get_logger
from skyrl_kernel.testing.scripted import Script, ScriptedEngine


@hookimpl
def make_engine(name):
    if name != "seer":
        return None
    child = ["sh", "-c", "echo ${VISIBLE}"]  # as a server would be
    seen = subprocess.run(child, capture_output=True, text=True).stdout.strip()
    get_logger(__name__).info(f"sees {{seen}}")
    return ScriptedEngine(Script())
'''


@pytest.fixture(scope="module", autouse=True)
def ray_with_gpus(fakes: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Ray counts and names GPUs as it is told to."""
    import ray

    make_distribution(
        fakes,
        "skyrl-seer",
        modules={"skyrl_seer.plugin": SEER},
        files={
            "skyrl_seer/plugin.toml": f"""
[seer]
summary = "An engine that logs which GPUs it may use."
slots = ["{ENGINE}.backend"]
offers = ["in_process", "receives_weights", "exact_logprobs"]
"""
        },
        entry_points={BACKENDS: {"seer": "skyrl_seer.plugin"}},
    )
    discover(refresh=True)
    ray.init(
        num_cpus=8,
        num_gpus=4,
        include_dashboard=False,
        log_to_driver=False,
        configure_logging=False,
    )
    try:
        yield
    finally:
        ray.shutdown()


def logs(folder: Path, name: str) -> str:
    return (folder / "logs" / f"{name}.jsonl").read_text()


def test_an_engine_over_two_gpus_of_the_trainers_is_told_both(tmp_path: Path) -> None:
    result = run_scripted(
        tmp_path,
        "trainer.runtime=ray",
        "trainer.ray.use_gpus=true",
        f"{ENGINE}.backend=seer",
        f"{ENGINE}.num_engines=2",
        f"{ENGINE}.tensor_parallel_size=2",
        f"{POLICY_GPUS}=4",
    )
    assert result.status == "finished"
    seen = [logs(result.folder, f"engine_{place}").split("sees ")[1][:3] for place in range(2)]
    assert sorted(seen) == ["0,1", "2,3"]


def test_an_engine_is_on_one_node() -> None:
    def seat(node: str) -> Seat:
        return cast(Seat, SimpleNamespace(node=node, gpus=0.2))

    three_and_one = [seat("a"), seat("a"), seat("a"), seat("b")]
    with pytest.raises(
        CapabilityError, match=r"^engine 1 would have 2 GPUs of two nodes.*multiple of the GPUs"
    ):
        seats_of_engines(three_and_one, 2, 60)


def test_processors_have_no_names() -> None:
    placement = PlacementConfig(policy_num_gpus_per_node=4)
    engine = InferenceEngineConfig(num_engines=2, tensor_parallel_size=2)
    reserved = Placement(demands(placement, engine, alone=(), gpus=False), grows=False)
    try:
        devices = reserved.seats(POLICY, shared=True)
        seats, environments = seats_of_engines(devices, 2, 60)
    finally:
        reserved.close()
    assert seats == [devices[0], devices[2]]
    assert environments == [{}, {}]
