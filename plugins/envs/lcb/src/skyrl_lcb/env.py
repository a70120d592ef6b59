"""Judges a program by running it on the tests of its problem."""

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from skyrl_kernel.env import EnvStep, TextEnv, require_ground_truth
from skyrl_kernel.errors import FailureKind, TrajectoryError
from skyrl_lcb.config import LcbConfig
from skyrl_lcb.problems import Problem, read_problem
from skyrl_sandbox import (
    Interpreter,
    Limits,
    Sandbox,
    Worker,
    WorkerDied,
    WorkerError,
    WorkerTimeout,
    seat,
)

_BLOCK = re.compile(r"```(?:\w+)?\n(.*?)```", re.DOTALL)
_MARGIN_S = 2.0
"""On the clock, for what is not the program: starting it, and others on the machine."""
_WALL_FACTOR = 4
"""Times its processor time a test may take on the clock: the machine has other work too."""
_BUDGET = 0.8
"""Of the deadline of a call: what the tests together may take of it."""


def parse_code(text: str) -> str | None:
    r"""Content of the last fenced block, or None.

    Example:
        >>> parse_code("First:\n```python\nprint(1)\n```\nNo:\n```\nprint(2)\n```")
        'print(2)'
    """
    blocks: list[str] = _BLOCK.findall(text)
    return blocks[-1].strip() if blocks else None


_LEAST_OUTPUT = 65536
"""Bytes that a program may write whatever is expected of it; beyond it, some times what is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What became of a program."""

    reason: str
    """``right``, ``wrong answer``, ``error``, ``timeout``, ``too much output``, or the limit that
    the program exceeded."""
    passed: int
    """Tests that it passed before that."""


class LcbEnv(TextEnv):
    """One answer: reward 1.0 if its last fenced block passes all tests, else 0.0.

    Args:
        extras: Columns of the row; ``reward_spec.ground_truth`` holds the tests, see
            `read_problem`.
        sandbox: Made by `make_sandbox`.
        config: Limits of one test.
        call_timeout_s: ``environment.timeout_s``, within which all tests must be done.

    Raises:
        ValueError: The row has no tests, or they cannot be read.
    """

    def __init__(
        self, extras: Mapping[str, Any], sandbox: Sandbox, config: LcbConfig, call_timeout_s: float
    ) -> None:
        super().__init__({}, max_turns=1)
        self._problem = read_problem(require_ground_truth(extras, "lcb"))
        self._sandbox = sandbox
        self._config = config
        self._budget_s = _BUDGET * call_timeout_s
        self._verdict = Verdict(reason="no code", passed=0)

    def step(self, action: str) -> EnvStep:
        """Judge the program; the episode ends."""
        self.turns += 1
        code = parse_code(action)
        if code is not None:
            self._verdict = judge(
                code,
                self._problem,
                self._sandbox,
                cpu_s=self._config.timeout_s,
                budget_s=self._budget_s,
            )
        return EnvStep(
            observations=[],
            reward=float(self._is_right),
            done=True,
            metadata={
                "parsed_code": code,
                "verdict": self._verdict.reason,
                "passed": self._verdict.passed,
            },
        )

    def get_metrics(self) -> Mapping[str, float]:
        """``exact_match``: 1 if all tests passed; ``passed_frac``: tests before the first that failed."""
        return {
            "exact_match": float(self._is_right),
            "passed_frac": self._verdict.passed / len(self._problem.cases),
        }

    @property
    def _is_right(self) -> bool:
        return self._verdict.reason == "right"


def make_sandbox(config: LcbConfig) -> Sandbox:
    """Where programs run.

    Raises:
        UsageError: No sandbox can be had here, or not this interpreter or these packages.
    """
    inside = Path(str(resources.files("skyrl_lcb"))) / "inside"
    return Sandbox(
        python=None if config.python is None else Interpreter.at(config.python),
        python_path=[inside],
        packages=config.packages,
        limits=Limits(cpu_s=None, memory_mb=config.memory_mb),
    )


def judge(
    code: str, problem: Problem, sandbox: Sandbox, *, cpu_s: float, budget_s: float
) -> Verdict:
    """Run a program on one test after the other, up to the first that fails.

    Args:
        code: The program.
        problem: Its tests.
        sandbox: Made by `make_sandbox`.
        cpu_s: Processor time of one test.
        budget_s: Time on the clock of all together.

    Raises:
        TrajectoryError: The sandbox failed, or other programs took the time: this says
            nothing about the program.
    """
    deadline = time.monotonic() + budget_s
    passed = 0
    limits = _limits(sandbox.limits, problem)
    with (
        seat(budget_s / 2) as waited_s,
        Worker(sandbox.with_limits(limits), "lcb_program:run") as worker,
    ):
        for case in problem.cases:
            left_s = deadline - time.monotonic()
            wall_s = min(_WALL_FACTOR * cpu_s + _MARGIN_S, left_s)
            if wall_s <= 0:
                _refuse_if_it_waited(waited_s)
                return Verdict(reason="timeout", passed=passed)
            request = {
                "code": code,
                "function": problem.function,
                "input": case.input,
                "cpu_s": cpu_s,
                "wall_s": wall_s,
                "most": _most_output(problem),
            }
            try:
                answer = worker.call(request, wall_s + _MARGIN_S)
                status, output = str(answer["status"]), answer["output"]
            except WorkerTimeout:
                status = "timeout"
            except WorkerDied as error:
                status = str(error.limit or "error")
            except (WorkerError, KeyError, TypeError):  # the program has tampered with it
                status = "error"
            if status == "timeout" and wall_s == left_s:
                _refuse_if_it_waited(waited_s)
            if status != "ended":
                return Verdict(reason=status, passed=passed)
            if not isinstance(output, str) or not problem.is_right(case, output):
                return Verdict(reason="wrong answer", passed=passed)
            passed += 1
    return Verdict(reason="right", passed=passed)


def _refuse_if_it_waited(waited_s: float) -> None:
    """Time that ran out is not the program's fault if it had to wait for its neighbours."""
    if waited_s >= 1.0:
        raise TrajectoryError(
            FailureKind.INFRASTRUCTURE,
            f"the tests of a program did not end in time, of which it had waited {waited_s:.0f} s for a "
            "processor; lower environment.max_env_workers or raise environment.timeout_s",
            "lcb",
        )


def _most_output(problem: Problem) -> int:
    """Bytes after which an output cannot be right any more."""
    longest = max(len(str(case.output)) for case in problem.cases)
    return _LEAST_OUTPUT + longest * (4 if problem.function is None else 16)  # as it is packed


def _limits(limits: Limits, problem: Problem) -> Limits:
    """With room for the longest input, which lies in /tmp, and for the longest output."""
    longest = max(len(str(case.input)) for case in problem.cases)
    return replace(
        limits,
        files_mb=limits.files_mb + 4 * longest // 2**20,
        output_kb=limits.output_kb + 6 * _most_output(problem) // 1024,  # in JSON
    )
