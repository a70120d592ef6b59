"""The launcher of test ranks: torchrun's variables, errors with their rank, deadlines."""

import os
import signal
import time

import pytest

from skyrl_kernel.testing.ranks import RankEnded, RankPool, RanksFailed, on_ranks


def place(offset: int) -> tuple[int, int, int]:
    return offset + int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), os.getpid()


def raise_on(rank: int) -> str:
    if os.environ["RANK"] == str(rank):
        raise ValueError(f"row 7 of rank {rank} is bad")
    return "fine"


def kill_oneself_or_sleep() -> None:
    if os.environ["RANK"] == "0":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def return_what_cannot_be_pickled() -> object:
    return lambda: None


def test_each_rank_finds_its_place_in_the_environment() -> None:
    assert [answer[:2] for answer in on_ranks(2, place, 5)] == [(5, 2), (6, 2)]


def test_the_processes_take_the_next_job() -> None:
    first, second = on_ranks(2, place, 0), on_ranks(1, place, 0)
    assert first[0][2] == second[0][2] != os.getpid()
    assert second[0][1] == 1


def test_an_error_names_its_rank_and_shows_what_the_others_returned() -> None:
    with pytest.raises(RanksFailed, match="rank 1 of 2: ValueError: row 7") as failed:
        on_ranks(2, raise_on, 1)
    assert failed.value.outcomes[0] == "fine"
    assert isinstance(failed.value.outcomes[1], ValueError)
    assert 'raise ValueError(f"row 7' in str(failed.value)  # its traceback
    assert on_ranks(2, raise_on, 2) == ["fine", "fine"]


def test_a_killed_rank_and_one_that_does_not_return_are_told_apart_and_replaced() -> None:
    pool = RankPool()
    with pytest.raises(RanksFailed) as failed:
        pool.run(2, kill_oneself_or_sleep, deadline_s=3)
    assert all(isinstance(one, RankEnded) for one in failed.value.outcomes)
    assert "ended with code -9" in str(failed.value.outcomes[0])
    assert "no answer within 3 s" in str(failed.value.outcomes[1])
    assert pool.run(1, raise_on, 1) == ["fine"]
    pool.close()


def test_a_result_that_cannot_be_sent_is_an_error_and_no_hang() -> None:
    with pytest.raises(RanksFailed, match="cannot be pickled"):
        on_ranks(1, return_what_cannot_be_pickled)


def test_a_function_in_a_function_is_refused() -> None:
    with pytest.raises(ValueError, match="module's top level"):
        on_ranks(1, lambda: None)
