"""``trajectories/step_N.parquet``: every trained trajectory, one row each.

What a row holds is in `schema`. Nested columns keep the ragged shapes of the
records, and float32 stays float32. Files with the same content have the same
bytes, given one pyarrow version; seconds, which no two runs share, are all in
the column ``timings``.
"""

import functools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skyrl_kernel.json_lines import dump_line
from skyrl_kernel.run.atomic import sync_file, sync_folder, temporary_for

if TYPE_CHECKING:
    import pyarrow as pa

    from skyrl_kernel.records import Group, Segment, Trajectory


@functools.cache
def schema() -> "pa.Schema":
    """The columns, in order."""
    import pyarrow as pa

    numbers = pa.map_(pa.string(), pa.float64())
    turn = pa.struct(
        [
            ("segment", pa.int32()),
            ("start", pa.int32()),
            ("stop", pa.int32()),
            ("reward", pa.float64()),
            ("action", pa.string()),
            ("metadata", pa.string()),
        ]
    )
    segment = pa.struct(
        [
            ("tokens", pa.list_(pa.int32())),
            ("num_prompt_tokens", pa.int32()),
            ("loss_mask", pa.list_(pa.bool_())),
            ("logprobs", pa.list_(pa.float32())),
            ("versions", pa.list_(pa.int32())),
        ]
    )
    return pa.schema(
        [
            ("uid", pa.string()),
            ("sample", pa.int32()),
            ("group", pa.int64()),
            ("data_source", pa.string()),
            ("env_class", pa.string()),
            ("messages", pa.string()),
            ("stop_reason", pa.string()),
            ("reward", pa.float64()),
            ("turn_rewards", pa.list_(pa.float64())),
            ("reward_components", numbers),
            ("turns", pa.list_(turn)),
            ("segments", pa.list_(segment)),
            ("env_metrics", numbers),
            ("timings", numbers),
        ]
    )


def write_trajectories(path: Path, groups: Sequence["Group"]) -> None:
    """Write the trajectories of a step, group by group; whole or not at all.

    ``messages`` and each turn's ``metadata`` are JSON text. ``reward`` and
    ``turn_rewards`` are null where nothing was judged. Lost trajectories are in
    ``failures.jsonl``, not here.
    """
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_for(path)
    try:
        pq.write_table(_table(groups), temporary, compression="zstd")
        sync_file(temporary)
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def read_trajectories(path: Path, *, timings: bool = True) -> list[dict[str, Any]]:
    """The rows of a file, JSON text parsed and maps as dicts.

    Args:
        path: A ``step_N.parquet``.
        timings: False leaves the column out, so that two runs can be compared.
    """
    import pyarrow.parquet as pq

    columns = [name for name in schema().names if timings or name != "timings"]
    rows: list[dict[str, Any]] = pq.read_table(path, columns=columns).to_pylist()
    for row in rows:
        row["messages"] = json.loads(row["messages"])
        for turn in row["turns"]:
            turn["metadata"] = json.loads(turn["metadata"])
        for name in ("reward_components", "env_metrics", "timings"):
            if name in row:
                row[name] = dict(row[name])
    return rows


def _table(groups: Sequence["Group"]) -> "pa.Table":
    import pyarrow as pa

    types = schema()
    pairs = [(group, trajectory) for group in groups for trajectory in group.trajectories]
    trajectories = [trajectory for _, trajectory in pairs]
    prompts = {id(t.prompt): t.prompt for t in trajectories}  # a group shares one
    messages = {key: _json(list(prompt.messages)) for key, prompt in prompts.items()}

    def column(name: str, value: "Callable[[Group, Trajectory], Any]") -> "pa.Array":
        return pa.array([value(*pair) for pair in pairs], type=types.field(name).type)

    columns = {
        "uid": column("uid", lambda g, t: _text(t.prompt.uid)),
        "sample": column("sample", lambda g, t: t.sample),
        "group": column("group", lambda g, t: g.index),
        "data_source": column("data_source", lambda g, t: _text(t.prompt.data_source)),
        "env_class": column("env_class", lambda g, t: _text(t.prompt.env_class)),
        "messages": column("messages", lambda g, t: messages[id(t.prompt)]),
        "stop_reason": column("stop_reason", lambda g, t: str(t.stop_reason)),
        "reward": column("reward", lambda g, t: t.reward and t.reward.total),
        "turn_rewards": column("turn_rewards", lambda g, t: t.reward and t.reward.turns),
        "reward_components": column(
            "reward_components", lambda g, t: _pairs(t.reward.components if t.reward else {})
        ),
        "turns": column("turns", lambda g, t: _turns(t)),
        "segments": _segments(trajectories),
        "env_metrics": column("env_metrics", lambda g, t: _pairs(t.env_metrics)),
        "timings": column("timings", lambda g, t: _pairs(t.timings)),
    }
    return pa.Table.from_arrays([columns[name] for name in types.names], schema=types)


def _turns(trajectory: "Trajectory") -> list[dict[str, Any]]:
    return [
        {
            "segment": turn.segment,
            "start": turn.start,
            "stop": turn.stop,
            "reward": turn.reward,
            "action": _text(turn.action),
            "metadata": _json(turn.metadata) if turn.metadata else "{}",
        }
        for turn in trajectory.turns
    ]


def _segments(trajectories: Sequence["Trajectory"]) -> "pa.Array":
    """The one heavy column, built from numpy arrays and not token by token."""
    import pyarrow as pa

    segments = [segment for trajectory in trajectories for segment in trajectory.segments]
    struct = schema().field("segments").type.value_type
    fields = [
        _ragged(segments, "tokens", struct),
        pa.array([segment.num_prompt_tokens for segment in segments], pa.int32()),
        _ragged(segments, "loss_mask", struct),
        _ragged(segments, "logprobs", struct),
        _ragged(segments, "versions", struct),
    ]
    values = pa.StructArray.from_arrays(fields, fields=list(struct))
    return pa.ListArray.from_arrays(_offsets([len(t.segments) for t in trajectories]), values)


def _ragged(segments: Sequence["Segment"], name: str, struct: "pa.StructType") -> "pa.Array":
    """A list column from the [T] arrays of each segment; None becomes null."""
    import numpy as np
    import pyarrow as pa

    rows = [getattr(segment, name) for segment in segments]
    value_type = struct.field(name).type.value_type
    dtype = value_type.to_pandas_dtype()
    flat = [np.asarray(row, dtype) for row in rows if row is not None]
    values = pa.array(np.concatenate(flat) if flat else np.zeros(0, dtype), value_type)
    offsets = _offsets([0 if row is None else len(row) for row in rows])
    if any(row is None for row in rows):  # a null offset makes a null list
        ends = offsets.to_pylist()
        starts = [None if row is None else start for row, start in zip(rows, ends, strict=False)]
        offsets = pa.array([*starts, ends[-1]], pa.int32())
    return pa.ListArray.from_arrays(offsets, values)


def _offsets(lengths: Iterable[int]) -> "pa.Array":
    import numpy as np
    import pyarrow as pa

    return pa.array(np.cumsum([0, *lengths], dtype=np.int32), pa.int32())


def _pairs(numbers: Mapping[str, float]) -> list[tuple[str, float]]:
    return sorted((str(key), float(value)) for key, value in numbers.items())


def _json(value: Any) -> str:
    return dump_line(value).rstrip("\n")


def _text(text: str | None) -> str | None:
    """``text`` in a form that UTF-8 can hold: lone surrogates become question marks."""
    return None if text is None else text.encode("utf-8", "replace").decode()
