"""When a group may begin."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyrl_kernel.admission import Admission
from skyrl_kernel.testing.clock import run_without_waiting


def begun(admission: Admission) -> int:
    """Begin all that may begin; returns how many."""
    count = admission.capacity
    for _ in range(count):
        admission.begin()
    return count


def test_with_staleness_1_and_batches_of_2_four_groups_may_begin_and_a_fifth_for_each_dropped() -> (
    None
):
    # SkyRL's case: (version 0 + 1 + staleness 1) × 2 = 4
    admission = Admission(target=2, max_staleness=1, total=100)
    assert begun(admission) == 4
    assert admission.capacity == 0
    admission.drop(1)
    assert begun(admission) == 1
    admission.advance()
    assert begun(admission) == 2


def test_without_staleness_a_batch_begins_when_the_one_before_is_trained() -> None:
    admission = Admission(target=3, max_staleness=0, total=100)
    assert [begun(admission), begun(admission)] == [3, 0]
    admission.advance()
    assert begun(admission) == 3


def test_no_more_groups_begin_than_the_run_needs() -> None:
    admission = Admission(target=2, max_staleness=5, total=6)
    assert begun(admission) == 6
    admission.advance()
    assert begun(admission) == 0
    admission.drop(1)  # one of the six is not trained on
    assert begun(admission) == 1


def test_with_a_bound_of_3_a_group_begins_when_one_of_3_has_ended() -> None:
    admission = Admission(target=4, max_staleness=1, total=100, most_running=3)
    assert begun(admission) == 3
    assert admission.capacity == 0
    admission.end()
    admission.end()
    assert begun(admission) == 2
    for _ in range(3):
        admission.end()
    assert begun(admission) == 3  # (version 0 + 1 + staleness 1) × 4 = 8 have begun
    for _ in range(3):
        admission.end()
    assert admission.capacity == 0


def test_groups_are_numbered_over_the_whole_run() -> None:
    admission = Admission(target=2, max_staleness=0, total=10, version=3, begun=7, dropped=1)
    assert (admission.capacity, admission.begin(), admission.begin()) == (2, 7, 8)


def test_beginning_without_leave_is_a_mistake_of_the_program() -> None:
    with pytest.raises(AssertionError, match="wait"):
        Admission(target=1, max_staleness=0, total=0).begin()


def test_waiting_ends_when_something_changes() -> None:
    async def main() -> float:
        admission = Admission(target=1, max_staleness=0, total=9)
        begun(admission)
        loop = asyncio.get_running_loop()
        loop.call_later(5, admission.advance)
        await admission.wait()
        return loop.time()

    assert run_without_waiting(main()) == 5


def test_waiting_ends_when_a_group_does() -> None:
    async def main() -> float:
        admission = Admission(target=2, max_staleness=0, total=9, most_running=1)
        begun(admission)
        loop = asyncio.get_running_loop()
        loop.call_later(5, admission.end)
        await admission.wait()
        return loop.time()

    assert run_without_waiting(main()) == 5


@given(
    target=st.integers(1, 4),
    max_staleness=st.integers(0, 3),
    drops=st.lists(st.integers(0, 3), min_size=8, max_size=8),
)
def test_a_group_is_trained_within_the_bound_whatever_is_dropped(
    target: int, max_staleness: int, drops: list[int]
) -> None:
    """A consumer that trains on groups in order, dropping some number of each batch's first ones."""
    admission = Admission(target=target, max_staleness=max_staleness, total=8 * target)
    versions: list[int] = []  # of the weights when each group began

    def fill() -> None:
        while admission.capacity:
            admission.begin()
            versions.append(admission.version)

    fill()
    consumed = 0
    for step, dropped in enumerate(drops, start=1):
        for _ in range(dropped):
            consumed += 1
            admission.drop(1)
            fill()
        batch = versions[consumed : consumed + target]
        consumed += target
        assert len(batch) == target  # never too few: that would be a deadlock
        assert all(step - 1 - version <= max_staleness for version in batch)
        admission.advance()
        fill()
    assert consumed == len(versions)  # nothing was generated in vain
