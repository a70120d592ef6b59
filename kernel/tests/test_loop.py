"""The loop, whole: real discovery, config, producer, agent and run folder; scripted numbers."""

import ast
import itertools
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import skyrl_kernel.loop
from skyrl_kernel.errors import (
    RunError,
)
from skyrl_kernel.plugins import discover
from skyrl_kernel.run.trajectory_file import read_trajectories
from skyrl_kernel.runner import RunResult
from skyrl_kernel.testing.distributions import make_plugins
from skyrl_kernel.testing.scripted import Script, installed, read_metrics, run_scripted

ASYNC = ("trainer.fully_async.enabled=true", "trainer.fully_async.max_staleness_steps=2")
NO_EVALUATION = "data.val_data=[]"

SELECT = """
from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.records import Selection

@hookimpl
def select(name):
    return {rule} if name == "{name}" else None

def no_variance(candidates, target, rng):
    flat = [len({{one.reward.total for one in group.trajectories}}) == 1 for group in candidates]
    return Selection(
        verdicts=tuple("{verdict}" if is_flat else "keep" for is_flat in flat),
        reasons=tuple("no variance" if is_flat else "" for is_flat in flat),
    )
"""

STOPS = """
from skyrl_kernel.errors import StopRun
from skyrl_kernel.hookspecs import hookimpl

@hookimpl
def on_step_end(step):
    if step.step == 2:
        raise StopRun("the curve is flat")
"""

SATISFIED = """
from skyrl_kernel.errors import StopRun
from skyrl_kernel.hookspecs import hookimpl

@hookimpl
def {hook}:
    if {event} == 2:
        raise StopRun("good enough")
"""

REMEMBERS = """
from skyrl_kernel.hookspecs import hookimpl
from dataclasses import replace

class Count:
    calls = 0
    def state_dict(self):
        return {"calls": self.calls}
    def load_state_dict(self, state):
        self.calls = state["calls"]

@hookimpl(wrapper=True)
def advantage(settings):
    inner = yield
    count = Count()
    def fn(groups):
        count.calls += 1
        return inner(groups)
    def measure(groups):
        return {"loss/calls": count.calls, "loss/groups": len(groups)}
    return replace(inner, fn=fn, measure=measure, state={**inner.state, "count": count})
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with installed(tmp_path_factory.mktemp("site")) as folder:
        make_plugins(
            folder,
            {
                "stops": STOPS,
                "on_eval": SATISFIED.format(
                    hook="on_eval_end(evaluation)", event="evaluation.step"
                ),
                "on_save": SATISFIED.format(hook="on_checkpoint(step)", event="step"),
                "remembers": REMEMBERS,
                "drops": SELECT.format(name="drops", verdict="drop", rule="no_variance"),
                "masks": SELECT.format(name="masks", verdict="mask", rule="no_variance"),
            },
        )
        yield folder


def trajectories(result: RunResult, step: int) -> list[dict]:
    return read_trajectories(result.folder / "trajectories" / f"step_{step}.parquet", timings=False)


def round_of(first: int) -> list[str]:
    """Four requests that are asked together, and then answered."""
    numbers = range(first, first + 4)
    return [*(f"ask {n}" for n in numbers), *(f"answer {n}" for n in numbers)]


@pytest.mark.usefixtures("site")
def test_a_synchronous_run_generates_updates_and_syncs_in_turn(tmp_path: Path) -> None:
    script = Script(lockstep=True)
    result = run_scripted(tmp_path, NO_EVALUATION, "trainer.max_training_steps=3", script=script)

    # 2 prompts × 2 samples = 4 requests a step
    assert script.events == [
        "sync 0",
        *round_of(0),
        "update",
        "sync 1",
        *round_of(4),
        "update",
        "sync 2",
        *round_of(8),
        "update",
        "sync 3",
        "export",
        "save",
    ]
    assert (result.status, result.step) == ("finished", 3)


@pytest.mark.usefixtures("site")
@pytest.mark.parametrize("is_async", [False, True])
def test_every_step_trains_on_batch_size_times_samples_trajectories(
    tmp_path: Path, is_async: bool
) -> None:
    script = Script()
    result = run_scripted(
        tmp_path,
        NO_EVALUATION,
        "trainer.train_batch_size=4",
        "trainer.policy_mini_batch_size=2",
        "trainer.update_epochs_per_batch=2",
        "generator.n_samples_per_prompt=3",
        *(ASYNC if is_async else ()),
        script=script,
    )

    assert script.trainer is not None
    # 8 prompts / 4 = 2 steps; each 2 passes over 2 mini-batches of 2 prompts × 3 samples
    assert [len(batch) for batch in script.trainer.batches] == [6] * 8
    for step in (1, 2):
        rows = trajectories(result, step)
        assert len(rows) == 12
        assert [row["sample"] for row in rows] == [0, 1, 2] * 4
    first, second, third, fourth = (
        [s.trajectory_id for s in b] for b in script.trainer.batches[:4]
    )
    assert first == third
    assert second == fourth
    assert not set(first) & set(second)


@pytest.mark.usefixtures("site")
def test_synchronous_tokens_carry_the_version_of_the_step_before(tmp_path: Path) -> None:
    result = run_scripted(tmp_path, NO_EVALUATION)

    for step in (1, 2, 3, 4):
        for row in trajectories(result, step):
            (segment,) = row["segments"]
            sampled = {v for v in segment["versions"] if v != -1}
            assert sampled == {step - 1}
    assert [line["async/staleness_max"] for line in read_metrics(result)] == [0, 0, 0, 0]


@pytest.mark.usefixtures("site")
def test_with_staleness_generation_overlaps_training(tmp_path: Path) -> None:
    script = Script(latency_s=lambda ask: 0.0 if ask.number < 4 else 0.5)
    answered: list[int] = []

    def on_update(number: int) -> None:
        if number == 0:  # ends only when the engine has answered a request of the next step
            before = len(script.events)
            deadline = time.monotonic() + 20
            while len(script.events) == before and time.monotonic() < deadline:
                time.sleep(0.001)
            answered.extend(script.events[before:])

    script.on_update = on_update
    run_scripted(tmp_path, NO_EVALUATION, *ASYNC, "trainer.max_training_steps=2", script=script)

    assert answered
    assert answered[0].startswith("answer")


@pytest.mark.usefixtures("site")
@pytest.mark.parametrize("workers", [1, 3])
def test_ahead_of_training_no_more_groups_are_generated_at_a_time_than_asked_for(
    tmp_path: Path, workers: int
) -> None:
    script = Script(latency_s=lambda ask: 0.002)
    bound = f"trainer.fully_async.num_parallel_generation_workers={workers}"
    result = run_scripted(tmp_path, NO_EVALUATION, *ASYNC, bound, script=script)

    running = most = 0
    for event in script.events:
        running += {"ask": 1, "answer": -1}.get(event.split()[0], 0)
        most = max(most, running)
    assert most == 2 * workers  # two samples a group; admission alone allows 6 groups
    assert result.step == 4


@pytest.mark.usefixtures("site")
def test_cached_keys_and_values_are_forgotten_after_each_sync_if_asked_for(tmp_path: Path) -> None:
    clear = "trainer.fully_async.clear_kv_cache_on_weight_sync=true"
    for name, words, expected in (
        ("a", (*ASYNC, clear), ["sync", "forget"] * 5),
        ("b", ASYNC, ["sync"] * 5),
        ("c", (clear,), ["sync"] * 5),
    ):
        script = Script()
        run_scripted(tmp_path / name, NO_EVALUATION, *words, script=script)
        kinds = [event.split()[0] for event in script.events]
        assert [kind for kind in kinds if kind in {"sync", "forget"}] == expected


@pytest.mark.usefixtures("site")
def test_without_staleness_nothing_is_asked_while_the_trainer_trains(tmp_path: Path) -> None:
    script = Script()
    script.on_update = lambda number: script.note("update ends")
    run_scripted(tmp_path, NO_EVALUATION, script=script)

    for event, following in itertools.pairwise(script.events):
        if event == "update":
            assert following == "update ends"
        if event == "update ends":
            assert following.startswith("sync")


@pytest.mark.usefixtures("site")
@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    latencies=st.lists(st.sampled_from([0.0, 0.001, 0.004]), min_size=5, max_size=5),
    max_staleness=st.integers(0, 3),
    plugin=st.sampled_from(["", "drops", "masks"]),
)
def test_nothing_is_trained_on_that_is_staler_than_allowed(
    tmp_path_factory: pytest.TempPathFactory,
    latencies: list[float],
    max_staleness: int,
    plugin: str,
) -> None:
    script = Script(latency_s=lambda ask: latencies[ask.number % 5])
    chosen = f"trainer.algorithm.dynamic_sampling.type={plugin or 'null'}"
    result = run_scripted(
        tmp_path_factory.mktemp("run"),
        NO_EVALUATION,
        chosen,
        "trainer.fully_async.enabled=true",
        f"trainer.fully_async.max_staleness_steps={max_staleness}",
        "trainer.epochs=2",
        script=script,
    )

    groups = []
    for step in range(1, 9):
        rows = trajectories(result, step)
        assert len(rows) == 4
        versions = [v for row in rows for v in row["segments"][0]["versions"] if v != -1]
        assert step - 1 - min(versions) <= max_staleness
        assert max(versions) <= step - 1
        groups += [row["group"] for row in rows]
    assert groups == sorted(groups)  # consumed in the order in which they were begun
    assert set(Counter(groups).values()) == {2}  # each once
    if plugin != "drops":
        assert sorted(set(groups)) == list(range(16))


@pytest.mark.usefixtures("site")
@pytest.mark.parametrize("is_async", [False, True])
def test_each_epoch_trains_on_each_prompt_once(tmp_path: Path, is_async: bool) -> None:
    result = run_scripted(
        tmp_path,
        NO_EVALUATION,
        "trainer.epochs=2",
        *(ASYNC if is_async else ()),
        script=Script(latency_s=lambda ask: 0.001 * (ask.seed % 4)),
    )

    drawn = [row["uid"] for step in range(1, 9) for row in trajectories(result, step)[::2]]
    everything = {f"0:{row}" for row in range(8)}
    assert set(drawn[:8]) == everything
    assert set(drawn[8:]) == everything
    assert drawn[:8] != drawn[8:]  # in another order
    assert [line["trainer/epoch"] for line in read_metrics(result)] == [0] * 4 + [1] * 4


@pytest.mark.usefixtures("site")
def test_dropped_groups_are_replaced_by_new_ones(tmp_path: Path) -> None:
    script = Script()
    result = run_scripted(
        tmp_path,
        NO_EVALUATION,
        "trainer.algorithm.dynamic_sampling.type=drops",
        "trainer.max_training_steps=3",
        script=script,
    )

    lines = read_metrics(result)
    dropped = sum(line["generate/groups_dropped"] for line in lines)
    assert dropped > 0
    assert script.engine is not None
    assert len(script.engine.requests) == 2 * (3 * 2 + dropped)  # two samples a group
    for step in (1, 2, 3):
        totals: dict[int, set[float]] = {}
        for row in trajectories(result, step):
            totals.setdefault(row["group"], set()).add(row["reward"])
        assert [len(of_group) for of_group in totals.values()] == [2, 2]


@pytest.mark.usefixtures("site")
def test_masked_groups_stay_in_the_batch_and_train_on_nothing(tmp_path: Path) -> None:
    script = Script()
    result = run_scripted(
        tmp_path, NO_EVALUATION, "trainer.algorithm.dynamic_sampling.type=masks", script=script
    )

    assert script.trainer is not None
    masked = 0
    for step, batch in enumerate(script.trainer.batches, start=1):
        rewards = [row["reward"] for row in trajectories(result, step)]
        for first in (0, 2):
            is_flat = rewards[first] == rewards[first + 1]
            masked += is_flat
            for sample in batch[first : first + 2]:
                assert sample.loss_mask.any() != is_flat
    assert masked == sum(line["generate/groups_masked"] for line in read_metrics(result)) > 0


@pytest.mark.usefixtures("site")
def test_a_selection_that_never_fills_the_batch_ends_the_run_with_its_reasons(
    tmp_path: Path,
) -> None:
    with pytest.raises(
        RunError, match=r"3 rounds .* 0 of 2 groups .*6 dropped: no variance.*max_s"
    ):
        run_scripted(
            tmp_path,
            NO_EVALUATION,
            "trainer.algorithm.dynamic_sampling.type=drops",
            "trainer.algorithm.dynamic_sampling.max_sample_batches=3",
            script=Script(reply=lambda ask: "same"),
        )


@pytest.mark.usefixtures("site")
def test_an_observer_can_stop_the_run_and_the_same_command_goes_on(tmp_path: Path) -> None:
    stopped = run_scripted(tmp_path, NO_EVALUATION, plugins=["stops"])

    assert (stopped.status, stopped.step) == ("stopped", 2)
    assert [path.name for path in (stopped.folder / "checkpoints").iterdir()] == ["global_step_2"]

    script = Script()
    goes_on = run_scripted(tmp_path, NO_EVALUATION, script=script, plugins=["stops"])

    assert (goes_on.status, goes_on.step) == ("finished", 4)
    assert script.trainer is not None
    assert (len(script.trainer.batches), script.trainer.updates) == (2, 4)


@pytest.mark.usefixtures("site")
@pytest.mark.parametrize("plugin", ["on_eval", "on_save"])
def test_every_observation_can_stop_the_run_after_its_step(tmp_path: Path, plugin: str) -> None:
    every_step = ("trainer.eval_interval=1", "trainer.ckpt_interval=1")
    result = run_scripted(tmp_path, *every_step, plugins=[plugin])

    assert (result.status, result.step) == ("stopped", 2)
    assert len(read_metrics(result)) == 3  # steps 0, 1 and 2


@pytest.mark.usefixtures("site")
def test_a_stopped_and_continued_run_equals_an_undisturbed_one(tmp_path: Path) -> None:
    run_scripted(tmp_path / "a", plugins=["stops"])
    continued = run_scripted(tmp_path / "a", plugins=["stops"])
    undisturbed = run_scripted(tmp_path / "b")

    assert read_metrics(continued) == read_metrics(undisturbed)
    for step in (1, 2, 3, 4):
        assert trajectories(continued, step) == trajectories(undisturbed, step)


@pytest.mark.usefixtures("site")
def test_an_advantage_reports_its_own_numbers_and_what_it_remembers_survives_a_resume(
    tmp_path: Path,
) -> None:
    command = (tmp_path, NO_EVALUATION)
    run_scripted(*command, plugins=["stops", "remembers"])
    result = run_scripted(*command, plugins=["stops", "remembers"])
    lines = read_metrics(result)
    assert [line["loss/calls"] for line in lines] == [1, 2, 3, 4]
    assert {line["loss/groups"] for line in lines} == {2}


@pytest.mark.usefixtures("site")
@pytest.mark.parametrize("lockstep", [False, True])
def test_equal_seeds_give_equal_runs(tmp_path: Path, lockstep: bool) -> None:
    first, second = (
        run_scripted(tmp_path / name, script=Script(lockstep=lockstep)) for name in "ab"
    )
    other = run_scripted(tmp_path / "c", "trainer.seed=1", script=Script(lockstep=lockstep))

    assert read_metrics(first) == read_metrics(second) != read_metrics(other)
    for step in (1, 2, 3, 4):
        assert trajectories(first, step) == trajectories(second, step)


def test_evaluation_comes_before_training_at_its_interval_and_at_the_end(tmp_path: Path) -> None:
    result = run_scripted(tmp_path, "trainer.eval_interval=3")

    evaluated = [line["step"] for line in read_metrics(result) if "eval/all/avg_score" in line]
    assert evaluated == [0, 3, 4]


@pytest.mark.usefixtures("site")
def test_evaluation_shares_the_engine_with_no_training_rollout_when_synchronous(
    tmp_path: Path,
) -> None:
    # Otherwise the batches of an engine depend on whether this process evaluated before it
    # generated, and a run that was continued right after would not be the undisturbed one.
    script = Script(lockstep=True)
    run_scripted(tmp_path, "trainer.eval_interval=1", script=script)

    assert script.engine is not None
    assert set(script.engine.calls) == {4}  # 4 held-out prompts × 1, or 2 prompts × 2


def test_the_loop_is_short_and_names_no_plugin() -> None:
    path = Path(skyrl_kernel.loop.__file__)
    source = path.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 120

    tree = ast.parse(source)
    constants = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant)}
    imported = {
        name
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in [getattr(node, "module", None), *(alias.name for alias in node.names)]
    }
    for entry in discover():
        assert entry.name not in constants, f"the loop names the plugin {entry.name}"
        assert entry.package == "skyrl_kernel" or entry.package not in imported
