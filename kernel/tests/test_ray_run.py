"""Whole runs on a Ray of the test session: the layouts, equality with one process, resume."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from skyrl_kernel.config import InferenceEngineConfig
from skyrl_kernel.config.trainer import PlacementConfig
from skyrl_kernel.errors import CapabilityError, PluginLoadError
from skyrl_kernel.plugins import discover
from skyrl_kernel.runner import RunResult
from skyrl_kernel.slots import ALGORITHMS
from skyrl_kernel.testing.distributions import make_distribution, on_path
from skyrl_kernel.testing.scripted import read_metrics, run_scripted

if TYPE_CHECKING:
    from skyrl_kernel.ray.monitor import Monitor

RAY = "trainer.runtime=ray"
PLACEMENT = "trainer.placement"
ENGINES = "generator.inference_engine.num_engines"
TWO_RANKS = (f"{PLACEMENT}.policy_num_gpus_per_node=2", f"{ENGINES}=2")
APART = f"{PLACEMENT}.colocate_all=false"


pytestmark = pytest.mark.usefixtures("fakes_on_ray")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """The same run in one process."""
    return run_scripted(tmp_path_factory.mktemp("alone"), "trainer.runtime=local", SYNC)


SYNC = "generator.inference_engine.weight_sync_backend=scripted"


def test_one_rank_and_one_engine_give_the_numbers_of_one_process(
    tmp_path: Path, alone: RunResult
) -> None:
    result = run_scripted(tmp_path, RAY)
    assert result.status == "finished"
    assert read_metrics(result) == read_metrics(alone)
    assert (result.folder / "log.jsonl").read_text().count('"engines made"') == 1  # not once a sync


@pytest.mark.parametrize(
    "layout",
    [
        pytest.param((), id="colocated"),
        pytest.param((APART,), id="engines-apart", marks=pytest.mark.slow),
        pytest.param((APART, f"{ENGINES}=3"), id="more-engines-than-ranks", marks=pytest.mark.slow),
    ],
)
def test_two_ranks_give_them_too(tmp_path: Path, alone: RunResult, layout: tuple[str, ...]) -> None:
    result = run_scripted(tmp_path, *TWO_RANKS, *layout)
    for found, expected in zip(read_metrics(result), read_metrics(alone), strict=True):
        assert found == pytest.approx(expected, rel=1e-12, abs=1e-15)  # sums in another order


KL = "trainer.algorithm.use_kl_loss=true"


@pytest.mark.slow
def test_a_reference_on_devices_of_its_own_gives_the_same_scores(tmp_path: Path) -> None:
    apart = (
        APART,
        f"{PLACEMENT}.colocate_policy_ref=false",
        f"{PLACEMENT}.ref_num_gpus_per_node=2",
    )
    there = run_scripted(tmp_path / "there", KL, RAY, *apart)
    here = run_scripted(tmp_path / "here", KL, "trainer.runtime=local")
    assert read_metrics(there) == read_metrics(here)


GAE = "trainer.algorithm.advantage_estimator=gae"
CRITICS = f"{PLACEMENT}.critic_num_gpus_per_node"


@pytest.mark.parametrize(
    "layout",
    [
        (f"{CRITICS}=2",),
        pytest.param((*TWO_RANKS, f"{PLACEMENT}.critic_num_nodes=1"), marks=pytest.mark.slow),
    ],
    ids=["more-than-the-policy", "fewer"],
)
def test_a_critic_on_devices_of_its_own_learns_what_it_does_beside_the_policy(
    tmp_path: Path, layout: tuple[str, ...]
) -> None:
    """Also after it was beside it for a while: a checkpoint says nothing of processes."""
    pytest.importorskip("skyrl_ppo", reason="not checked: a critic needs the plugin ppo")
    moved, half = tmp_path / "moved", "trainer.max_training_steps=2"
    here = run_scripted(tmp_path / "here", GAE, "trainer.runtime=local")
    run_scripted(moved, GAE, "trainer.runtime=local", half)
    there = run_scripted(moved, GAE, RAY, APART, *layout)
    assert there.folder.parent == moved
    steps, same = read_metrics(there)[3:], read_metrics(here)[3:]
    for found, expected in zip(steps, same, strict=True):
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert steps[0]["critic/old_values_mean"] < steps[1]["critic/old_values_mean"]


def test_generation_runs_ahead_in_a_process_of_its_own(tmp_path: Path) -> None:
    ahead = ("trainer.fully_async.enabled=true", "trainer.fully_async.max_staleness_steps=2")
    result = run_scripted(tmp_path, RAY, APART, f"{ENGINES}=2", *ahead)
    assert result.status == "finished"
    assert len(read_metrics(result)) == 5  # steps 0 (evaluation) to 4


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_ranks(tmp_path: Path, alone: RunResult) -> None:
    first = run_scripted(tmp_path, "trainer.runtime=local", "trainer.max_training_steps=2")
    assert first.step == 2
    second = run_scripted(tmp_path, *TWO_RANKS)
    assert second.folder == first.folder
    for found, expected in zip(read_metrics(second)[3:], read_metrics(alone)[3:], strict=True):
        assert found == pytest.approx(expected, rel=1e-12, abs=1e-15)


def test_what_ray_does_not_have_is_refused_with_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SKYRL_RAY_PG_TIMEOUT_IN_S", "1")
    monkeypatch.setattr("skyrl_kernel.ray.placement._ANNOUNCED_S", 0.1)
    with pytest.raises(
        CapabilityError,
        match=r"within SKYRL_RAY_PG_TIMEOUT_IN_S=1 s: 20 × \(CPU 1\) for engines \(generator\.inference_"
        r"engine\.num_engines × .*\)\. There is .*: CPU 8; free of that: CPU 7\. .* nodes are still coming",
    ):
        run_scripted(tmp_path, RAY, APART, f"{ENGINES}=20")
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "waiting for devices, at most SKYRL_RAY_PG_TIMEOUT_IN_S=1 s: 20 × (CPU 1) for eng" in said
    )
    assert not list(tmp_path.iterdir())


def test_a_ray_of_the_runs_own_with_too_few_processors_names_the_key_that_counts_them() -> None:
    """It has as many as the run needs, unless that key says less."""
    from skyrl_kernel.ray.demands import demands
    from skyrl_kernel.ray.placement import Placement

    config, engine = PlacementConfig(colocate_all=False), InferenceEngineConfig(num_engines=20)
    wanted = demands(config, engine, alone=(), gpus=False)
    with pytest.raises(
        CapabilityError, match=r"CPU 8; .* or add nodes\. Or leave trainer\.ray\.num_cpus out$"
    ):
        Placement(wanted, grows=False)


def test_a_process_that_ray_cannot_start_is_refused_within_a_deadline(tmp_path: Path) -> None:
    nowhere = "trainer.ray.trainer_env={py_executable: /nonexistent/python}"
    with pytest.raises(
        CapabilityError,
        match=r"^trainer rank 0: no answer in 3 s \(trainer\.ray\.start_timeout_s\): Ray cannot start",
    ):
        run_scripted(tmp_path, RAY, nowhere, "trainer.ray.start_timeout_s=3")
    assert not list(tmp_path.iterdir())


def test_several_ranks_are_refused_where_they_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(CapabilityError, match="= 2 ranks needs 'separate_processes'"):
        run_scripted(tmp_path, *TWO_RANKS, "trainer.runtime=local")


# --- the plugins of every process -------------------------------------------------------

LOSS = """
from dataclasses import replace
from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.testing import scripted

@hookimpl
def loss(name):
    return replace(scripted.loss("scripted"), atom="group") if name == "own" else None
"""


def own_loss(folder: Path, version: str = "0.1.0", source: str = LOSS, base: str = "") -> Path:
    make_distribution(
        folder,
        "skyrl-own",
        version,
        modules={"skyrl_own": source},
        entry_points={ALGORITHMS: {"own": "skyrl_own"}},
        requires=["skyrl-kernel>=0.1", "skyrl-base"],
    )
    make_distribution(folder, "skyrl-base", modules={"skyrl_base.inner": base})
    return folder


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Path]:
    """Where this process has the plugin `own`."""
    with on_path(own_loss(tmp_path / "here")) as folder:
        discover(refresh=True)
        yield folder
    discover(refresh=True)


def run_with_processes_that_have(*folders: Path, runs: Path) -> RunResult:
    path = os.pathsep.join([*map(str, folders), os.environ["PYTHONPATH"]])
    environment = f"trainer.ray.trainer_env={{env_vars: {{PYTHONPATH: '{path}'}}}}"
    return run_scripted(runs, RAY, "trainer.algorithm.policy_loss_type=own", environment)


def test_processes_load_what_the_lock_names(here: Path, tmp_path: Path) -> None:
    result = run_with_processes_that_have(here, runs=tmp_path / "runs")
    assert result.status == "finished"


@pytest.mark.parametrize(
    ("version", "source", "told"),
    [
        ("0.1.0", LOSS + "# changed", r"own: skyrl-own 0\.1\.0: file contents changed"),
        ("0.2.0", LOSS, r"own: skyrl-own 0\.1\.0 → 0\.2\.0"),
    ],
    ids=["another-file", "another-version"],
)
def test_a_process_with_another_copy_of_a_plugin_is_refused_before_it_loads_it(
    here: Path, tmp_path: Path, version: str, source: str, told: str
) -> None:
    there = own_loss(tmp_path / "there", version, source + "\nraise RuntimeError('was imported')")
    with pytest.raises(PluginLoadError, match=rf"trainer rank 0 on .*\n  {told}"):
        run_with_processes_that_have(there, runs=tmp_path / "runs")
    assert not (tmp_path / "runs" / "test_run").exists()


def test_so_is_one_with_another_copy_of_what_the_plugin_is_built_on(
    here: Path, tmp_path: Path
) -> None:
    there = own_loss(tmp_path / "there", base="# changed")
    with pytest.raises(PluginLoadError, match=r"own: skyrl-base 0\.1\.0: file contents changed"):
        run_with_processes_that_have(there, runs=tmp_path / "runs")


def test_a_process_without_a_plugin_is_refused_with_how_to_install_it(
    here: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        PluginLoadError,
        match=r'own: removed \(skyrl-own 0\.1\.0\)\n(?s:.*)pip install "skyrl-own==0\.1\.0"',
    ):
        run_with_processes_that_have(runs=tmp_path / "runs")


def test_what_engines_count_is_added_up(tmp_path: Path) -> None:
    counting = "generator.inference_engine.backend=counting"
    result = run_scripted(tmp_path, RAY, APART, f"{ENGINES}=2", counting)
    lines = read_metrics(result, timings=True)
    assert [line.get("counting/train/requests") for line in lines] == [None, 4, 4, 4, 4]
    assert [line.get("counting/eval/requests") for line in lines] == [4, None, None, None, 4]
    [line, *_] = lines[1:]  # two engines were told the same seconds
    assert line["counting/train/seconds"] == pytest.approx(2 * line["timing/generate"])


# --- machines ---------------------------------------------------------------------------


def test_each_step_tells_how_full_its_machines_are(tmp_path: Path) -> None:
    result = run_scripted(tmp_path, *TWO_RANKS, "trainer.epochs=8")
    numbers = read_metrics(result, timings=True)[-1]  # the first steps are over before a look
    machines = {name: value for name, value in numbers.items() if name.startswith("ray/")}
    used = machines["ray/node.0.cpu_ram_used_gb"]
    assert 0 < used < 1000
    assert machines.pop("ray/cpu_ram_used_gb.avg") == used  # both ranks are on one machine
    assert {name for name in machines if ".gpu." not in name} == {"ray/node.0.cpu_ram_used_gb"}


@pytest.mark.slow
def test_a_run_may_leave_its_machines_alone(tmp_path: Path) -> None:
    result = run_scripted(tmp_path, RAY, "trainer.enable_ray_gpu_monitor=false", "trainer.epochs=8")
    lines = read_metrics(result, timings=True)
    assert not [name for line in lines for name in line if name.startswith("ray/")]


@pytest.fixture
def watching() -> "Iterator[Monitor]":
    from skyrl_kernel.ray.monitor import Monitor

    made = Monitor()
    yield made
    made.close()


def first_measured(watching: "Monitor") -> dict[str, float]:
    """The first numbers there are: an actor takes a while to begin."""
    until = time.monotonic() + 60
    while not (found := watching.measure()):
        assert time.monotonic() < until
        time.sleep(0.05)
    return found


def test_a_late_machine_is_waited_for_once(
    watching: "Monitor", monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import ray

    [node] = [node["NodeID"] for node in ray.nodes()]
    watching.watch([node, node], {})
    assert first_measured(watching)["ray/cpu_ram_used_gb.avg"] > 0
    monkeypatch.setattr("skyrl_kernel.ray.monitor._SAID_AFTER_S", 0.0)
    [gauge] = [one.gauge for one in watching._nodes.values()]
    busy = gauge.__ray_call__.remote(lambda _: time.sleep(3))
    began = time.monotonic()
    assert watching.measure() == {}
    assert 0.4 < time.monotonic() - began < 1.5
    began = time.monotonic()
    assert watching.measure() == {}
    assert time.monotonic() - began < 0.25
    assert caplog.text.count("a machine is left out of the ray/ metrics") == 1
    ray.get(busy)
    assert first_measured(watching)["ray/node.0.cpu_ram_used_gb"] > 0


def test_a_machine_that_is_gone_is_left_out_and_said_once(
    watching: "Monitor", caplog: pytest.LogCaptureFixture
) -> None:
    import ray

    watching.watch(["ab" * 28, ray.nodes()[0]["NodeID"]], {})
    assert set(first_measured(watching)) == {
        "ray/node.1.cpu_ram_used_gb",
        "ray/cpu_ram_used_gb.avg",
    }
    until = time.monotonic() + 30
    while "a machine is left out" not in caplog.text and time.monotonic() < until:
        watching.measure()
        time.sleep(0.05)
    watching.measure()
    assert caplog.text.count("a machine is left out of the ray/ metrics") == 1
