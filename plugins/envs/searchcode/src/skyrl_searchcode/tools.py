"""The two tools: what the model sees of a search and of a program."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from skyrl_sandbox import Interpreter, Limit, Limits, Sandbox, seat
from skyrl_search.env import Searches
from skyrl_searchcode.config import SearchcodeConfig

Tools = Mapping[str, Callable[[str], str]]
"""Name → what it answers to its input."""

_CALL = re.compile(r"<tool>(.*?)</tool>", re.DOTALL)
_NAMED = re.compile(r"<(\w+)>(.*?)</\1>", re.DOTALL)
_MAX_CHARS = 8192
"""Of a program's output that are shown; the rest would only push out the question."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """A tool and its input, as a completion names them.

    Example:
        >>> Call.parse("<tool><python> print(1) </python></tool>")
        Call(tool='python', input='print(1)')
    """

    tool: str
    input: str

    @classmethod
    def parse(cls, action: str) -> "Call":
        """The first ``<tool><name>…</name></tool>``.

        Raises:
            ValueError: There is none; says what is missing.
        """
        block = _CALL.search(action)
        if block is None:
            raise ValueError("No <tool>...</tool> block found.")
        named = _NAMED.search(block.group(1).strip())
        if named is None:
            raise ValueError("No tool is named inside the <tool> block.")
        return cls(tool=named.group(1), input=named.group(2).strip())


def make_tools(retriever: Searches, sandbox: Sandbox) -> Tools:
    """``search`` and ``python``."""
    return {
        "search": lambda query: search(retriever, query),
        "python": lambda program: run_python(sandbox, program),
    }


def make_sandbox(config: SearchcodeConfig, call_timeout_s: float) -> Sandbox:
    """Where programs run.

    Args:
        config: What they may use.
        call_timeout_s: ``environment.timeout_s``, within which a program must have ended.

    Raises:
        UsageError: No sandbox can be had here, or not this interpreter or these packages.
    """
    seconds = config.python_timeout_s
    return Sandbox(
        python=None if config.python is None else Interpreter.at(config.python),
        packages=config.packages,
        limits=Limits(
            cpu_s=seconds,
            wall_s=min(4 * seconds, 0.4 * call_timeout_s),  # as long again to wait for a processor
            memory_mb=config.memory_mb,
        ),
    )


def search(retriever: Searches, query: str) -> str:
    """The documents that were found, numbered, in JSON.

    Raises:
        TrajectoryError: The retriever failed; the trajectory is lost, not judged.
    """
    documents = retriever.search(query) if query else ()
    found = "".join(f"Doc {n}: {text.strip()}\n" for n, text in enumerate(documents, 1))
    return json.dumps({"result": found or "No search results found."}, ensure_ascii=False)


def run_python(sandbox: Sandbox, program: str) -> str:
    """What a program wrote: its errors if there are any, else its output.

    Raises:
        TrajectoryError: The sandbox failed; the trajectory is lost, not judged.
    """
    limits = sandbox.limits
    with seat(limits.wall_s):
        result = sandbox.run_python(program)
    assert limits.cpu_s is not None
    beyond = {
        Limit.WALL: f"Execution timed out after {limits.cpu_s:g} seconds.",
        Limit.CPU: f"Execution timed out after {limits.cpu_s:g} seconds.",
        Limit.MEMORY: f"It used more than {limits.memory_mb} MB of memory.",
        Limit.OUTPUT: f"It wrote more than {limits.output_kb} KB.",
        Limit.FILES: f"It made more than {limits.num_files} files.",
    }
    if result.limit is not None:
        return f"Error executing Python code: {beyond[result.limit]}"
    if result.stderr:
        return f"Error executing Python code: {_shortened(result.stderr.strip(), keep_end=True)}"
    return _shortened(result.stdout.strip()) or "The program wrote nothing."


def _shortened(text: str, keep_end: bool = False) -> str:
    """The first characters, or the last, where an error says what it is."""
    if len(text) <= _MAX_CHARS:
        return text
    return f"…{text[-_MAX_CHARS:]}" if keep_end else f"{text[:_MAX_CHARS]}…"
