"""Which GPUs ranks and engines see, on a Ray that is told of GPUs which are not there."""

import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from skyrl_kernel.config import InferenceEngineConfig
from skyrl_kernel.config.trainer import PlacementConfig
from skyrl_kernel.errors import CapabilityError
from skyrl_kernel.place import VISIBLE
from skyrl_kernel.plugins import discover
from skyrl_kernel.ray.demands import POLICY, demands
from skyrl_kernel.ray.placement import Placement, Seat
from skyrl_kernel.ray.shared_gpus import seats_of_engines
from skyrl_kernel.slots import BACKENDS
from skyrl_kernel.testing.distributions import make_distribution
from skyrl_kernel.testing.scripted import run_scripted

ENGINE = "generator.inference_engine"
POLICY_GPUS = "trainer.placement.policy_num_gpus_per_node"

SEER = f'''
"""A trainer and an engine that log which GPUs they may use."""

import os
import subprocess

from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.logs import get_logger
from skyrl_kernel.testing import scripted


def tell():
    child = ["sh", "-c", "echo ${VISIBLE}"]  # as a server would be
    seen = subprocess.run(child, capture_output=True, text=True).stdout.strip()
    get_logger(__name__).info(f"sees [{{seen}}] and is number [{{os.environ.get('LOCAL_RANK', '')}}]")


@hookimpl
def make_engine(name):
    if name != "seer":
        return None
    tell()
    return scripted.make_engine("scripted")


@hookimpl
def make_trainer(name, elsewhere):
    if name != "seer":
        return None
    tell()
    return scripted.make_trainer("scripted", elsewhere)
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
summary = "A trainer and an engine that log which GPUs they may use."
slots = ["{ENGINE}.backend", "trainer.strategy"]
offers = ["in_process", "receives_weights", "exact_logprobs", "several_ranks"]
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


SEES = re.compile(r"sees \[(.*?)\] and is number \[(.*?)\]")


def seen_in(folder: Path, *words: str) -> dict[str, list[tuple[str, str]]]:
    """What the processes of a run say: ``trainer_rank``, ``engine`` → (GPUs, LOCAL_RANK) of each, in order."""
    both = (f"{ENGINE}.backend=seer", "trainer.strategy=seer")
    result = run_scripted(folder, "trainer.runtime=ray", *both, *words)
    assert result.status == "finished"
    found: dict[str, list[tuple[str, str]]] = {}
    for file in sorted((result.folder / "logs").glob("*.jsonl")):
        said = SEES.search(file.read_text())
        assert said is not None, file
        found.setdefault(file.stem.rpartition("_")[0], []).append((said[1], said[2]))
    return found


def test_a_rank_sees_its_own_gpu_and_an_engine_those_that_it_is_divided_over(
    tmp_path: Path,
) -> None:
    wide = (f"{ENGINE}.num_engines=2", f"{ENGINE}.tensor_parallel_size=2")
    seen = seen_in(tmp_path, "trainer.ray.use_gpus=true", *wide, f"{POLICY_GPUS}=4")
    ranks, engines = seen["trainer_rank"], seen["engine"]
    assert sorted(gpus for gpus, _ in engines) == ["0,1", "2,3"]
    assert sorted(gpus for gpus, _ in ranks) == ["0", "1", "2", "3"]
    assert {number for _, number in ranks} == {"0"}  # the first of the one that it sees


@pytest.mark.slow
def test_a_run_on_processors_sees_no_gpu_although_there_are_some(tmp_path: Path) -> None:
    two = (f"{ENGINE}.num_engines=2", f"{POLICY_GPUS}=2")
    seen = seen_in(tmp_path, "trainer.ray.use_gpus=false", *two)
    assert [gpus for gpus, _ in seen["engine"]] == ["", ""]
    assert seen["trainer_rank"] == [("", "0"), ("", "1")]


def test_an_engine_is_on_one_node() -> None:
    def seat(node: str) -> Seat:
        return cast(Seat, SimpleNamespace(node=node, gpus=0.2))

    three_and_one = [seat("a"), seat("a"), seat("a"), seat("b")]
    with pytest.raises(
        CapabilityError, match=r"^engine 1 would have 2 GPUs of two nodes.*multiple of the GPUs"
    ):
        seats_of_engines(three_and_one, 2, 60)


def test_a_seat_without_a_gpu_hides_all() -> None:
    placement = PlacementConfig(policy_num_gpus_per_node=4)
    engine = InferenceEngineConfig(num_engines=2, tensor_parallel_size=2)
    reserved = Placement(demands(placement, engine, alone=(), gpus=False), grows=False)
    try:
        devices = reserved.seats(POLICY, shared=True)
        seats, environments = seats_of_engines(devices, 2, 60)
    finally:
        reserved.close()
    assert seats == [devices[0], devices[2]]
    assert environments == [{VISIBLE: ""}, {VISIBLE: ""}]
