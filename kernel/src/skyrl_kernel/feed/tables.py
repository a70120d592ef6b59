"""Trajectories as rows that a person can read.

Trained ones are read from ``trajectories/step_N.parquet``. Those of evaluations
are not kept there, so `write_eval_rows` leaves them in ``loggers/eval/``.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skyrl_kernel.feed.sink import Cell, Table
from skyrl_kernel.json_lines import dump_line, number, read_lines
from skyrl_kernel.run.atomic import write_atomically

if TYPE_CHECKING:
    from skyrl_kernel.records import Trajectory

COLUMNS = (
    *("step", "data_source", "uid", "sample", "prompt", "completion", "reward", "stop_reason"),
    *("turns", "tokens"),
)
"""Of every table: ``completion`` is what the policy said in all turns, ``tokens`` counts it."""
_STORED = ("uid", "sample", "data_source", "messages", "stop_reason", "reward", "turns")


def train_table(path: Path, step: int, limit: int) -> Table:
    """The table ``trajectories/train`` of a ``step_N.parquet``; ``limit`` as in `spread`."""
    import pyarrow.parquet as pq

    stored = pq.read_table(path, columns=list(_STORED))
    rows = [
        _row(step, {**row, "messages": json.loads(row["messages"])})
        for row in stored.take(spread(stored.num_rows, limit)).to_pylist()
    ]
    return Table(name="trajectories/train", columns=COLUMNS, rows=rows)


def write_eval_rows(path: Path, step: int, trajectories: "Sequence[Trajectory]") -> None:
    """One line of JSON per trajectory; whole or not at all."""
    lines = [
        dump_line(dict(zip(COLUMNS, _row(step, _facts(one)), strict=True))) for one in trajectories
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, "".join(lines).encode())


def eval_table(path: Path, limit: int) -> Table:
    """The table ``trajectories/eval`` that `write_eval_rows` left."""
    lines = [line for _, line in read_lines(path)]
    rows = [
        [number(lines[place].get(column)) for column in COLUMNS]
        for place in spread(len(lines), limit)
    ]
    return Table(name="trajectories/eval", columns=COLUMNS, rows=rows)


def spread(count: int, limit: int) -> list[int]:
    """Places of at most ``limit`` of ``count`` rows, evenly spread; -1: all.

    Trajectories of one prompt stand together, so that the first few would be of
    one or two prompts.

    Example:
        >>> spread(8, 3), spread(2, 3), spread(2, -1)
        ([0, 2, 5], [0, 1], [0, 1])
    """
    if limit < 0 or limit >= count:
        return list(range(count))
    return [place * count // limit for place in range(limit)]


def _facts(one: "Trajectory") -> dict[str, Any]:
    return {
        "uid": one.prompt.uid,
        "sample": one.sample,
        "data_source": one.prompt.data_source,
        "messages": one.prompt.messages,
        "stop_reason": str(one.stop_reason),
        "reward": one.reward and one.reward.total,
        "turns": [{"action": t.action, "start": t.start, "stop": t.stop} for t in one.turns],
    }


def _row(step: int, facts: Mapping[str, Any]) -> list[Cell]:
    turns = facts["turns"]
    return [
        step,
        facts["data_source"],
        facts["uid"],
        facts["sample"],
        _conversation(facts["messages"]),
        _joined([turn["action"] for turn in turns]),
        facts["reward"],
        facts["stop_reason"],
        len(turns),
        sum(turn["stop"] - turn["start"] for turn in turns),
    ]


def _conversation(messages: Sequence[Mapping[str, Any]]) -> str:
    """The only message's text, or all of them with their roles."""
    texts = []
    for message in messages:
        content = message.get("content")
        text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
        texts.append(text if len(messages) == 1 else f"[{message.get('role')}]\n{text}")
    return "\n\n".join(texts)


def _joined(actions: Sequence[str]) -> str:
    if len(actions) == 1:
        return actions[0]
    return "\n\n".join(f"[turn {place}]\n{action}" for place, action in enumerate(actions, 1))
