"""Calls in the main thread: what they return and raise, and how a late one ends."""

import asyncio
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from skyrl_kernel.rollout.deadline import CallTimeout
from skyrl_kernel.rollout.in_place import _SIGNAL, InPlace

TIMEOUT_S = 0.2


@pytest.fixture
def calls() -> Iterator[InPlace]:
    in_place = InPlace(TIMEOUT_S)
    yield in_place
    in_place.close()


def spin() -> None:
    while True:
        pass


def raise_(error: BaseException) -> None:
    raise error


def test_a_call_returns_what_the_function_returns(calls: InPlace) -> None:
    assert [
        calls.call(TIMEOUT_S, lambda: "a"),
        calls.call(TIMEOUT_S, threading.current_thread),
    ] == [
        "a",
        threading.main_thread(),
    ]


@pytest.mark.parametrize("hang", [spin, lambda: time.sleep(60)], ids=["computing", "waiting"])
def test_a_call_is_ended_at_its_deadline_and_the_next_one_works(calls: InPlace, hang) -> None:
    began = time.monotonic()
    with pytest.raises(CallTimeout, match=r"no answer within 0\.2 s"):
        calls.call(TIMEOUT_S, hang)
    assert 0.2 <= time.monotonic() - began < 2
    assert calls.call(TIMEOUT_S, lambda: 3) == 3


def test_code_that_swallows_every_exception_is_ended_by_a_later_signal(calls: InPlace) -> None:
    swallowed = []

    def stubborn() -> None:
        while len(swallowed) < 2:
            try:
                spin()
            except BaseException as error:
                swallowed.append(type(error).__name__)
        spin()

    with pytest.raises(CallTimeout):
        calls.call(TIMEOUT_S, stubborn)
    assert swallowed == ["_Late", "_Late"]


def test_the_time_between_calls_does_not_count(calls: InPlace) -> None:
    for _ in range(3):
        calls.call(TIMEOUT_S, lambda: time.sleep(0.1))
        time.sleep(0.1)


def test_what_the_function_raises_passes_and_what_would_end_the_event_loop_is_contained(
    calls: InPlace,
) -> None:
    with pytest.raises(ValueError, match="mine"):
        calls.call(TIMEOUT_S, lambda: raise_(ValueError("mine")))
    with pytest.raises(RuntimeError, match="SystemExit: 3"):
        calls.call(TIMEOUT_S, lambda: raise_(SystemExit(3)))
    with pytest.raises(KeyboardInterrupt):
        calls.call(TIMEOUT_S, lambda: raise_(KeyboardInterrupt()))


def test_closing_gives_the_signal_back() -> None:
    before = signal.getsignal(_SIGNAL)
    in_place = InPlace(1)
    in_place.call(TIMEOUT_S, lambda: None)
    assert signal.getsignal(_SIGNAL) != before
    in_place.close()
    assert signal.getsignal(_SIGNAL) == before


def test_only_the_main_thread_can_be_interrupted() -> None:
    assert InPlace.is_possible()
    assert not asyncio.run(asyncio.to_thread(InPlace.is_possible))
