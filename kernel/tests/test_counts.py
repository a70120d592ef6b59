"""What engines count of their own work, as it is written with each step and each evaluation."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from skyrl_kernel.counts import Count, joined
from skyrl_kernel.testing.scripted import installed, read_metrics, run_scripted

ENGINE = "generator.inference_engine.backend=counting"


@pytest.fixture(scope="module", autouse=True)
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with installed(tmp_path_factory.mktemp("site")):
        yield


def test_counts_of_several_engines_are_added_up_or_averaged_by_their_weight() -> None:
    busy = {"running": Count(value=6.0), "hit_rate": Count(value=0.75, weight=300.0)}
    idle = {"running": Count(value=0.0)}  # divides nothing by nothing
    other = {"running": Count(value=2.0), "hit_rate": Count(value=0.25, weight=100.0)}
    assert joined([busy, idle, other]) == {
        "running": Count(value=8.0),
        "hit_rate": Count(value=0.625, weight=400.0),  # (0.75 * 300 + 0.25 * 100) / 400
    }
    assert joined([]) == {}


def test_each_step_and_each_evaluation_tells_what_it_made_the_engine_count(tmp_path: Path) -> None:
    result = run_scripted(tmp_path, ENGINE, "trainer.eval_interval=2")
    lines = read_metrics(result, timings=True)
    of_steps = [line.get("counting/train/requests") for line in lines]
    of_evaluations = [line.get("counting/eval/requests") for line in lines]
    assert of_steps == [None, 4, 4, 4, 4]  # 2 prompts of a batch, 2 trajectories each
    assert of_evaluations == [
        4,
        None,
        4,
        None,
        4,
    ]  # 4 held-out prompts, before and after every second
    for line in lines[1:]:
        assert line["counting/train/seconds"] == line["timing/generate"]
        assert line["counting/train/prompt_tokens"] > 0
    assert lines[2]["counting/eval/seconds"] == lines[2]["timing/eval_generate"]


def test_the_result_of_an_evaluation_is_without_what_the_engine_counted(tmp_path: Path) -> None:
    result = run_scripted(tmp_path, ENGINE)
    assert {name.partition("/")[0] for name in (*result.first_eval, *result.last_eval)} == {"eval"}


def test_where_generation_runs_ahead_the_engine_generates_all_the_time(tmp_path: Path) -> None:
    ahead = ("trainer.fully_async.enabled=true", "trainer.fully_async.max_staleness_steps=2")
    result = run_scripted(tmp_path, ENGINE, *ahead, "data.val_data=[]")
    for line in read_metrics(result, timings=True):
        assert line["counting/train/seconds"] > line["timing/generate"]


def test_a_run_may_leave_out_what_the_engine_counts(tmp_path: Path) -> None:
    word = "generator.inference_engine.enable_ray_prometheus_stats=false"
    lines = read_metrics(run_scripted(tmp_path, ENGINE, word), timings=True)
    assert not [name for line in lines for name in line if name.startswith("counting/")]
