"""Generation ahead of training: all that works in turns works there too."""

import importlib
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skyrl_kernel.errors import FailureBudgetError
from skyrl_kernel.run.trajectory_file import read_trajectories
from skyrl_kernel.runner import RunResult
from skyrl_kernel.testing.distributions import make_plugins
from skyrl_kernel.testing.killing import check_each_prompt_once, consumed
from skyrl_kernel.testing.scripted import Ask, Script, installed, read_metrics, run_scripted
from skyrl_kernel.testing.scripted.engine import token_logprobs
from skyrl_kernel.testing.scripted.trainer import STATE

AHEAD = ("trainer.fully_async.enabled=true", "trainer.fully_async.max_staleness_steps=2")
NO_EVALUATION = "data.val_data=[]"

WATCHES = """
from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.testing.scripted.script import current

evaluated = []


@hookimpl
def on_eval_end(evaluation):
    versions = {
        int(version)
        for one in evaluation.trajectories
        for segment in one.segments
        for version in segment.versions
        if version != -1
    }
    evaluated.append((evaluation.step, versions))
    current().note(f"evaluated {evaluation.step}")
"""
"""Remembers which weights an evaluation saw."""

STOPS = """
from skyrl_kernel.errors import StopRun
from skyrl_kernel.hookspecs import hookimpl

@hookimpl
def {hook}:
    if {event} == 2:
        raise StopRun("good enough")
"""

DROPS = """
from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.records import Selection

@hookimpl
def select(name):
    return differing if name == "drops" else None

def differing(candidates, target, rng):
    flat = [len({one.reward.total for one in group.trajectories}) == 1 for group in candidates]
    return Selection(
        verdicts=tuple("drop" if is_flat else "keep" for is_flat in flat),
        reasons=tuple("flat" if is_flat else "" for is_flat in flat),
    )
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with installed(tmp_path_factory.mktemp("site")) as folder:
        make_plugins(
            folder,
            {
                "watches": WATCHES,
                "drops": DROPS,
                "on_step": STOPS.format(hook="on_step_end(step)", event="step.step"),
                "on_eval": STOPS.format(hook="on_eval_end(evaluation)", event="evaluation.step"),
                "on_save": STOPS.format(hook="on_checkpoint(step)", event="step"),
            },
        )
        yield folder


pytestmark = pytest.mark.usefixtures("site")


def test_a_step_has_skyrls_times_of_a_run_ahead(tmp_path: Path) -> None:
    lines = read_metrics(run_scripted(tmp_path, *AHEAD, NO_EVALUATION), timings=True)
    assert len(lines) == 4
    for line in lines:
        assert line["timing/wait_for_generation_buffer"] == line["timing/generate"]
        assert 0 < line["timing/run_training"] < line["timing/step"]
        assert line["async/gen_buffer_qsize_at_wait_start"] >= 0


def rows(result: RunResult, step: int) -> list[dict]:
    return read_trajectories(result.folder / "trajectories" / f"step_{step}.parquet", timings=False)


def weight_of(result: RunResult, version: int) -> float:
    """The scripted model's one number at a policy version, of a run that saved every step."""
    if version == 0:
        return 0.0
    file = result.folder / "checkpoints" / f"global_step_{version}" / STATE
    return float(json.loads(file.read_text())["weight"])


# --- evaluation -----------------------------------------------------------------------------------


def test_an_evaluation_sees_the_newest_weights_alone_while_training_rollouts_go_on(
    tmp_path: Path,
) -> None:
    def latency_s(ask: Ask) -> float:
        return 0.15 if ask.sampling.temperature == 0 else 0.05

    script = Script(latency_s=latency_s)
    every_step = "trainer.eval_interval=1"
    run_scripted(tmp_path, *AHEAD, every_step, script=script, plugins=["watches"])
    watches = importlib.import_module("skyrl_watches")
    assert watches.evaluated == [(step, {step}) for step in range(5)]

    # Events of training rollouts stand between the first held-out request and the end of an evaluation.
    assert script.engine is not None
    held_out = {n for n, one in enumerate(script.engine.requests) if one.sampling.temperature == 0}
    begun, overlapped = False, 0
    for event in script.events:
        kind, _, number = event.partition(" ")
        if kind == "evaluated":
            begun = False
        elif kind in {"ask", "answer"}:
            is_held_out = int(number) in held_out
            begun = begun or is_held_out
            overlapped += begun and not is_held_out and kind == "answer"
        assert not (begun and kind in {"sync", "update"})
    assert overlapped


# --- updates while requests run -------------------------------------------------------------------


def test_a_request_that_an_update_overtakes_goes_on_and_each_token_is_of_its_version(
    tmp_path: Path,
) -> None:
    # Replies of 9 tokens take longer than a step, so that most begin under one version and end under another.
    script = Script(
        rate=1.0,
        reply=lambda ask: str(ask.seed % 2) * 8,
        latency_s=lambda ask: 0.03 * (1 + ask.number % 3),
    )
    result = run_scripted(
        tmp_path,
        NO_EVALUATION,
        *AHEAD,
        "trainer.epochs=3",
        "trainer.ckpt_interval=1",
        script=script,
    )
    mixed = 0
    for step in range(1, 13):
        for row in rows(result, step):
            (segment,) = row["segments"]
            versions = np.array(segment["versions"])
            sampled = versions != -1
            assert len(versions[sampled]) == 9  # nothing was cut off
            assert versions[sampled].tolist() == sorted(versions[sampled])
            assert step - 3 <= versions[sampled].min() <= versions[sampled].max() <= step - 1
            mixed += len(set(versions[sampled])) > 1
            expected = [
                token_logprobs(weight_of(result, version), np.array([token]))[0]
                for version, token in zip(
                    versions[sampled], np.array(segment["tokens"])[sampled], strict=True
                )
            ]
            found = np.array(segment["logprobs"])[sampled]
            np.testing.assert_allclose(found, expected, atol=1e-5)
    assert mixed


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    delays=st.lists(st.sampled_from([0.0, 0.001, 0.003, 0.009]), min_size=7, max_size=7),
    pauses=st.lists(st.sampled_from([0.0, 0.002, 0.006]), min_size=3, max_size=3),
    max_staleness=st.integers(0, 3),
    turns=st.integers(1, 2),
    workers=st.sampled_from(["null", "1", "3"]),
    drops=st.booleans(),
)
def test_whatever_takes_long_no_token_is_older_than_allowed(
    tmp_path_factory: pytest.TempPathFactory,
    delays: list[float],
    pauses: list[float],
    max_staleness: int,
    turns: int,
    workers: str,
    drops: bool,
) -> None:
    script = Script(
        latency_s=lambda ask: delays[ask.number % 7],
        on_update=lambda number: time.sleep(pauses[number % 3]),
    )
    result = run_scripted(
        tmp_path_factory.mktemp("run"),
        NO_EVALUATION,
        "trainer.fully_async.enabled=true",
        f"trainer.fully_async.max_staleness_steps={max_staleness}",
        f"trainer.fully_async.num_parallel_generation_workers={workers}",
        f"environment.scripted.max_turns={turns}",
        f"trainer.algorithm.dynamic_sampling.type={'drops' if drops else 'null'}",
        "trainer.epochs=2",
        script=script,
    )
    for step, line in enumerate(read_metrics(result), start=1):
        trained = rows(result, step)
        assert len(trained) == 4
        for row in trained:
            (segment,) = row["segments"]
            sampled = [version for version in segment["versions"] if version != -1]
            assert step - 1 - max_staleness <= min(sampled) <= max(sampled) <= step - 1
        assert line["async/staleness_violation_count"] == 0
        if drops:
            totals: dict[int, set[float]] = {}
            for row in trained:
                totals.setdefault(row["group"], set()).add(row["reward"])
            assert [len(of_group) for of_group in totals.values()] == [2, 2]
    if not drops:
        check_each_prompt_once(result.folder, prompts=8)


# --- ends -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("plugin", ["on_step", "on_eval", "on_save"])
def test_an_observer_stops_the_run_and_the_same_command_trains_on_what_was_left(
    tmp_path: Path, plugin: str
) -> None:
    words = (*AHEAD, "trainer.eval_interval=1", "trainer.ckpt_interval=1")

    def slow() -> Script:
        return Script(latency_s=lambda ask: 0.002 * (ask.seed % 4))

    stopped = run_scripted(tmp_path / "a", *words, script=slow(), plugins=[plugin])
    assert (stopped.status, stopped.step) == ("stopped", 2)
    goes_on = run_scripted(tmp_path / "a", *words, script=slow(), plugins=[plugin])
    assert (goes_on.status, goes_on.step) == ("finished", 4)
    undisturbed = run_scripted(tmp_path / "b", *words, script=slow())
    check_each_prompt_once(goes_on.folder, prompts=8)
    assert consumed(goes_on.folder) == consumed(undisturbed.folder)


def test_what_was_dropped_is_neither_drawn_again_nor_missed_after_a_stop(tmp_path: Path) -> None:
    words = (*AHEAD, NO_EVALUATION, "trainer.algorithm.dynamic_sampling.type=drops")
    run_scripted(tmp_path / "a", *words, plugins=["on_step"])
    goes_on = run_scripted(tmp_path / "a", *words, plugins=["on_step"])
    undisturbed = run_scripted(tmp_path / "b", *words)
    assert sum(line["generate/groups_dropped"] for line in read_metrics(undisturbed)) > 0
    assert consumed(goes_on.folder) == consumed(undisturbed.folder)


# --- failures -------------------------------------------------------------------------------------


def test_a_failing_request_costs_one_trajectory_of_the_step_that_would_have_trained_on_it(
    tmp_path: Path,
) -> None:
    def reply(ask: Ask) -> str:
        if ask.number == 5:  # of 4 requests a step: in the second
            raise ConnectionError("the server is busy")
        return str(ask.seed % 2)

    result = run_scripted(tmp_path, NO_EVALUATION, *AHEAD, script=Script(reply=reply))
    lost = [line["failures/trajectories"] for line in read_metrics(result)]
    assert lost == [0, 1, 0, 0]
    assert [len(rows(result, step)) for step in (1, 2, 3, 4)] == [4, 3, 4, 4]


def test_an_engine_that_is_gone_ends_the_run_at_the_step_that_lacks_it_and_a_new_one_goes_on(
    tmp_path: Path,
) -> None:
    def gone(ask: Ask) -> str:
        if ask.number >= 8:
            raise ConnectionError("the server is gone")
        return str(ask.seed % 2)

    words = (NO_EVALUATION, *AHEAD, "trainer.ckpt_interval=1")
    with pytest.raises(
        FailureBudgetError,
        match=r"step 3: 4 of 4 trajectories failed .*the server is gone",
    ):
        run_scripted(tmp_path, *words, script=Script(reply=gone))
    goes_on = run_scripted(tmp_path, *words)
    assert (goes_on.status, goes_on.step) == ("finished", 4)
    check_each_prompt_once(goes_on.folder, prompts=8)
