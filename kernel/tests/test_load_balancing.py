"""Which engine or server a request goes to."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from skyrl_kernel.load_balancing import SLACK, LoadBalancer

PROMPTS = [np.arange(start, start + 48, dtype=np.int32) for start in range(0, 500, 100)]


@given(
    servers=st.integers(1, 5),
    events=st.lists(st.one_of(st.integers(0, len(PROMPTS) - 1), st.none()), max_size=200),
)
def test_no_request_is_lost_no_server_idles_and_none_is_far_ahead(
    servers: int, events: list[int | None]
) -> None:
    balancer = LoadBalancer(servers)
    live: list[int] = []
    for event in events:
        if event is None:
            if live:
                balancer.release(live.pop(0))
        else:
            before = list(balancer.running)
            place = balancer.acquire(PROMPTS[event])
            live.append(place)
            assert before[place] == min(before) or 0 < min(before) >= before[place] - SLACK
        assert balancer.running == [live.count(one) for one in range(servers)]
    for place in live:
        balancer.release(place)
    assert balancer.running == [0] * servers


@given(servers=st.integers(1, 5), requests=st.integers(0, 100))
def test_requests_that_have_nothing_in_common_are_spread_evenly(
    servers: int, requests: int
) -> None:
    balancer = LoadBalancer(servers)
    for number in range(requests):
        balancer.acquire(np.full(32, number, dtype=np.int32))
    assert max(balancer.running) - min(balancer.running) <= 1


def test_samples_of_one_prompt_stay_together_as_far_as_the_others_have_work_too() -> None:
    balancer = LoadBalancer(2)
    a, b = PROMPTS[:2]
    assert [balancer.acquire(a), balancer.acquire(b)] == [0, 1]
    # 4 more than the other server's 1, then the other one's turn.
    assert [balancer.acquire(a) for _ in range(SLACK + 2)] == [0] * (SLACK + 1) + [1]


def test_the_first_sample_of_a_prompt_does_not_keep_the_second_from_an_idle_server() -> None:
    balancer = LoadBalancer(2)
    assert {balancer.acquire(PROMPTS[0]) for _ in range(2)} == {0, 1}


def test_the_next_turn_goes_where_the_turns_before_were_computed() -> None:
    balancer = LoadBalancer(3)
    row, others = PROMPTS[0], PROMPTS[1:4]
    places = [balancer.acquire(prompt) for prompt in others]
    home = balancer.acquire(row)
    balancer.release(home)
    longer = np.concatenate([row, np.arange(900, 930, dtype=np.int32)])
    assert balancer.acquire(longer) == home
    assert sorted(places) == [0, 1, 2]


def test_a_common_beginning_of_less_than_half_decides_nothing() -> None:
    balancer = LoadBalancer(2)
    system = np.arange(16, dtype=np.int32)
    prompts = [np.concatenate([system, np.full(48, number, dtype=np.int32)]) for number in range(8)]
    for prompt in prompts:
        balancer.acquire(prompt)
    assert balancer.running == [4, 4]
