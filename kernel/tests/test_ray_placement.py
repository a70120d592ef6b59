"""Which devices a run asks for, and what each rank is told."""

import socket
from collections.abc import Sequence

import pytest

from skyrl_kernel.config import InferenceEngineConfig
from skyrl_kernel.config.trainer import PlacementConfig
from skyrl_kernel.errors import ConfigError
from skyrl_kernel.processes import alone
from skyrl_kernel.ray.demands import Demand, demands, needs_of
from skyrl_kernel.ray.placement import TIMEOUT, _tell_other_nodes, timeout
from skyrl_kernel.ray.rank import Rank, torchrun_variables

GPU = {"GPU": 1.0, "CPU": 1.0}


def asked(
    placement: PlacementConfig,
    engine: InferenceEngineConfig,
    *,
    alone: Sequence[str] = (),
    gpus: bool = True,
) -> dict[str, Demand]:
    wanted = demands(placement, engine, alone=alone, gpus=gpus)
    return {demand.name: demand for demand in wanted}


def test_colocated_ranks_and_engines_share_a_device_each() -> None:
    placement = PlacementConfig(policy_num_gpus_per_node=4)
    (policy,) = asked(placement, InferenceEngineConfig(num_engines=4)).values()
    assert policy.bundles == (GPU,) * 4
    assert policy.strategy == "STRICT_PACK"  # one node means one node


def test_several_nodes_may_be_as_many_as_ray_finds_best() -> None:
    placement = PlacementConfig(policy_num_nodes=2, policy_num_gpus_per_node=4)
    (policy,) = asked(placement, InferenceEngineConfig(num_engines=8)).values()
    assert (len(policy.bundles), policy.strategy) == (8, "PACK")
    assert policy.why == (
        "trainer.placement.policy_num_nodes=2 × trainer.placement.policy_num_gpus_per_node=4"
    )


def test_engines_of_their_own_have_as_many_gpus_as_they_are_split_over() -> None:
    placement = PlacementConfig(colocate_all=False, policy_num_gpus_per_node=2)
    engine = InferenceEngineConfig(num_engines=3, tensor_parallel_size=2)
    found = asked(placement, engine)
    assert found["policy"].bundles == (GPU, GPU)
    assert found["engines"].bundles == ({"GPU": 2.0, "CPU": 1.0},) * 3


def test_a_run_that_samples_nothing_asks_for_no_engines() -> None:
    placement = PlacementConfig(colocate_all=False, policy_num_gpus_per_node=2)
    assert list(asked(placement, InferenceEngineConfig(backend="none"))) == ["policy"]


def test_a_critic_and_a_reference_have_devices_of_their_own() -> None:
    placement = PlacementConfig(
        colocate_all=False,
        colocate_policy_ref=False,
        policy_num_gpus_per_node=4,
        ref_num_gpus_per_node=2,
        critic_num_nodes=3,
    )
    found = asked(placement, InferenceEngineConfig(), alone=alone(placement))
    assert [(name, len(demand.bundles)) for name, demand in found.items()] == [
        ("policy", 4),
        ("critic", 3),
        ("ref", 2),
        ("engines", 1),
    ]
    assert found["critic"].why == (
        "trainer.placement.critic_num_nodes=3 × trainer.placement.critic_num_gpus_per_node=1"
    )


def test_what_is_colocated_has_none_of_its_own() -> None:
    assert alone(PlacementConfig(colocate_policy_ref=False)) == []
    assert alone(PlacementConfig(colocate_all=False)) == ["value"]


def test_without_gpus_a_device_is_a_processor() -> None:
    placement = PlacementConfig(colocate_all=False, policy_num_gpus_per_node=2)
    engine = InferenceEngineConfig(num_engines=2)
    assert asked(placement, engine, gpus=False)["policy"].bundles == ({"CPU": 1.0},) * 2
    assert needs_of(placement, engine, alone=()) == 4


def test_ranks_are_told_what_torchrun_would_tell_them() -> None:
    told = torchrun_variables(["a", "a", "b", "b"], "10.0.0.1", 29500)
    assert [one["RANK"] for one in told] == ["0", "1", "2", "3"]
    assert [one["LOCAL_RANK"] for one in told] == ["0", "1", "0", "1"]
    assert {one["LOCAL_WORLD_SIZE"] for one in told} == {"2"}
    assert {(one["MASTER_ADDR"], one["MASTER_PORT"]) for one in told} == {("10.0.0.1", "29500")}


@pytest.mark.parametrize(
    ("nodes", "told"), [("aabb", ""), ("aaab", "3 + 1"), ("aaaa", "4"), ("abcd", "1 + 1 + 1 + 1")]
)
def test_ranks_on_other_nodes_than_asked_for_are_told(
    caplog: pytest.LogCaptureFixture, nodes: str, told: str
) -> None:
    placement = PlacementConfig(policy_num_nodes=2, policy_num_gpus_per_node=2)
    policy = asked(placement, InferenceEngineConfig(num_engines=4))["policy"]
    _tell_other_nodes(dict(enumerate(nodes)), policy)
    said = " ".join(record.getMessage() for record in caplog.records)
    assert (f"on nodes with {told} of them" in said) if told else not said


def test_the_port_where_ranks_meet_is_held_for_them() -> None:
    rank = Rank("trainer rank 0")
    address, port = rank.meeting_place()
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind((address, port))  # as whoever does not ask for it as a server does
    with socket.create_server((address, port)) as server:
        assert server.getsockname() == (address, port)
    rank._held.close()


@pytest.mark.parametrize("text", ["soon", "0", "-1"])
def test_a_timeout_is_a_number_of_seconds(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TIMEOUT, text)
    with pytest.raises(ConfigError, match=rf"{TIMEOUT}={text} is no number of seconds above 0"):
        timeout()


def test_skyrls_timeout_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TIMEOUT, raising=False)
    assert timeout() == 180
    monkeypatch.setenv(TIMEOUT, "90")
    assert timeout() == 90
