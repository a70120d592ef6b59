"""From ``trajectories/step_N.parquet`` to what the page shows of a trajectory.

Files are read twice: a few narrow columns of all rows, to choose from, and
then everything of the chosen rows. A trajectory becomes a list of *blocks* in
the order of its tokens: ``prompt``, ``completion``, ``reply`` (what the env
answered), ``target`` (trained on without having been sampled) and ``again`` (a
row begins with all tokens of the row before, which are not repeated). Per-token
numbers that a file lacks are left out.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skyrl_kernel.report.choice import Choice, Row
from skyrl_kernel.report.runs import significant
from skyrl_kernel.report.text import Pieces
from skyrl_kernel.run.folder import RunFolder

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

_STEP = re.compile(r"^step_(\d+)\.parquet$")

HEAD, TAIL = 1500, 500
"""Tokens of a long block that are shown."""
MAX_TEXT = 4000
"""Characters of a message or of a turn's metadata."""
_BINS = 12


def step_files(folder: RunFolder) -> dict[int, Path]:
    """Step → its file."""
    found = {}
    if folder.trajectories.is_dir():
        for path in folder.trajectories.iterdir():
            if match := _STEP.match(path.name):
                found[int(match[1])] = path
    return dict(sorted(found.items()))


def read_rows(step: int, path: Path) -> list[Row]:
    """Every trajectory of a step, as far as choosing needs it."""
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    names = {"uid", "sample", "group", "reward"}
    leaves = [file.schema.column(place).path for place in range(len(file.schema))]
    ends = [leaf for leaf in leaves if re.fullmatch(r"turns\..*\.(start|stop)", leaf)]
    table = file.read(columns=[*names, *ends])
    columns = [table.column(name).to_pylist() for name in ("group", "uid", "sample", "reward")]
    return [
        Row(
            step=step,
            place=place,
            group=group,
            uid=str(uid),
            sample=sample,
            reward=reward,
            num_tokens=sum(turn["stop"] - turn["start"] for turn in turns),
        )
        for place, (group, uid, sample, reward, turns) in enumerate(
            zip(*columns, table.column("turns").to_pylist(), strict=True)
        )
    ]


def describe_step(step: int, rows: Sequence[Row]) -> dict[str, Any]:
    """What all trajectories of a step earned and how long they are."""
    rewards = [row.reward for row in rows if row.reward is not None]
    return {
        "step": step,
        "groups": len({row.group for row in rows}),
        "trajectories": len(rows),
        "rewards": histogram(rewards),
        "tokens": histogram([row.num_tokens for row in rows]),
    }


def histogram(values: Sequence[float]) -> list[list[Any]]:
    """``[low, high, count]`` of each bin; of few distinct values, one bin for each.

    Example:
        >>> histogram([0.0, 1.0, 1.0])
        [[0, 0, 1], [1, 1, 2]]
    """
    import numpy as np

    finite = [value for value in values if np.isfinite(value)]
    distinct, counts = np.unique(np.asarray(finite, np.float64), return_counts=True)
    if len(distinct) <= _BINS:
        return [
            [significant(float(value)), significant(float(value)), int(count)]
            for value, count in zip(distinct, counts, strict=True)
        ]
    counts, edges = np.histogram(finite, _BINS)
    ends = [significant(float(edge), 3) for edge in edges]
    return [[*pair, int(n)] for *pair, n in zip(ends, ends[1:], counts, strict=False)]


def describe_choices(
    files: Mapping[int, Path],
    choices: Sequence[Choice],
    members: Mapping[int, Sequence[Row]],
    pieces: Pieces | None,
) -> list[list[dict[str, Any]]]:
    """The trajectories of each choice, with their group; every file is opened once."""
    places: dict[int, list[int]] = {}
    for choice in choices:
        for row in choice.rows:
            places.setdefault(row.step, []).append(row.place)
    records: dict[tuple[int, int], dict[str, Any]] = {}
    for step, wanted in places.items():
        rewards: dict[int, list[list[Any]]] = {}
        for row in members[step]:
            rewards.setdefault(row.group, []).append([row.sample, significant(row.reward)])
        for place, raw in zip(wanted, _read(files[step], wanted), strict=True):
            records[step, place] = _trajectory(step, raw, rewards[raw["group"]], pieces)
    return [
        [
            {**records[row.step, row.place], "picked": reason}
            for row, reason in zip(choice.rows, choice.reasons, strict=True)
        ]
        for choice in choices
    ]


def _read(path: Path, places: Sequence[int]) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    table: pa.Table = pq.ParquetFile(path).read().take(places)
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def _trajectory(
    step: int, row: Mapping[str, Any], rewards: list[list[Any]], pieces: Pieces | None
) -> dict[str, Any]:
    segments, turns = row["segments"], row["turns"]
    blocks = [
        _block(kind, segments[place], start, stop, turn, turns, pieces)
        for place in range(len(segments))
        for kind, start, stop, turn in _parts(segments, place, turns)
    ]
    versions = [version for one in segments for version in one["versions"] or () if version >= 0]
    return {
        "step": step,
        "group": row["group"],
        "uid": row["uid"],
        "sample": row["sample"],
        "env": row["env_class"],
        "source": row["data_source"],
        "messages": [_message(one) for one in json.loads(row["messages"])],
        "rewards": rewards,
        "stop": row["stop_reason"],
        "reward": significant(row["reward"]),
        "components": _numbers(row["reward_components"]),
        "env_metrics": _numbers(row["env_metrics"]),
        "timings": _numbers(row["timings"], 3),
        "versions": [min(versions), max(versions)] if versions else None,
        "tokens": sum(turn["stop"] - turn["start"] for turn in turns),
        "segments": len(segments),
        "advantage": _mean(segments, "advantages"),
        "logprob": _mean(segments, "logprobs"),
        "turns": [
            {
                "reward": significant(turn["reward"]),
                "judged": significant(row["turn_rewards"][place])
                if row["turn_rewards"] and place < len(row["turn_rewards"])
                else None,
                "metadata": _cut(turn["metadata"] or "{}"),
            }
            for place, turn in enumerate(turns)
        ],
        "blocks": blocks,
    }


def _parts(
    segments: Sequence[Mapping[str, Any]], place: int, turns: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[str, int, int, int | None]]:
    """``(kind, start, stop, turn)`` of the blocks of a segment, in order, none empty."""
    segment = segments[place]
    own = [(number, turn) for number, turn in enumerate(turns) if turn["segment"] == place]
    before = segments[place - 1]["tokens"] if place else []
    reached = len(before)
    if before and segment["tokens"][:reached] == before:  # a row for each turn
        yield "again", 0, reached, None
    else:
        reached = segment["num_prompt_tokens"]
        if reached:
            yield "prompt", 0, reached, None
    for number, turn in own:
        if turn["start"] > reached:
            yield "reply", reached, turn["start"], None
        if turn["stop"] > turn["start"]:
            yield "completion", turn["start"], turn["stop"], number
        reached = turn["stop"]
    if reached < len(segment["tokens"]):
        yield "reply" if own else "target", reached, len(segment["tokens"]), None


def _block(
    kind: str,
    segment: Mapping[str, Any],
    start: int,
    stop: int,
    turn: int | None,
    turns: Sequence[Mapping[str, Any]],
    pieces: Pieces | None,
) -> dict[str, Any]:
    """One stretch of tokens, its middle left out if it is very long."""
    length = stop - start
    if kind == "again":
        return {"kind": kind, "start": start, "tokens": [], "count": length}
    cut = length > HEAD + TAIL
    places = [
        *range(start, start + HEAD if cut else stop),
        *(range(stop - TAIL, stop) if cut else ()),
    ]
    tokens = [segment["tokens"][place] for place in places]
    block: dict[str, Any] = {"kind": kind, "start": start, "tokens": tokens}
    if cut:
        block["cut"] = [HEAD, length - HEAD - TAIL]
    if turn is not None:
        block["turn"] = turn
    mask = [segment["loss_mask"][place] for place in places]
    if any(mask):
        block["mask"] = "all" if all(mask) else "".join("1" if one else "0" for one in mask)
    if kind in ("completion", "target"):
        block |= _per_token(segment, places)
    said = _text(tokens, pieces)
    if pieces is not None and (joined := pieces.joined(tokens)):
        block["joined"] = [[place, text] for place, text in joined.items()]
        said = "".join(joined.get(place, pieces.piece(token)) for place, token in enumerate(tokens))
    action = None if turn is None else turns[turn]["action"]
    if action is not None and (cut or action != said):
        block["action"] = _cut(action)  # not what the tokens on the page say
    return block


def _per_token(segment: Mapping[str, Any], places: Sequence[int]) -> dict[str, list[Any]]:
    """The numbers of some tokens, as far as the file has them.

    ``mismatch`` and ``reference`` are what is looked at, and smaller than the log-probs
    that they are the differences of.
    """
    import numpy as np

    def column(name: str) -> "np.ndarray[Any, np.dtype[np.float64]] | None":
        values = segment.get(name)
        return None if values is None else np.array(values, np.float64)[list(places)]

    sampler, old, reference = map(column, ("logprobs", "old_logprobs", "ref_logprobs"))
    current = sampler if old is None else old
    found = {
        "logprobs": sampler,
        "advantages": column("advantages"),
        "values": column("values"),
        "mismatch": None if old is None or sampler is None else old - sampler,
        "reference": None if current is None or reference is None else current - reference,
    }
    return {name: _rounded(values) for name, values in found.items() if values is not None}


def _text(tokens: Sequence[int], pieces: Pieces | None) -> str | None:
    return None if pieces is None else "".join(map(pieces.piece, tokens))


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """A chat message; content in parts, tool calls and the like as JSON text."""
    content = message.get("content")
    rest = {key: value for key, value in message.items() if key not in ("role", "content")}
    if content is not None and not isinstance(content, str):
        content = json.dumps(content, ensure_ascii=False)
    if rest:
        content = f"{content or ''}\n{json.dumps(rest, ensure_ascii=False)}".lstrip("\n")
    return {"role": str(message.get("role", "")), "content": _cut(content or "")}


def _cut(text: str) -> str:
    left = len(text) - MAX_TEXT
    return text if left <= 0 else f"{text[:MAX_TEXT]} … ({left:,} more characters)"


def _mean(segments: Iterable[Mapping[str, Any]], name: str) -> Any:
    """Mean over trained tokens; None where the file has no such column or nothing is trained."""
    values = [
        value
        for one in segments
        if one.get(name) is not None
        for value, is_trained in zip(one[name], one["loss_mask"], strict=True)
        if is_trained and value is not None
    ]
    return significant(sum(values) / len(values), 4) if values else None


def _numbers(pairs: Iterable[tuple[str, float]], digits: int = 6) -> dict[str, Any]:
    return {key: significant(value, digits) for key, value in pairs}


def _rounded(values: "np.ndarray[Any, np.dtype[np.float64]]") -> list[Any]:
    """Four decimals, which is what a colour and a tooltip need."""
    import numpy as np

    rounded: list[Any] = (np.round(values, 4) + 0.0).tolist()  # no negative zeros
    return rounded if np.isfinite(values).all() else [significant(value) for value in rounded]
