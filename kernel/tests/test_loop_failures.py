"""What ends a run, or costs it a trajectory: engines, trainers, syncs and plugins that fail."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from skyrl_kernel.errors import (
    FailureBudgetError,
    HookError,
    LogprobsDiffError,
    PluginError,
    RunError,
    WeightSyncError,
)
from skyrl_kernel.run.trajectory_file import read_trajectories
from skyrl_kernel.runner import RunResult
from skyrl_kernel.testing.distributions import make_plugins
from skyrl_kernel.testing.scripted import Ask, Script, installed, read_metrics, run_scripted
from skyrl_kernel.testing.scripted.engine import ScriptedEngine

ASYNC = ("trainer.fully_async.enabled=true", "trainer.fully_async.max_staleness_steps=2")
NO_EVALUATION = "data.val_data=[]"
MISMATCH = "policy/rollout_train_logprobs_abs_diff_mean"

SHOUTS = """
from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.records import Selection

@hookimpl
def select(name):
    return shout if name == "shouts" else None

def shout(candidates, target, rng):
    return Selection(verdicts=("Drop",) * len(candidates), reasons=("",) * len(candidates))
"""

FORGETS = """
from skyrl_kernel.hookspecs import hookimpl

@hookimpl(wrapper=True)
def sync_weights():
    inner = yield
    async def only_once(trainer, engine, version):
        if version == 0:
            await inner(trainer, engine, version)
    return only_once
"""

REFUSES = """
from skyrl_kernel.hookspecs import hookimpl

@hookimpl(wrapper=True)
def sync_weights():
    yield
    async def refuses(trainer, engine, version):
        raise OSError("no way to the engine")
    return refuses
"""

STALE = """
from skyrl_kernel.hookspecs import hookimpl

@hookimpl(wrapper=True)
def sync_weights():
    inner = yield
    async def says_so(trainer, engine, version):
        if version == 0:
            await inner(trainer, engine, version)
        engine.version = version
    return says_so
"""
"""An engine that keeps its first weights and says that it has the newest."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with installed(tmp_path_factory.mktemp("site")) as folder:
        make_plugins(
            folder, {"shouts": SHOUTS, "forgets": FORGETS, "refuses": REFUSES, "stale": STALE}
        )
        yield folder


def warnings_of(result: RunResult) -> list[str]:
    """What the run said about itself by its last checkpoint."""
    state = result.folder / "checkpoints" / f"global_step_{result.step}" / "state.json"
    said: list[str] = json.loads(state.read_text())["warnings"]
    return said


@pytest.mark.usefixtures("site")
def test_a_failing_request_costs_one_trajectory(tmp_path: Path) -> None:
    def reply(ask: Ask) -> str:
        if ask.number == 1:
            raise ConnectionError("the server is gone")
        return str(ask.seed % 2)

    result = run_scripted(tmp_path, NO_EVALUATION, script=Script(reply=reply))

    first, *others = read_metrics(result)
    assert (first["failures/trajectories"], first["failures/infrastructure"]) == (1, 1)
    assert first["reward/avg_pass_at_2"] >= 0  # the metric keeps its name
    assert all(line["failures/trajectories"] == 0 for line in others)
    kept = read_trajectories(result.folder / "trajectories" / "step_1.parquet")
    assert len(kept) == 3


@pytest.mark.usefixtures("site")
def test_too_many_failures_end_the_run_and_name_the_most_common(tmp_path: Path) -> None:
    def reply(ask: Ask) -> str:
        raise ConnectionError("the server is gone")

    with pytest.raises(
        FailureBudgetError,
        match=r"step 1: 4 of 4 trajectories failed \(4 infrastructure\).*max_failed_frac=0.5"
        r".*ConnectionError: the server is gone",
    ):
        run_scripted(tmp_path, NO_EVALUATION, script=Script(reply=reply))

    (failures,) = tmp_path.rglob("failures.jsonl")  # they are there when they are needed most
    assert len(failures.read_text().splitlines()) == 4


@pytest.mark.usefixtures("site")
def test_an_engine_that_is_gone_ends_the_run_before_the_completions_that_it_owes(
    tmp_path: Path,
) -> None:
    """Of the 12 requests that run beside each other, the last 4 are for the last of three steps."""

    def reply(ask: Ask) -> str:
        if ask.number >= 8:
            raise RunError("the server is gone")
        return str(ask.seed % 2)

    words = (NO_EVALUATION, *ASYNC, "trainer.ckpt_interval=1")
    run_scripted(tmp_path, *words, "trainer.max_training_steps=1")
    script = Script(reply=reply, latency_s=lambda ask: 1.0)
    with pytest.raises(RunError, match="the server is gone"):
        run_scripted(tmp_path, *words, script=script)
    assert "update" not in script.events
    (kept,) = (tmp_path / "test_run" / "checkpoints").iterdir()
    assert kept.name == "global_step_1"


@pytest.mark.usefixtures("site")
def test_a_sync_that_brings_no_new_weights_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(WeightSyncError, match=r"policy version 1 the engine says .* version 0"):
        run_scripted(tmp_path, NO_EVALUATION, plugins=["forgets"])


@pytest.mark.usefixtures("site")
def test_an_engine_that_fails_in_a_paused_sync_is_not_asked_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its next failure would hide the first, and tokens of unknown weights would come."""
    asked: list[str] = []

    async def fail(engine: ScriptedEngine) -> None:
        raise WeightSyncError("the weights are lost")

    async def resume(engine: ScriptedEngine) -> None:
        asked.append("resume")

    monkeypatch.setattr(ScriptedEngine, "forget_cache", fail)
    monkeypatch.setattr(ScriptedEngine, "resume", resume)
    clear = "trainer.fully_async.clear_kv_cache_on_weight_sync=true"
    with pytest.raises(WeightSyncError, match="the weights are lost"):
        run_scripted(tmp_path, NO_EVALUATION, *ASYNC, clear)
    assert asked == []


def far() -> Script:
    """One sample of two is right, and the first update moves every log-prob by 0.5 nats, as far as they go."""
    return Script(rate=100.0, reply=lambda ask: "2" if ask.number % 2 else ask.text[-1])


@pytest.mark.usefixtures("site")
def test_a_stale_engine_is_warned_of_and_ends_the_run_while_the_last_checkpoint_stays(
    tmp_path: Path,
) -> None:
    words = (NO_EVALUATION, "trainer.ckpt_interval=1", "trainer.logprobs_diff.warn_above=0.01")
    fresh = run_scripted(tmp_path / "fresh", *words, script=far())
    assert [line[MISMATCH] for line in read_metrics(fresh)] == [0, 0, 0, 0]
    assert not any("differ by" in text for text in warnings_of(fresh))

    stale = run_scripted(tmp_path / "a", *words, script=far(), plugins=["stale"])
    assert [line[MISMATCH] > 0.1 for line in read_metrics(stale)] == [False, True, True, True]
    assert "step 2: engine and trainer differ by 0.5 nats" in warnings_of(stale)[0]

    with pytest.raises(LogprobsDiffError, match=r"^step 2: .*0\.5 nats .*stop_above=0\.2\."):
        run_scripted(
            tmp_path / "b",
            *words,
            "trainer.logprobs_diff.stop_above=0.2",
            script=far(),
            plugins=["stale"],
        )
    (checkpoint,) = (tmp_path / "b").rglob("global_step_*/state.json")
    assert checkpoint.parent.name == "global_step_1"


@pytest.mark.usefixtures("site")
def test_a_verdict_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HookError, match=r"verdict 'Drop'; there are keep, mask and drop"):
        run_scripted(
            tmp_path,
            NO_EVALUATION,
            "trainer.algorithm.dynamic_sampling.type=shouts",
            script=Script(reply=lambda ask: "same"),
        )


@pytest.mark.usefixtures("site")
def test_an_exception_in_the_trainer_names_plugin_stage_and_step(tmp_path: Path) -> None:
    def on_update(number: int) -> None:
        if number == 1:
            raise ArithmeticError("no more numbers")

    with pytest.raises(PluginError, match=r"'scripted'.*'loss', step 2.*ArithmeticError: no more"):
        run_scripted(tmp_path, NO_EVALUATION, script=Script(on_update=on_update))


@pytest.mark.usefixtures("site")
def test_an_exception_in_the_first_sync_names_its_plugin_and_no_step(tmp_path: Path) -> None:
    with pytest.raises(
        PluginError,
        match=r"^plugin 'refuses' \(skyrl-refuses 0\.1\.0\) failed in hook 'sync_weights', before the first "
        r"step, process controller: OSError: no way to the engine$",
    ):
        run_scripted(tmp_path, plugins=["refuses"])
