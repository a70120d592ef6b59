"""``trajectories/step_N.parquet``: every trained trajectory, one row each.

What a row holds is in `schema`. Nested columns keep the ragged shapes of the
records, and float32 stays float32. Files with the same content have the same
bytes, given one pyarrow version; seconds, which no two runs share, are all in
the column ``timings``.
"""

import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skyrl_kernel.json_lines import dump_line
from skyrl_kernel.run.atomic import temporary_for

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from skyrl_kernel.protocols import CreditedGroup
    from skyrl_kernel.records import Group, Segment, Trajectory, Turn

_REPEATING = ("uid", "data_source", "env_class", "messages", "stop_reason")
"""Columns of text that many rows share."""


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
            ("old_logprobs", pa.list_(pa.float32())),
            ("ref_logprobs", pa.list_(pa.float32())),
            ("values", pa.list_(pa.float32())),
            ("advantages", pa.list_(pa.float32())),
            ("returns", pa.list_(pa.float32())),
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


def write_trajectories(
    path: Path, groups: Sequence["Group"], credited: "Sequence[CreditedGroup] | None" = None
) -> None:
    """Write the trajectories of a step, group by group; whole or not at all, also after a kill.

    ``loss_mask`` marks what was trained on: the segment's mask, or what `advantage` and
    `select` left of it. ``old_logprobs`` are null where they are the sampler's own.
    ``messages`` and each turn's ``metadata`` are JSON text. ``reward`` and
    ``turn_rewards`` are null where nothing was judged. Lost trajectories are in
    ``failures.jsonl``, not here.

    Args:
        path: The file.
        groups: What to write.
        credited: The same with scores and advantages, where they were trained on.
    """
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_for(path)
    try:
        pq.write_table(
            _table(groups, credited),
            temporary,
            compression="zstd",
            use_dictionary=list(_REPEATING),  # numbers of tokens hardly repeat
            write_statistics=False,
        )
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


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


def _table(groups: Sequence["Group"], credited: "Sequence[CreditedGroup] | None") -> "pa.Table":
    import pyarrow as pa

    types = schema()
    rows = [row for group in groups for row in group.trajectories]
    prompts = {id(row.prompt): row.prompt for row in rows}  # a group shares one
    messages = {key: _json(list(prompt.messages)) for key, prompt in prompts.items()}

    def column(name: str, values: Sequence[Any]) -> "pa.Array":
        return pa.array(values, type=types.field(name).type)

    columns = {
        "uid": column("uid", [_text(row.prompt.uid) for row in rows]),
        "sample": column("sample", [row.sample for row in rows]),
        "group": column("group", [group.index for group in groups for _ in group.trajectories]),
        "data_source": column("data_source", [_text(row.prompt.data_source) for row in rows]),
        "env_class": column("env_class", [_text(row.prompt.env_class) for row in rows]),
        "messages": column("messages", [messages[id(row.prompt)] for row in rows]),
        "stop_reason": column("stop_reason", [str(row.stop_reason) for row in rows]),
        "reward": column("reward", [row.reward and row.reward.total for row in rows]),
        "turn_rewards": column("turn_rewards", [row.reward and row.reward.turns for row in rows]),
        "reward_components": _maps([row.reward.components if row.reward else {} for row in rows]),
        "turns": _turns([row.turns for row in rows]),
        "segments": _segments(rows, credited),
        "env_metrics": _maps([row.env_metrics for row in rows]),
        "timings": _maps([row.timings for row in rows]),
    }
    return pa.Table.from_arrays([columns[name] for name in types.names], schema=types)


# Nested columns are built from flat ones: pyarrow takes ten times as long to take rows apart.


def _turns(rows: Sequence[Sequence["Turn"]]) -> "pa.Array":
    import pyarrow as pa

    turns = [turn for row in rows for turn in row]
    struct = schema().field("turns").type.value_type
    fields = {
        "segment": [turn.segment for turn in turns],
        "start": [turn.start for turn in turns],
        "stop": [turn.stop for turn in turns],
        "reward": [turn.reward for turn in turns],
        "action": [_text(turn.action) for turn in turns],
        "metadata": [_json(turn.metadata) if turn.metadata else "{}" for turn in turns],
    }
    arrays = [pa.array(fields[field.name], field.type) for field in struct]
    values = pa.StructArray.from_arrays(arrays, fields=list(struct))
    return pa.ListArray.from_arrays(_offsets([len(row) for row in rows]), values)


def _maps(rows: Sequence[Mapping[str, float]]) -> "pa.Array":
    """A column of name → number, names in order."""
    import pyarrow as pa

    items = [(str(key), float(row[key])) for row in rows for key in sorted(row, key=str)]
    keys = pa.array([key for key, _ in items], pa.string())
    numbers = pa.array([number for _, number in items], pa.float64())
    return pa.MapArray.from_arrays(_offsets([len(row) for row in rows]), keys, numbers)


def _segments(
    rows: Sequence["Trajectory"], credited: "Sequence[CreditedGroup] | None"
) -> "pa.Array":
    import pyarrow as pa

    segments = [segment for row in rows for segment in row.segments]
    arrays: dict[str, Sequence[np.ndarray[Any, Any] | None]] = {
        "tokens": [one.tokens for one in segments],
        "loss_mask": [one.loss_mask for one in segments],
        "logprobs": [one.logprobs for one in segments],
        "versions": [one.versions for one in segments],
        **_credits(segments, credited or ()),
    }
    struct = schema().field("segments").type.value_type
    none = [None] * len(segments)
    fields = [
        pa.array([one.num_prompt_tokens for one in segments], field.type)
        if field.name == "num_prompt_tokens"
        else _ragged(arrays.get(field.name, none), field.type)
        for field in struct
    ]
    values = pa.StructArray.from_arrays(fields, fields=list(struct))
    return pa.ListArray.from_arrays(_offsets([len(row.segments) for row in rows]), values)


def _credits(
    segments: Sequence["Segment"], credited: "Sequence[CreditedGroup]"
) -> "dict[str, Sequence[np.ndarray[Any, Any] | None]]":
    """Columns that only trained segments have."""
    entries = [entry for group in credited for entry in group]
    if not entries:
        return {}
    scores = [score for scored, _ in entries for score in scored.scores]
    tokens = [one for _, own in entries for one in own]
    return {
        "loss_mask": [one.loss_mask for one in tokens],
        "old_logprobs": [
            None if score.old_logprobs is segment.logprobs else score.old_logprobs
            for score, segment in zip(scores, segments, strict=True)
        ],
        "ref_logprobs": [one.ref_logprobs for one in scores],
        "values": [one.values for one in scores],
        "advantages": [one.advantages for one in tokens],
        "returns": [one.returns for one in tokens],
    }


def _ragged(rows: "Sequence[np.ndarray[Any, Any] | None]", kind: "pa.ListType") -> "pa.Array":
    """A list column from the [T] arrays of each segment; None becomes null."""
    import numpy as np
    import pyarrow as pa

    given = [row for row in rows if row is not None]
    if not given:
        return pa.nulls(len(rows), kind)
    values = np.concatenate(given, dtype=kind.value_type.to_pandas_dtype(), casting="same_kind")
    offsets = _offsets([0 if row is None else len(row) for row in rows])
    if len(given) < len(rows):  # a null offset makes a null list
        ends = offsets.to_pylist()
        starts = [None if row is None else start for row, start in zip(rows, ends, strict=False)]
        offsets = pa.array([*starts, ends[-1]], pa.int32())
    return pa.ListArray.from_arrays(offsets, pa.array(values, kind.value_type))


def _offsets(lengths: Iterable[int]) -> "pa.Array":
    import numpy as np
    import pyarrow as pa

    return pa.array(np.cumsum([0, *lengths], dtype=np.int32), pa.int32())


def _json(value: Any) -> str:
    return dump_line(value).rstrip("\n")


def _text(text: str | None) -> str | None:
    """``text`` in a form that UTF-8 can hold: lone surrogates become question marks."""
    if text is None or text.isascii():
        return text
    return text.encode("utf-8", "replace").decode()
