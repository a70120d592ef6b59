import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from skyrl_kernel.errors import FailureKind, TrajectoryError
from skyrl_sandbox import seat

SEATS = len(os.sched_getaffinity(0))


def test_as_many_run_at_once_as_there_are_processors() -> None:
    running, most, lock = 0, 0, threading.Lock()

    def work(_: int) -> None:
        nonlocal running, most
        with seat(30):
            with lock:
                running += 1
                most = max(most, running)
            time.sleep(0.02)
            with lock:
                running -= 1

    with ThreadPoolExecutor(4 * SEATS) as pool:
        list(pool.map(work, range(8 * SEATS)))
    assert most == SEATS


def test_who_waits_in_vain_is_told_and_blames_the_infrastructure() -> None:
    held = [seat(1) for _ in range(SEATS)]
    for one in held:
        one.__enter__()
    try:
        with pytest.raises(TrajectoryError, match=r"no processor was free within 0\.1 s") as caught:
            seat(0.1).__enter__()
    finally:
        for one in held:
            one.__exit__(None, None, None)
    assert caught.value.kind is FailureKind.INFRASTRUCTURE
    with seat(1) as waited_s:
        assert waited_s < 1


def test_a_seat_is_given_back_after_an_error() -> None:
    for _ in range(2 * SEATS):
        with pytest.raises(KeyError), seat(1):
            raise KeyError("mine")
