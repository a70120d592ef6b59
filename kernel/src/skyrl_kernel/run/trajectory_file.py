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

from skyrl_kernel.json_lines import dump_each
from skyrl_kernel.run.atomic import temporary_for

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from skyrl_kernel.credited import Credited
    from skyrl_kernel.records import Group, Prompt, Trajectory, Turn

    _Array = np.ndarray[Any, Any]
    _Column = _Array | Sequence[_Array | None]

_DENSE = ("turns.list.element.action", "segments.list.element.tokens.list.element")
"""Leaf columns that zstd makes much smaller than lz4 does, which takes half the time."""


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
    path: Path, groups: Sequence["Group"], credited: "Credited | None" = None
) -> None:
    """Write the trajectories of a step: `write_table` of their `trajectory_table`."""
    write_table(path, trajectory_table(groups, credited))


def write_table(path: Path, table: "pa.Table") -> None:
    """Write what `trajectory_table` made; whole or not at all, also after a kill."""
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_for(path)
    try:
        # Dictionaries and statistics cost as much as the rest, and give nothing that compression
        # does not: a column is a page.
        pq.write_table(
            table, temporary, compression=_codecs(), use_dictionary=False, write_statistics=False
        )
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@functools.cache
def _codecs() -> dict[str, str]:
    """Leaf column → how it is compressed."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pa.BufferOutputStream() as sink:
        pq.write_table(schema().empty_table(), sink)
        leaves = pq.ParquetFile(pa.BufferReader(sink.getvalue())).schema
    names = [leaves.column(place).path for place in range(len(leaves))]
    return {name: "zstd" if name in _DENSE else "lz4" for name in names}


def trajectory_table(groups: Sequence["Group"], credited: "Credited | None" = None) -> "pa.Table":
    """The trajectories of a step, group by group.

    ``loss_mask`` marks what was trained on: the segment's mask, or what `advantage` and
    `select` left of it. ``old_logprobs`` are null where they are the sampler's own.
    ``messages`` and each turn's ``metadata`` are JSON text. ``reward`` and
    ``turn_rewards`` are null where nothing was judged. Lost trajectories are in
    ``failures.jsonl``, not here.

    Args:
        groups: What to write.
        credited: The same with scores and advantages, where they were trained on.
    """
    import pyarrow as pa

    types = schema()
    rows = [row for group in groups for row in group.trajectories]
    rewards = [row.reward for row in rows]

    def column(name: str, values: Sequence[Any]) -> "pa.Array":
        return pa.array(values, type=types.field(name).type)

    columns = {
        **_prompts([row.prompt for row in rows]),
        "sample": column("sample", [row.sample for row in rows]),
        "group": column("group", [group.index for group in groups for _ in group.trajectories]),
        "stop_reason": column("stop_reason", [str(row.stop_reason) for row in rows]),
        "reward": column("reward", [one and one.total for one in rewards]),
        "turn_rewards": _lists([None if one is None else one.turns for one in rewards]),
        "reward_components": _maps([one.components if one else {} for one in rewards]),
        "turns": _turns([row.turns for row in rows]),
        "segments": _segments(rows, credited),
        "env_metrics": _maps([row.env_metrics for row in rows]),
        "timings": _maps([row.timings for row in rows]),
    }
    return pa.Table.from_arrays([columns[name] for name in types.names], schema=types)


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


# Everything is built from flat columns: pyarrow takes ten times as long to take rows apart.


def _prompts(rows: Sequence["Prompt"]) -> "dict[str, pa.Array]":
    """What trajectories of one prompt share, each prompt looked at once."""
    import pyarrow as pa

    prompts = list({id(prompt): prompt for prompt in rows}.values())
    places = {id(prompt): place for place, prompt in enumerate(prompts)}
    which = [places[id(prompt)] for prompt in rows]
    columns: dict[str, Sequence[str | None]] = {
        "uid": [_text(prompt.uid) for prompt in prompts],
        "data_source": [_text(prompt.data_source) for prompt in prompts],
        "env_class": [_text(prompt.env_class) for prompt in prompts],
        "messages": dump_each([list(prompt.messages) for prompt in prompts]),
    }
    return {
        name: pa.array([texts[place] for place in which], pa.string())
        for name, texts in columns.items()
    }


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
        "metadata": dump_each([turn.metadata for turn in turns]),
    }
    arrays = [pa.array(fields[field.name], field.type) for field in struct]
    values = pa.StructArray.from_arrays(arrays, fields=list(struct))
    return pa.ListArray.from_arrays(_offsets([len(row) for row in rows]), values)


def _lists(rows: "Sequence[Sequence[float] | None]") -> "pa.Array":
    """A column of numbers, several to a row; None becomes null."""
    import pyarrow as pa

    values = pa.array([value for row in rows if row is not None for value in row], pa.float64())
    offsets = _offsets([0 if row is None else len(row) for row in rows])
    return pa.ListArray.from_arrays(_null_where(rows, offsets), values)


def _maps(rows: Sequence[Mapping[str, float]]) -> "pa.Array":
    """A column of name → number, names in order."""
    import numpy as np
    import pyarrow as pa

    names: list[str] = sorted(rows[0], key=str) if rows else []
    if all([row.keys() == rows[0].keys() for row in rows]):  # as mostly
        numbers = [row[name] for row in rows for name in names]
        texts = [str(name) for name in names] * len(rows)
    else:
        own = [sorted(row, key=str) for row in rows]
        numbers = [row[name] for row, names in zip(rows, own, strict=True) for name in names]
        texts = [str(name) for names in own for name in names]
    items = pa.array(np.array(numbers, dtype=np.float64))
    keys = pa.array(texts, pa.string())
    return pa.MapArray.from_arrays(_offsets([len(row) for row in rows]), keys, items)


def _segments(rows: Sequence["Trajectory"], credited: "Credited | None") -> "pa.Array":
    import pyarrow as pa

    segments = [segment for row in rows for segment in row.segments]
    arrays: dict[str, _Column] = {
        "tokens": [one.tokens for one in segments],
        "loss_mask": [one.loss_mask for one in segments],
        "logprobs": [one.logprobs for one in segments],
        "versions": [one.versions for one in segments],
        **({} if credited is None else _credits(credited)),
    }
    struct = schema().field("segments").type.value_type
    offsets = _offsets([len(one.tokens) for one in segments])
    none = [None] * len(segments)
    fields = [
        pa.array([one.num_prompt_tokens for one in segments], field.type)
        if field.name == "num_prompt_tokens"
        else _tokens(arrays.get(field.name, none), field.type, offsets)
        for field in struct
    ]
    values = pa.StructArray.from_arrays(fields, fields=list(struct))
    return pa.ListArray.from_arrays(_offsets([len(row.segments) for row in rows]), values)


def _credits(credited: "Credited") -> "dict[str, _Column]":
    """Columns that only trained segments have."""
    scores = credited.scores
    return {
        "loss_mask": credited.loss_mask,
        "old_logprobs": [
            None if score.old_logprobs is segment.logprobs else score.old_logprobs
            for score, segment in zip(scores, credited.segments, strict=True)
        ],
        "ref_logprobs": [one.ref_logprobs for one in scores],
        "values": [one.values for one in scores],
        "advantages": credited.advantages,
        "returns": [one.returns for one in credited.entries],
    }


def _tokens(rows: "_Column", kind: "pa.ListType", offsets: "pa.Array") -> "pa.Array":
    """A list column of what each segment's tokens have.

    Args:
        rows: [N] of all segments, or one by one the [T] of each; None becomes null.
        kind: Type of the column.
        offsets: Where a segment's tokens begin and end, in a column that all segments have.
    """
    import numpy as np
    import pyarrow as pa

    dtype = kind.value_type.to_pandas_dtype()
    if isinstance(rows, np.ndarray):
        values = rows.astype(dtype, casting="same_kind", copy=False)
        return pa.ListArray.from_arrays(offsets, pa.array(values, kind.value_type))
    given = [row for row in rows if row is not None]
    if not given:
        return pa.nulls(len(rows), kind)
    values = np.concatenate(given, dtype=dtype, casting="same_kind")
    if len(given) < len(rows):
        offsets = _null_where(rows, _offsets([0 if row is None else len(row) for row in rows]))
    return pa.ListArray.from_arrays(offsets, pa.array(values, kind.value_type))


def _null_where(rows: Sequence[Any], offsets: "pa.Array") -> "pa.Array":
    """The offsets of a list column, null where a row is None: that makes a null list."""
    import pyarrow as pa

    if not any([row is None for row in rows]):
        return offsets
    ends = offsets.to_pylist()
    starts = [None if row is None else start for row, start in zip(rows, ends, strict=False)]
    return pa.array([*starts, ends[-1]], pa.int32())


def _offsets(lengths: Iterable[int]) -> "pa.Array":
    import numpy as np
    import pyarrow as pa

    return pa.array(np.cumsum([0, *lengths], dtype=np.int32), pa.int32())


def _text(text: str | None) -> str | None:
    """``text`` in a form that UTF-8 can hold: lone surrogates become question marks."""
    if text is None or text.isascii():
        return text
    return text.encode("utf-8", "replace").decode()
