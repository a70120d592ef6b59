"""The inside of a `Worker`: a program of the standard library alone, never imported outside.

Reads ``[number, request]`` as one JSON line each, answers in the same way. What the
handler prints goes to standard error, so that it cannot be taken for an answer.
"""

import contextlib
import importlib
import json
import os
import sys
import traceback
from typing import Any


def main(handler: str) -> None:
    """Serve until standard input ends."""
    requests = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    sys.path.pop(0)  # this file's folder
    try:
        module, _, name = handler.partition(":")
        handle = getattr(importlib.import_module(module), name)
    except BaseException as error:
        _send(answers, [0, None, _described(error)])
        raise
    _send(answers, [0, None, None])
    for line in requests:
        number, request = json.loads(line)
        try:
            answer = [number, handle(request), None]
            json.dumps(answer)
        except (Exception, SystemExit) as error:
            answer = [number, None, _described(error)]
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        _send(answers, answer)


def _send(answers: Any, answer: list[Any]) -> None:
    answers.write(json.dumps(answer).encode() + b"\n")
    answers.flush()


def _described(error: BaseException) -> list[str]:
    return [f"{type(error).__name__}: {error}", traceback.format_exc()]


if __name__ == "__main__":
    main(sys.argv[1])
