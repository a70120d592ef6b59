"""A critic with ranks of its own learns what it learns beside the policy: the demo with PPO, for real."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from running import skyrl

from skyrl_kernel.metrics import is_wall_clock
from skyrl_kernel.ray.environment import prepare

pytestmark = pytest.mark.slow

PLACEMENT = "trainer.placement"
APART = ("trainer.runtime=ray", f"{PLACEMENT}.colocate_all=false")
SETTINGS = (
    "trainer.max_training_steps=3",
    "trainer.train_batch_size=8",
    "trainer.policy_mini_batch_size=4",
    "trainer.ckpt_interval=1",
    "trainer.eval_interval=0",
    "trainer.eval_before_train=false",
    "environment.multiply.test_size=16",
    "trainer.critic.optimizer_config.lr=1e-3",
    "trainer.bf16=false",
    "trainer.logger=[]",
)


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    """A Ray that all runs here find and leave alone."""
    prepare()
    from skyrl_kernel.ray.cluster import Cluster

    cluster = Cluster(num_cpus=6)
    try:
        yield
    finally:
        cluster.close()


def steps(folder: Path, *words: str) -> list[dict[str, Any]]:
    """What a run says of its steps, but for the time and for evaluations."""
    done = skyrl(
        "run",
        "--plugin",
        "demo",
        "--plugin",
        "ppo",
        *SETTINGS,
        *words,
        f"trainer.ckpt_path={folder}",
    )
    assert done.code == 0, done.err
    lines = (folder / "demo" / "metrics.jsonl").read_text().splitlines()
    return [
        {
            name: value
            for name, value in json.loads(line).items()
            if not is_wall_clock(name) and not name.startswith("eval/")
        }
        for line in lines
    ]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Policy and critic in one process."""
    found = steps(tmp_path_factory.mktemp("alone"), "trainer.runtime=local")
    assert found[2]["critic/values_mean"] != found[1]["critic/values_mean"] != 0
    return found


@pytest.mark.parametrize("policy", [1, 2])
def test_beside_one_or_two_ranks_of_the_policy_all_numbers_are_those_of_one_process(
    tmp_path: Path, alone: list[dict[str, Any]], policy: int
) -> None:
    found = steps(tmp_path, *APART, f"{PLACEMENT}.policy_num_gpus_per_node={policy}")
    for mine, theirs in zip(found, alone, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-4)
    logs = {path.name for path in (tmp_path / "demo").rglob("*critic*")}
    assert logs, "the critic's process has a log of its own"


def test_a_run_goes_on_with_its_critic_apart_and_together_again(
    tmp_path: Path, alone: list[dict[str, Any]]
) -> None:
    step = "trainer.max_training_steps"
    steps(tmp_path, "trainer.runtime=local", f"{step}=1")
    steps(tmp_path, *APART, f"{PLACEMENT}.critic_num_gpus_per_node=2", f"{step}=2")
    written = tmp_path / "demo" / "checkpoints" / "global_step_2"
    assert len(list(written.glob("weights*.safetensors"))) == 1
    assert len(list((written / "value").glob("weights*.safetensors"))) == 2
    found = steps(tmp_path, "trainer.runtime=local")
    for mine, theirs in zip(found, alone, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-4)
