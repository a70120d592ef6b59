"""Says what the installed vLLM makes of settings, without starting it.

``python -m skyrl_vllm.known`` reads a JSON object of settings and writes one with
``flags``, vLLM's command line for them, and ``problems``, a sentence each.
"""

import argparse
import json
import os
import sys
from collections.abc import Mapping
from typing import Any, NoReturn

from skyrl_kernel.plugins.wording import did_you_mean


class Problem(Exception):
    """vLLM's parser said no."""


def understood(parser: argparse.ArgumentParser, settings: Mapping[str, Any]) -> dict[str, Any]:
    """See the module; ``parser`` is vLLM's."""
    known = {one.dest: one for one in parser._actions if one.option_strings and one.dest != "help"}
    flags: list[str] = []
    problems: list[str] = []
    for name, value in settings.items():
        action = known.get(name.replace("-", "_"))
        if action is None:
            hint = did_you_mean(name, known) or " `vllm serve --help=all` lists all"
            problems.append(f"{name}: vLLM has no such setting.{hint}")
            continue
        try:
            words = words_of(action, value)
            _parse(parser, words)
        except Problem as problem:
            problems.append(f"{name}={value!r}: {problem}")
        else:
            flags += words
    return {"flags": flags, "problems": problems}


def words_of(action: argparse.Action, value: Any) -> list[str]:
    """One setting on the command line; null is vLLM's default, and no word.

    Raises:
        Problem: A switch is neither true nor false, or something else is.
    """
    name = max(action.option_strings, key=lambda one: (one.startswith("--"), -len(one)))
    is_switch = action.nargs == 0
    if value is None:
        return []
    if is_switch is not isinstance(value, bool):
        wanted = "true or false" if is_switch else "a value, and not true or false"
        raise Problem(f"it takes {wanted}")
    if isinstance(value, bool):
        off = "--no-" + name.removeprefix("--")
        if value:
            return [name]
        return [off] if off in action.option_strings else []
    if isinstance(value, list) and action.nargs in ("+", "*"):
        return [name, *map(_word, value)]
    return [name, _word(value)]


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _parse(parser: argparse.ArgumentParser, words: list[str]) -> None:
    def refuse(message: str) -> NoReturn:
        raise Problem(message.partition(": ")[2] or message)

    parser.error = refuse  # type: ignore[method-assign]
    try:
        parser.parse_args(words)
    except Problem:
        raise
    except Exception as error:
        raise Problem(str(error)) from error


def main() -> None:
    """Read, ask, write."""
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # vLLM talks while it is imported
    settings = json.load(sys.stdin)
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    with answer:
        json.dump(understood(make_arg_parser(FlexibleArgumentParser()), settings), answer)


if __name__ == "__main__":
    main()
