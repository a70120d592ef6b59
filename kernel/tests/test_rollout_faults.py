"""Faults of envs through a whole run: each costs its trajectory, is typed, counted and written down."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from skyrl_kernel.errors import FailureBudgetError
from skyrl_kernel.json_lines import read_lines
from skyrl_kernel.run.trajectory_file import read_trajectories
from skyrl_kernel.runner import RunResult
from skyrl_kernel.testing.scripted import installed, read_metrics, run_scripted


@pytest.fixture(scope="module", autouse=True)
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with installed(tmp_path_factory.mktemp("site")) as folder:
        yield folder


def run_rows(
    folder: Path, rows: Sequence[Mapping[str, Any]], *overrides: str, kept: int | None = None
) -> RunResult:
    """One step, two samples a row, rows in order, until ``kept`` groups have a trajectory left."""
    kept = len(rows) if kept is None else kept
    path = folder / "rows.jsonl"
    prompt = [{"role": "user", "content": "x"}]
    path.write_text("".join(json.dumps({"prompt": prompt, **row}) + "\n" for row in rows))
    return run_scripted(
        folder,
        f"data.train_data=['{path}']",
        "data.val_data=[]",
        "data.shuffle=false",
        f"trainer.train_batch_size={kept}",
        f"trainer.policy_mini_batch_size={kept}",
        "trainer.max_training_steps=1",
        *overrides,
    )


def failures(result: RunResult) -> list[dict[str, Any]]:
    return [record for _, record in read_lines(result.folder / "failures.jsonl")]


def test_every_fault_costs_its_trajectories_and_is_counted_by_kind(tmp_path: Path) -> None:
    faults = [
        "init raise",
        "step raise",
        "get_metrics raise",
        "close raise",
        "step nan",
        "step bool",
        "step stop_iteration",
        "step sys_exit",  # its turn does not come: 15 groups fill the batch
    ]
    # good, bad, good, bad, …: never are more than half of the trajectories lost
    rows = [{"fault": faults[i // 2]} if i % 2 else {"answer": "1"} for i in range(16)]
    result = run_rows(tmp_path, rows, kept=8)

    assert result.status == "finished"
    (line,) = read_metrics(result)
    # 7 faults × 2 samples; a group that lost all of them is replaced by the next
    assert (line["failures/trajectories"], line["failures/task"]) == (14, 14)
    assert line["generate/groups_dropped"] == 7
    records = failures(result)
    assert sorted({record["uid"] for record in records}, key=lambda uid: int(uid[2:])) == [
        f"0:{row}" for row in range(1, 15, 2)
    ]
    assert {(record["step"], record["kind"], record["plugin"]) for record in records} == {
        (1, "task", "scripted")
    }
    trained = read_trajectories(result.folder / "trajectories" / "step_1.parquet")
    assert {row["uid"] for row in trained} == {f"0:{row}" for row in range(0, 15, 2)}
    # the mean is over those that were judged; a failure is no reward of 0
    assert line["reward/avg_raw_reward"] == sum(row["reward"] for row in trained) / 16


def test_a_hang_is_a_timeout_and_a_dead_process_is_infrastructure(tmp_path: Path) -> None:
    rows = [
        {"answer": "1"},
        {"fault": "step hang", "is_async": True},
        {"answer": "1"},
        {"fault": "step die", "isolate": True},
        *({"answer": "1"} for _ in range(4)),
    ]
    result = run_rows(tmp_path, rows, "environment.timeout_s=3", kept=4)

    (line,) = read_metrics(result)
    assert (line["failures/timeout"], line["failures/infrastructure"]) == (2, 2)
    messages = {record["kind"]: record["message"] for record in failures(result)}
    assert messages == {
        "timeout": "env 'scripted' did not answer step within 3 s (environment.timeout_s)",
        "infrastructure": "env 'scripted' failed in step: its process ended with exit code 7",
    }


def test_isolated_envs_find_their_plugin_in_their_own_process(tmp_path: Path) -> None:
    result = run_rows(tmp_path, [{"isolate": True, "rewards": [0.25, 0.5]}] * 2)

    (line,) = read_metrics(result)
    assert (line["failures/trajectories"], line["reward/avg_raw_reward"]) == (0, 0.75)


def test_more_failures_than_the_budget_stop_the_run_and_say_what_is_most_common(
    tmp_path: Path,
) -> None:
    with pytest.raises(
        FailureBudgetError,
        match=r"step 1: 4 of 6 trajectories failed \(4 task\).*trainer.max_failed_frac=0.5 allows;"
        r" the most common: env 'scripted' failed in step: RuntimeError: the row asked for it",
    ):
        run_rows(tmp_path, [{"fault": "step raise"}] * 2 + [{"answer": "1"}])


def test_failures_of_evaluation_are_counted_and_have_the_same_budget(tmp_path: Path) -> None:
    def held_out(*faults: str | None) -> str:
        path = tmp_path / f"{len(faults)}.jsonl"
        prompt = [{"role": "user", "content": "x"}]
        lines = [json.dumps({"prompt": prompt, "answer": "0", "fault": fault}) for fault in faults]
        path.write_text("\n".join(lines) + "\n")
        return f"data.val_data=['{path}']"

    result = run_scripted(tmp_path, held_out("step raise", None), "trainer.max_training_steps=1")
    first = read_metrics(result)[0]
    assert first["eval/all/failed"] == 1
    assert first["eval/all/avg_score"] == 1.0  # of the one that was judged
    assert [record["step"] for record in failures(result)] == [0, 1]

    with pytest.raises(FailureBudgetError, match="evaluation at step 0: 2 of 3 trajectories"):
        run_scripted(
            tmp_path,
            held_out("step raise", "step raise", None),
            "trainer.run_name=other",
        )
