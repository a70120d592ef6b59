"""What a row must hold to become a `Prompt`: SkyRL's columns.

=========== ============================================= ==========
column      type                                          required
=========== ============================================= ==========
prompt      list of {role: string, content: string}       to play it
env_class   string; else ``environment.env_class``        no
data_source string; evaluation reports each apart         no
reward_spec struct, such as {method, ground_truth}        by the env
others      anything; handed to the env                   no
=========== ============================================= ==========

A stage `generate` that reads its answers out of the rows, such as SFT's, says
itself which columns it needs (the hook ``measure_row``): then ``prompt`` may be
missing, or be the text of one user message.
"""

from collections.abc import Mapping
from typing import Any

from skyrl_kernel.errors import DataError
from skyrl_kernel.records import Message, Prompt

_NEEDED = "a non-empty list of {role: string, content: string}"
_SHOWN_CHARS = 60


def check_row(
    row: Mapping[str, Any],
    *,
    source: str,
    index: int,
    uid: str,
    default_env: str,
    needs_prompt: bool = True,
) -> Prompt:
    """The row as a record.

    Every column but ``prompt`` and ``env_class`` lands in ``extras``, as in SkyRL.

    Args:
        row: Column → value.
        source: The file or name it came from, for messages.
        index: Its number in the source, from 0.
        uid: Identity that the prompt gets.
        default_env: ``environment.env_class``.
        needs_prompt: False where the stage `generate` says which columns it reads.

    Raises:
        DataError: A column is missing or of the wrong type; names file, row and column.

    Example:
        >>> row = {"prompt": [{"role": "user", "content": "6 * 7"}], "env_class": None}
        >>> check_row(row, source="a.jsonl", index=3, uid="0:3", default_env="multiply").env_class
        'multiply'
    """
    where = f"data '{source}', row {index} (from 0)"
    if needs_prompt and "prompt" not in row:
        raise DataError(
            f"{where}: no column 'prompt', which must be {_NEEDED}; "
            f"columns found: {', '.join(map(str, row)) or 'none'}"
        )
    return Prompt(
        uid=uid,
        messages=_prompt(row.get("prompt"), f"{where}, column 'prompt'", needed=needs_prompt),
        env_class=_text(row, "env_class", where) or default_env,
        data_source=_text(row, "data_source", where),
        extras=_extras(row, where),
    )


def _prompt(value: Any, where: str, *, needed: bool) -> tuple[Message, ...]:
    if not needed and value is None:
        return ()
    if not needed and isinstance(value, str):
        return ({"role": "user", "content": value},)
    try:
        return check_messages(value)
    except ValueError as error:
        raise DataError(f"{where}: {error}") from error


def check_messages(value: Any) -> tuple[Message, ...]:
    """A column's value as chat messages.

    Raises:
        ValueError: It is none; says what was found. The caller adds where.

    Example:
        >>> check_messages([{"role": "user", "content": "6 * 7", "name": None}])
        ({'role': 'user', 'content': '6 * 7'},)
    """
    if not isinstance(value, list) or not value:
        raise ValueError(f"found {_show(value)}; it must be {_NEEDED}")
    for number, message in enumerate(value):
        if not isinstance(message, Mapping):
            raise ValueError(f"message {number} is {_show(message)}; it must be {_NEEDED}")
        for key in ("role", "content"):
            if not isinstance(message.get(key), str):
                raise ValueError(
                    f"'{key}' of message {number} is {_show(message.get(key))}; it must be a string"
                )
        if not message["role"]:
            raise ValueError(f"'role' of message {number} is empty; use system, user or assistant")
    # A parquet struct has every field in every row; those that a message lacks are null.
    return tuple({key: part for key, part in m.items() if part is not None} for m in value)


def _text(row: Mapping[str, Any], column: str, where: str) -> str | None:
    value = row.get(column)
    if value is None or isinstance(value, str):
        return value
    raise DataError(
        f"{where}, column '{column}': found {_show(value)}; it must be a string or null"
    )


def _extras(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    spec = row.get("reward_spec")
    if spec is not None and not isinstance(spec, Mapping):
        raise DataError(
            f"{where}, column 'reward_spec': found {_show(spec)}; "
            "it must be a struct, such as {method: 'rule', ground_truth: '42'}"
        )
    return {column: value for column, value in row.items() if column not in {"prompt", "env_class"}}


def _show(value: Any) -> str:
    """Type and beginning of a value: ``str 'What is 6 * 7?'``."""
    if value is None:
        return "null"
    if value == []:
        return "an empty list"
    text = repr(value)
    return (
        f"{type(value).__name__} {text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + '…'}"
    )
