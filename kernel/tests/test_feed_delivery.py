"""How much of a run folder a store is given, and when: the parts of the feed, in this process."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skyrl_kernel.config import TrainerConfig
from skyrl_kernel.feed import NOTHING, Delivery, LogEnd, LogRecord, LogRun, spread
from skyrl_kernel.feed.backlog import LOGGERS, eval_rows
from skyrl_kernel.feed.cursor import Cursor
from skyrl_kernel.feed.journal import Journal
from skyrl_kernel.feed.tables import COLUMNS, eval_table, train_table, write_eval_rows
from skyrl_kernel.records import Group, Prompt, Reward, Segment, StopReason, Trajectory, Turn
from skyrl_kernel.run import RunFolder, write_trajectories


class Store:
    """What sinks wrote, and the sink: one store has many sinks, one after the other."""

    def __init__(self, held: int | None = None) -> None:
        self.runs: list[LogRun] = []
        self.records: list[LogRecord] = []
        self.ends: list[LogEnd] = []
        self.held = held
        self.fails_at: int | None = None

    def open(self, run: LogRun) -> int | None:
        self.runs.append(run)
        return self.held if run.resumed else None

    def log(self, record: LogRecord) -> None:
        if record.step == self.fails_at:
            self.fails_at = None
            raise OSError("no route")
        self.records.append(record)

    def close(self, end: LogEnd) -> None:
        self.ends.append(end)

    @property
    def steps(self) -> list[int]:
        return [record.step for record in self.records]


def trajectory(sample: int = 0, actions: Sequence[str] = ("6",)) -> Trajectory:
    tokens = np.arange(3 + 2 * len(actions), dtype=np.int32)
    mask = np.array([False] * 3 + [True] * (2 * len(actions)))
    return Trajectory(
        prompt=Prompt(
            uid="7",
            messages=[{"role": "user", "content": "2 * 3"}],
            env_class="multiply",
            data_source="products",
        ),
        sample=sample,
        segments=(Segment(tokens=tokens, num_prompt_tokens=3, loss_mask=mask),),
        turns=tuple(
            Turn(segment=0, start=3 + 2 * n, stop=5 + 2 * n, reward=0.5, action=action)
            for n, action in enumerate(actions)
        ),
        stop_reason=StopReason.STOP,
        reward=Reward(turns=(0.5,) * len(actions)),
    )


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    folder.write_config({"trainer": {"run_name": "run"}}, {})
    return folder


def finish(folder: RunFolder, *steps: int) -> None:
    """The run finishes these steps, with one trajectory each."""
    for step in steps:
        folder.append_metrics(step, {"reward/avg_raw_reward": float(step)})
        if step:
            group = Group(index=0, prompt=trajectory().prompt, trajectories=(trajectory(),))
            write_trajectories(folder.trajectory_file(step), [group])


def delivery(folder: RunFolder, store: Store, back_to: int | None = None) -> Delivery:
    config = TrainerConfig(run_name="run", tags=["a"])
    return Delivery(folder, "store", lambda: store, config, back_to=back_to)


def deliver(folder: RunFolder, store: Store, *, ended: bool = True) -> list[int]:
    return list(delivery(folder, store).catch_up(ended=ended))


# --- in order, once ---------------------------------------------------------------------------


@settings(deadline=None, max_examples=25)
@given(rounds=st.lists(st.integers(0, 4), max_size=6))
def test_however_a_run_is_followed_every_step_is_delivered_once(
    rounds: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = RunFolder(tmp_path_factory.mktemp("runs") / "run")
    folder.path.mkdir()
    folder.write_config({"trainer": {}}, {})
    store, done = Store(), 0
    following = delivery(folder, store)
    for place, count in enumerate(rounds):
        for step in range(done, done + count):
            folder.append_metrics(step, {})
        done += count
        if place % 3 == 2:
            following = delivery(folder, store)  # another process
        list(following.catch_up(ended=True))
    assert store.steps == list(range(done))
    assert Cursor.load(folder.path / LOGGERS / "store.json").step == done - 1


def test_a_step_whose_delivery_raised_comes_again_to_a_fresh_sink(folder: RunFolder) -> None:
    finish(folder, 1, 2, 3)
    store = Store()
    store.fails_at = 2
    following = delivery(folder, store)
    with pytest.raises(OSError, match="no route"):
        list(following.catch_up())
    assert (store.steps, following.missing()) == ([1], [2, 3])
    assert list(following.catch_up()) == [2, 3]
    assert store.steps == [1, 2, 3]
    assert [(run.resumed, run.last_step) for run in store.runs] == [(False, None), (True, 1)]


def test_a_half_written_line_is_left_for_later(folder: RunFolder) -> None:
    finish(folder, 1)
    with folder.metrics.open("ab") as file:
        file.write(b'{"step": 2, "reward')
    store = Store()
    following = delivery(folder, store)
    assert list(following.catch_up(ended=True)) == [1]
    with folder.metrics.open("ab") as file:
        file.write(b'/avg_raw_reward": "NaN"}\n')
    assert list(following.catch_up(ended=True)) == [2]
    assert np.isnan(store.records[-1].metrics["reward/avg_raw_reward"])


def test_steps_that_are_done_again_are_not_delivered_again(folder: RunFolder) -> None:
    store = Store()
    finish(folder, 0, 1, 2, 3)
    deliver(folder, store)
    folder.truncate_after(1)
    finish(folder, 2, 3, 4)
    deliver(folder, store)
    assert store.steps == [0, 1, 2, 3, 4]
    assert len({run.id for run in store.runs}) == 1


def test_a_run_that_went_back_is_another_run_with_all_its_steps(folder: RunFolder) -> None:
    store = Store()
    finish(folder, 0, 1, 2, 3)
    deliver(folder, store)
    folder.truncate_after(1)
    finish(folder, 2)
    list(delivery(folder, store, back_to=1).catch_up(ended=True))
    first, second = store.runs
    assert first.id != second.id
    assert (first.name, second.name) == ("run", "run.2")
    assert (second.resumed, second.last_step) == (False, None)
    assert store.steps == [0, 1, 2, 3, 0, 1, 2]


def test_going_back_to_where_the_store_is_not_yet_changes_nothing(folder: RunFolder) -> None:
    store = Store()
    finish(folder, 0, 1)
    deliver(folder, store)
    finish(folder, 2)
    list(delivery(folder, store, back_to=1).catch_up(ended=True))
    assert len({run.id for run in store.runs}) == 1
    assert store.steps == [0, 1, 2]


@pytest.mark.parametrize(
    ("held", "again"), [(0, [1, 2, 3]), (NOTHING, [0, 1, 2, 3]), (2, [3]), (3, [])]
)
def test_a_store_that_knows_what_it_holds_is_believed(
    held: int, again: list[int], folder: RunFolder
) -> None:
    """It was noted that 2 was delivered; a crash may have taken it, or the note of 3."""
    finish(folder, 0, 1, 2)
    deliver(folder, Store())
    finish(folder, 3)
    store = Store(held)
    deliver(folder, store)
    assert store.steps == again


def test_the_end_is_told_once_and_again_after_more_steps(folder: RunFolder) -> None:
    store = Store()
    finish(folder, 1)
    end = LogEnd(status="finished")
    for _ in range(2):
        following = delivery(folder, store)
        list(following.catch_up(ended=True))
        following.close(end)
    assert len(store.ends) == 1
    finish(folder, 2)
    following = delivery(folder, store)
    list(following.catch_up(ended=True))
    following.close(end)
    assert len(store.ends) == 2


def test_a_run_without_a_step_is_opened_and_closed(folder: RunFolder) -> None:
    store = Store()
    delivery(folder, store).close(LogEnd(status="failed", message="no model"))
    assert (len(store.runs), store.ends[0].message) == (1, "no model")


def test_a_line_that_is_no_json_is_passed_over(folder: RunFolder) -> None:
    finish(folder, 1)
    with folder.metrics.open("a") as file:
        file.write("what a torn write left\n")
    finish(folder, 2)
    store = Store()
    assert list(delivery(folder, store).catch_up(ended=True)) == [1, 2]


# --- tables -----------------------------------------------------------------------------------


def test_a_step_waits_for_its_trajectories_while_they_are_still_written(
    folder: RunFolder,
) -> None:
    folder.append_metrics(1, {"eval/all/avg_score": 0.5})
    store = Store()
    following = delivery(folder, store)
    assert list(following.catch_up()) == []
    group = Group(index=0, prompt=trajectory().prompt, trajectories=(trajectory(),))
    write_trajectories(folder.trajectory_file(1), [group])
    assert list(following.catch_up()) == []
    write_eval_rows(eval_rows(folder, 1), 1, [trajectory()])
    assert list(following.catch_up()) == [1]
    assert [table.name for table in store.records[0].tables] == [
        "trajectories/train",
        "trajectories/eval",
    ]

    folder.append_metrics(2, {})
    folder.append_metrics(3, {})  # its end has not waited for the file of step 2 yet
    assert list(following.catch_up()) == []
    folder.append_metrics(4, {})
    assert list(following.catch_up()) == [2]  # not for ever
    assert store.records[1].tables == ()


def test_both_tables_have_the_same_columns_and_say_the_same_of_a_trajectory(
    tmp_path: Path,
) -> None:
    members = (trajectory(0), trajectory(1, ["5", "no: 6"]))
    group = Group(index=0, prompt=members[0].prompt, trajectories=members)
    write_trajectories(tmp_path / "train.parquet", [group])
    write_eval_rows(tmp_path / "eval.jsonl", 4, members)
    train, evaluation = (
        train_table(tmp_path / "train.parquet", 4, -1),
        eval_table(tmp_path / "eval.jsonl", -1),
    )
    assert train.columns == evaluation.columns == COLUMNS
    assert train.rows == evaluation.rows
    assert train.rows == [
        [4, "products", "7", 0, "2 * 3", "6", 0.5, "stop", 1, 2],
        [4, "products", "7", 1, "2 * 3", "[turn 1]\n5\n\n[turn 2]\nno: 6", 1.0, "stop", 2, 4],
    ]


@given(count=st.integers(0, 50), limit=st.integers(-1, 60))
def test_chosen_rows_are_in_order_without_repetition_and_as_many_as_wanted(
    count: int, limit: int
) -> None:
    places = spread(count, limit)
    assert places == sorted(set(places))
    assert len(places) == (count if limit < 0 else min(count, limit))
    assert all(0 <= place < count for place in places)


# --- small files ------------------------------------------------------------------------------


def test_the_journal_knows_when_steps_ended_and_how_the_run_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path)
    assert (journal.times(), journal.last_end()) == ({}, None)
    moments = iter([10.0, 20.0, 30.0, 40.0])
    monkeypatch.setattr("time.time", lambda: next(moments))
    journal.step(1)
    journal.step(2)
    journal.end(LogEnd(status="stopped", message="enough", step=2))
    assert journal.last_end() == LogEnd(status="stopped", message="enough", step=2)
    journal.step(2)  # done again
    assert (journal.times(), journal.last_end()) == ({1: 10.0, 2: 40.0}, None)


def test_a_record_has_the_time_of_the_journal_or_that_of_its_files(folder: RunFolder) -> None:
    (folder.path / LOGGERS).mkdir()
    finish(folder, 1)
    finish(folder, 2)
    Journal(folder.path / LOGGERS).step(1)
    store = Store()
    deliver(folder, store)
    noted = Journal(folder.path / LOGGERS).times()[1]
    assert [record.time for record in store.records] == [
        noted,
        folder.trajectory_file(2).stat().st_mtime,
    ]


def test_a_torn_cursor_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "store.json"
    path.write_text('{"id": "ab')
    assert Cursor.load(path).step == NOTHING
