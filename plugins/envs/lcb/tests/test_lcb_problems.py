"""Reading tests, and when an output is right."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyrl_lcb.env import parse_code
from skyrl_lcb.inside.lcb_program import packed, run
from skyrl_lcb.problems import Case, Problem, is_same_text, read_problem, unpacked


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("```python\nprint(1)\n```", "print(1)"),
        ("```\nprint(1)\n```", "print(1)"),
        ("```python\nprint(1)\n```\nBetter:\n```py\nprint(2)\n```", "print(2)"),
        ("```python\n\n  print(1)  \n\n```", "print(1)"),
        ("```python\nprint('```')\n```", "print('"),  # a fence is a fence
        ("```python print(1)```", None),
        ("```c++\nint main;\n```", None),  # '+' is no letter of a language's name
        ("```python\nprint(1)", None),
        ("```python\n```", ""),
        ("print(1)", None),
    ],
)
def test_the_last_fenced_block_counts(text: str, code: str | None) -> None:
    assert parse_code(text) == code


@pytest.mark.parametrize(
    ("output", "expected", "is_same"),
    [
        ("3\n", "3", True),
        ("\n 3  \n\n", "3", True),
        ("1\n2", "1\n 2 ", True),
        ("1 2", "1  2", True),  # as numbers, since the text differs
        ("a b", "a  b", False),
        ("0.50", "0.5", True),
        ("1e3", "1000", True),
        ("50000000000000001", "50000000000000000", False),  # as floats they would be equal
        ("0.30000000000000004", "0.3", False),
        ("3 x", "3.0 x", False),
        ("1\n2\n3", "1\n2", False),
        ("1\n\n2", "1\n2", False),
        ("Yes", "YES", False),
        ("", "", True),
        ("", "0", False),
        ("nan", "NaN", False),
        ("sNaN", "1", False),
        ("Infinity", "inf", True),
        ("٣", "3", True),  # Decimal reads all digits
    ],
)
def test_outputs_are_compared_by_lines_and_numbers(
    output: str, expected: str, is_same: bool
) -> None:
    assert is_same_text(output, expected) is is_same


@given(st.lists(st.text(st.characters(exclude_categories=["Cc", "Zs", "Zl", "Zp"])), min_size=1))
def test_space_around_lines_changes_nothing(lines: list[str]) -> None:
    spaced = "\n\n" + "\n".join(f"  {line}\t" for line in lines) + " \n"
    assert is_same_text(spaced, "\n".join(lines)) or "" in (lines[0], lines[-1])


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False),
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text() | st.integers(), inner)
        | st.frozensets(st.integers() | st.text())
    ),
    max_leaves=20,
)


@given(VALUES)
def test_values_come_out_as_they_went_in(value: object) -> None:
    out = unpacked(json.loads(json.dumps(packed(value))))
    assert out == value
    assert type(out) is type(value)


def function_problem(output: object) -> Problem:
    return Problem(function="f", cases=(Case(input=[], output=output),))


@pytest.mark.parametrize(
    ("value", "expected", "is_right"),
    [
        ([1, 2], [1, 2], True),
        ((1, 2), [1, 2], True),  # a tuple is as good as a list
        ([(1, 2)], [[1, 2]], False),  # but not inside
        (1, 1.0, True),
        (True, 1, True),
        ("1", 1, False),
        ({"a": 1}, {"a": 1}, True),
        ({1: 1}, {"1": 1}, False),
        ({1, 2}, [1, 2], False),
        (None, None, True),
        (object(), None, False),
        ([object()], [None], False),
        (float("nan"), float("nan"), False),
    ],
)
def test_values_are_compared_as_python_does(
    value: object, expected: object, is_right: bool
) -> None:
    problem = function_problem(expected)
    assert problem.is_right(problem.cases[0], json.dumps(packed(value))) is is_right


@pytest.mark.parametrize(
    "forged", ["", "[", '["list"', '["nothing", 1]', '["dict", 1]', "[]", "[[1]]", '["set", ["list"]]',
               "[" * 5000 + "]" * 5000, '["dict", [["list"], 1]]', "9" * 5000],
)  # fmt: skip
def test_what_a_program_forges_is_wrong_and_breaks_nothing(forged: str) -> None:
    problem = function_problem([1])
    assert not problem.is_right(problem.cases[0], forged)


def test_tests_that_call_a_function_are_read_as_json() -> None:
    text = json.dumps(
        [
            {"input": '[1, 2]\n"x"', "output": "[2]", "testtype": "functional",
             "metadata": {"func_name": "solve"}},
            {"input": "[]\n\"y\"", "output": "null", "testtype": "functional", "metadata": {}},
        ]
    )  # fmt: skip
    assert read_problem(text) == Problem(
        function="solve",
        cases=(Case(input=[[1, 2], "x"], output=[2]), Case(input=[[], "y"], output=None)),
    )


def test_input_may_be_a_list_of_lines() -> None:
    problem = read_problem('[{"input": ["1", "2"], "output": "3"}]')
    assert problem == Problem(function=None, cases=(Case(input="1\n2", output="3"),))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no", "the tests of this row are not JSON"),
        ("[]", "must be a JSON list of at least one object"),
        ("{}", "must be a JSON list of at least one object"),
        ("[1]", "must be a JSON list of at least one object"),
        ('[{"input": "1"}]', "test 0 of this row cannot be read: KeyError: 'output'"),
        ('[{"input": "1", "output": 1}]', "TypeError: input and output must be text"),
        ('[{"input": "x", "output": "1", "testtype": "functional"}]', r"metadata\.func_name is none"),
        ('[{"input": "x", "output": "1", "testtype": "functional", "metadata": {"func_name": "f"}}]',
         "test 0 of this row cannot be read: JSONDecodeError"),
    ],
)  # fmt: skip
def test_unreadable_tests_lose_the_trajectory_and_say_where(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_problem(text)


def test_the_inside_does_not_run_outside() -> None:
    with pytest.raises(RuntimeError, match="it runs in the sandbox only"):
        run({"code": "", "function": None, "input": "", "cpu_s": 1, "wall_s": 1, "most": 1})
