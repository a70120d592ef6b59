"""Two nodes for real: a Ray node in each of two network namespaces, a cable between them."""

import json
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import two_nodes
from running import Lab, install_probe, settings
from two_nodes import HEAD, WORKER, Cluster

pytest.importorskip("ray")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(two_nodes.why_not() is not None, reason=str(two_nodes.why_not())),
]


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with two_nodes.two_nodes() as made:
        yield made


ACROSS = """
import json, time, ray
ray.init(log_to_driver=False)

@ray.remote(num_cpus=1)
class Rank:
    def where(self):
        return ray.util.get_node_ip_address()

    def sum(self, rank, first):
        import datetime, torch, torch.distributed as dist
        from skyrl_kernel.ray.network import tell_gloo
        tell_gloo(ray.util.get_node_ip_address())
        dist.init_process_group("gloo", init_method=f"tcp://{first}:29500", rank=rank,
                                world_size=2, timeout=datetime.timedelta(seconds=20))
        one = torch.full((1,), 1.0 + rank)
        dist.all_reduce(one)
        return one.item()

    def wait(self):
        time.sleep(60)

ranks = [Rank.options(scheduling_strategy="SPREAD").remote() for _ in range(2)]
told = {"where": ray.get([rank.where.remote() for rank in ranks], timeout=60)}
sums = [rank.sum.remote(number, told["where"][0]) for number, rank in enumerate(ranks)]
told["sum"] = ray.get(sums, timeout=60)
waits = dict(zip(told["where"], [rank.wait.remote() for rank in ranks]))
print(json.dumps(told), flush=True)
input()
began = time.monotonic()
try:
    ray.get(waits["WORKER"], timeout=60)
except ray.exceptions.RayActorError as error:
    print(json.dumps({"after_s": time.monotonic() - began, "says": str(error)}), flush=True)
"""


def said(driver: "subprocess.Popen[str]") -> dict[str, Any]:
    """The next object that it prints; why it ended if there is none."""
    assert driver.stdout is not None
    for line in driver.stdout:
        if line.startswith("{"):  # Ray prints in between
            told: dict[str, Any] = json.loads(line)
            return told
    raise AssertionError(driver.communicate()[1])


def test_only_the_token_joins_ranks_on_two_nodes_add_up_and_one_unplugged_is_noticed(
    cluster: Cluster,
) -> None:
    (cluster.folder / "other").write_text("0" * 64)
    stranger = cluster.python(
        "import ray; ray.init(log_to_driver=False)",
        RAY_AUTH_TOKEN_PATH=str(cluster.folder / "other"),
    )
    _, err = stranger.communicate(timeout=120)
    assert stranger.returncode
    assert "Failed to connect" in err, err  # Ray does not say that the token is wrong
    driver = cluster.python(ACROSS.replace("WORKER", WORKER))
    told = said(driver)
    assert sorted(told["where"]) == [HEAD, WORKER]
    assert told["sum"] == [3.0, 3.0]
    cluster.worker.unplug()
    print(file=driver.stdin, flush=True)
    lost = said(driver)
    assert lost["after_s"] < 20
    assert "its node has died" in lost["says"]


@pytest.mark.timeout(900)
def test_a_run_over_two_nodes_names_the_one_that_is_unplugged_and_goes_on_with_another(
    cluster: Cluster, random_model: Path, tmp_path: Path
) -> None:
    lab = Lab(random_model, tmp_path)
    install_probe(tmp_path / "site")
    values = {
        "trainer.placement.policy_num_nodes": 2,
        "generator.inference_engine.num_engines": 2,
        "trainer.ckpt_path": "runs",  # of the controller's folder; processes have copies of it
        "trainer.epochs": 5,
        "trainer.ckpt_interval": 1,
        "trainer.eval_interval": -1,
        "trainer.fsdp.timeout_s": 60,
        "data.val_data": [],
    }
    words = [*lab.words("run", "--plugin", "grpo"), *settings(values)]

    def start() -> "subprocess.Popen[str]":
        return cluster.start(*words, folder=tmp_path, PYTHONPATH=str(tmp_path / "site"))

    run = start()
    while len(lab.at().read_metrics()) < 2:
        assert run.poll() is None, run.communicate()
        time.sleep(0.05)
    cluster.worker.unplug()
    began = time.monotonic()
    _, err = run.communicate(timeout=120)
    assert run.returncode == 1
    assert re.search(
        rf"skyrl: (trainer rank|engine) \d on \S+ \({re.escape(WORKER)}\) has died: its node is gone",
        err,
    ), err
    assert "the same command goes on after step" in err
    assert time.monotonic() - began < 60

    cluster.replace_worker()
    out, err = start().communicate(timeout=300)
    assert "finished at step 10" in out, err
    measured = {name for name in lab.at().read_metrics()[-1] if name.endswith("cpu_ram_used_gb")}
    assert measured == {f"ray/node.{number}.cpu_ram_used_gb" for number in (0, 1)}
    begun = [json.loads(file.read_text().splitlines()[-1]) for file in log_files(tmp_path)]
    assert {one["node"].partition("(")[2] for one in begun} == {f"{HEAD})", f"{WORKER})"}
    assert all("working_dir_files" in one["folder"] for one in begun)  # shipped by uv run


def log_files(folder: Path) -> list[Path]:
    """Of the run's processes."""
    return sorted((folder / "runs" / "run" / "logs").glob("*.jsonl"))
