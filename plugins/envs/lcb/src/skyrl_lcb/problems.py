"""The tests of a problem, and when an output is right."""

import json
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One input and what belongs to it."""

    input: Any
    """Text for the program to read, or the arguments of the function."""
    output: Any
    """Text that the program must write, or what the function must return."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """All that an answer is judged by."""

    function: str | None
    """Name of the function that the tests call; None if they feed the program."""
    cases: tuple[Case, ...]

    def is_right(self, case: Case, output: str) -> bool:
        """Whether a program's output, or a function's value as it was packed, is right."""
        if self.function is None:
            return is_same_text(output, case.output)
        try:
            value = unpacked(json.loads(output))
        except (ValueError, TypeError, LookupError, RecursionError):
            return False
        return bool((list(value) if isinstance(value, tuple) else value) == case.output)


def read_problem(text: str) -> Problem:
    """The problem that a row's ground truth describes.

    Args:
        text: A JSON list of ``{"input", "output", "testtype", "metadata"}``. If the first has the
            testtype ``functional``, all call the function ``metadata.func_name``: each line of
            their input is an argument in JSON, and their output a value in JSON.

    Raises:
        ValueError: It is not of that form; says where.

    Example:
        >>> read_problem('[{"input": "1 2", "output": "3", "testtype": "stdin"}]').cases[0].output
        '3'
    """
    try:
        tests = json.loads(text)
    except ValueError as error:
        raise ValueError(f"the tests of this row are not JSON: {error}") from error
    if not isinstance(tests, list) or not tests or not all(isinstance(one, dict) for one in tests):
        raise ValueError("the tests of this row must be a JSON list of at least one object")
    function = None
    if tests[0].get("testtype") == "functional":
        function = (tests[0].get("metadata") or {}).get("func_name")
        if not function:
            raise ValueError(
                "the tests of this row call a function, and metadata.func_name is none"
            )
    return Problem(
        function=function,
        cases=tuple(_read_case(one, i, function is not None) for i, one in enumerate(tests)),
    )


def _read_case(test: dict[str, Any], index: int, is_function: bool) -> Case:
    try:
        given, output = test["input"], test["output"]
        if not is_function:
            text = "\n".join(given) if isinstance(given, list) else given
            if not isinstance(text, str) or not isinstance(output, str):
                raise TypeError("input and output must be text")
            return Case(input=text, output=output)
        return Case(
            input=[json.loads(line) for line in given.split("\n")], output=json.loads(output)
        )
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"test {index} of this row cannot be read: {type(error).__name__}: {error}"
        ) from error


def is_same_text(output: str, expected: str) -> bool:
    r"""Whether two outputs have the same lines.

    Space around the text and around each line does not count. Lines that differ as text
    are still the same if they hold the same numbers.

    Example:
        >>> is_same_text("1.50  2\n\n", "1.5 2"), is_same_text("yes", "Yes")
        (True, False)
    """
    ours, theirs = (
        [line.strip() for line in text.strip().split("\n")] for text in (output, expected)
    )
    return len(ours) == len(theirs) and all(
        one == other or _are_same_numbers(one, other)
        for one, other in zip(ours, theirs, strict=True)
    )


def _are_same_numbers(one: str, other: str) -> bool:
    try:
        return [Decimal(word) for word in one.split()] == [Decimal(word) for word in other.split()]
    except InvalidOperation:
        return False


_KINDS: dict[str, type[Any]] = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}


def unpacked(value: Any) -> Any:
    """The value that was packed; an object of its own for what could not be.

    Example:
        >>> unpacked(["list", 1, ["tuple", 2, ["dict", ["a", None]]]])
        [1, (2, {'a': None})]
    """
    if not isinstance(value, list):
        return value
    kind, *items = value
    if kind == "dict":
        return {unpacked(key): unpacked(item) for key, item in items}
    if kind == "object":
        return object()
    return _KINDS[kind](unpacked(item) for item in items)
