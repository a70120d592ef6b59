"""Work dealt out by tokens."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from skyrl_kernel.ray.shares import share_out, share_samples
from skyrl_kernel.records import Scores, TrainingSample

lengths = st.lists(st.integers(1, 1000), max_size=40)
counts = st.integers(1, 9)


@given(lengths, counts)
def test_everything_is_dealt_out_once_and_in_order(tokens: list[int], shares: int) -> None:
    parts = share_out(tokens, shares)
    assert len(parts) == shares
    assert sorted(itertools.chain(*parts)) == list(range(len(tokens)))
    assert all(part == sorted(part) for part in parts)


@given(lengths, counts)
def test_no_share_is_empty_while_another_has_two(tokens: list[int], shares: int) -> None:
    sizes = [len(part) for part in share_out(tokens, shares)]
    assert min(sizes) > 0 or max(sizes, default=0) <= 1


@given(lengths, counts)
def test_the_largest_share_is_within_a_third_of_what_cannot_be_beaten(
    tokens: list[int], shares: int
) -> None:
    # No way of dealing beats the mean, the longest item, or (with more items than shares) two of
    # the items number `shares` and `shares` + 1 together.
    ranked = sorted(tokens, reverse=True)
    pair = sum(ranked[shares - 1 : shares + 1]) if len(tokens) > shares else 0
    best = max(sum(tokens) / shares, max(tokens, default=0), pair)
    largest = max(sum(tokens[item] for item in part) for part in share_out(tokens, shares))
    assert largest <= 4 / 3 * best + 1e-9


def test_one_share_keeps_the_order_so_that_one_rank_computes_as_one_process_does() -> None:
    assert share_out([3, 9, 1], 1) == [[0, 1, 2]]


def sample(group: int, trajectory: int, tokens: int) -> TrainingSample:
    row = np.zeros(tokens, np.float32)
    return TrainingSample(
        trajectory_id=f"{group}/{trajectory}",
        group=group,
        trajectory=trajectory,
        tokens=np.zeros(tokens, np.int32),
        loss_mask=row > 0,
        advantages=row,
        returns=None,
        sampler_logprobs=None,
        scores=Scores(),
        loss_weights={"policy": row},
    )


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2), st.integers(1, 50))), counts)
def test_no_atom_is_split(rows: list[tuple[int, int, int]], shares: int) -> None:
    samples = [sample(group, 3 * group + one, tokens) for group, one, tokens in rows]
    for atom in ("trajectory", "group"):
        parts = share_samples(samples, atom, shares)
        owners = [{getattr(one, atom) for one in part} for part in parts]
        assert sum(map(len, owners)) == len(set().union(*owners))
        assert sorted(map(id, itertools.chain(*parts))) == sorted(map(id, samples))


def test_groups_are_balanced_by_the_tokens_of_all_their_rows() -> None:
    # 30 + 30 against 20 + 20 + 20, not two groups against one.
    samples = [sample(0, 0, 30), sample(0, 1, 30), sample(1, 2, 20), sample(1, 3, 20)]
    samples.append(sample(2, 4, 20))
    parts = share_samples(samples, "group", 2)
    assert [[one.group for one in part] for part in parts] == [[0, 0], [1, 1, 2]]
