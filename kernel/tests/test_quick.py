"""A quick record is the record that `dataclass` makes."""

import copy
import dataclasses
import inspect
import pickle
from dataclasses import dataclass, field
from typing import Any

import pytest

from skyrl_kernel.quick import quick


@dataclass(frozen=True, kw_only=True, slots=True)
class Plain:
    """As `dataclass` makes it."""

    number: int
    names: dict[str, int] = field(default_factory=dict)
    text: str | None = None

    def __post_init__(self) -> None:
        if self.number < 0:
            raise ValueError("negative")


@quick
@dataclass(frozen=True, kw_only=True, slots=True)
class Quick:
    """The same, quick."""

    number: int
    names: dict[str, int] = field(default_factory=dict)
    text: str | None = None

    def __post_init__(self) -> None:
        if self.number < 0:
            raise ValueError("negative")


@pytest.mark.parametrize("given", [{"number": 1}, {"number": 2, "text": "x", "names": {"a": 1}}])
def test_it_holds_what_it_is_given_and_defaults_for_the_rest(given: dict[str, Any]) -> None:
    assert dataclasses.asdict(Quick(**given)) == dataclasses.asdict(Plain(**given))
    assert repr(Quick(**given)) == repr(Plain(**given)).replace("Plain", "Quick")


def test_a_default_that_is_made_is_made_anew_each_time() -> None:
    assert Quick(number=1).names is not Quick(number=1).names


def test_it_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Quick(number=1).number = 2  # type: ignore[misc]


def test_it_checks_itself() -> None:
    with pytest.raises(ValueError, match="negative"):
        Quick(number=-1)


@pytest.mark.parametrize("given", [{}, {"number": 1, "other": 2}])
def test_missing_and_unknown_arguments_are_refused_in_the_same_words(given: dict[str, Any]) -> None:
    with pytest.raises(TypeError) as plain:
        Plain(**given)
    with pytest.raises(TypeError) as quickly:
        Quick(**given)
    assert str(quickly.value) == str(plain.value).replace("Plain", "Quick")


def test_it_is_replaced_copied_and_pickled() -> None:
    one = Quick(number=1, text="x")
    assert dataclasses.replace(one, number=2) == Quick(number=2, text="x")
    assert copy.deepcopy(one) == one == pickle.loads(pickle.dumps(one))


def test_its_signature_is_the_same() -> None:
    assert inspect.signature(Quick) == inspect.signature(Plain)
