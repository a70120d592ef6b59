"""The order of prompts follows from its arguments alone, and continues where it stood."""

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyrl_kernel.data import Dataset, PromptOrder
from skyrl_kernel.errors import DataError, ResumeError
from skyrl_kernel.records import Prompt


def make_dataset(size: int) -> Dataset:
    rows = (Prompt(uid=f"0:{i}", messages=(), env_class="e") for i in range(size))
    return Dataset(prompts=tuple(rows), sources=("train.parquet",))


def draw(order: PromptOrder, count: int) -> list[str]:
    return [order.next().uid for _ in range(count)]


def test_without_shuffling_the_file_order_repeats_without_its_last_incomplete_batch() -> None:
    order = PromptOrder(make_dataset(5), batch_size=2, seed=0, shuffle=False, epochs=2)
    assert draw(order, 8) == ["0:0", "0:1", "0:2", "0:3"] * 2


def test_the_same_seed_gives_the_same_order_and_another_seed_another() -> None:
    def first_epoch(seed: int) -> list[str]:
        return draw(PromptOrder(make_dataset(50), batch_size=5, seed=seed), 50)

    assert first_epoch(42) == first_epoch(42)
    assert first_epoch(42) != first_epoch(123)


def test_every_epoch_has_its_own_order_and_leaves_other_prompts_out() -> None:
    order = PromptOrder(make_dataset(11), batch_size=5, seed=1, epochs=20)
    epochs = [draw(order, 10) for _ in range(20)]
    assert len({tuple(epoch) for epoch in epochs}) == 20
    # One of 11 is left out each time; over 20 epochs nobody is left out always.
    assert {uid for epoch in epochs for uid in epoch} == {p.uid for p in make_dataset(11)}


@given(
    size=st.integers(1, 30),
    batch_size=st.integers(1, 30),
    seed=st.integers(0, 2**31),
    shuffle=st.booleans(),
)
def test_no_epoch_repeats_a_prompt(size: int, batch_size: int, seed: int, shuffle: bool) -> None:
    batch_size = min(batch_size, size)
    order = PromptOrder(make_dataset(size), batch_size=batch_size, seed=seed, shuffle=shuffle)
    per_epoch = size // batch_size * batch_size
    for _ in range(3):
        assert max(Counter(draw(order, per_epoch)).values()) == 1


@given(
    before=st.integers(0, 40),
    after=st.integers(1, 40),
    size=st.integers(3, 20),
    shuffle=st.booleans(),
)
def test_stopping_anywhere_and_continuing_changes_nothing(
    before: int, after: int, size: int, shuffle: bool
) -> None:
    def fresh() -> PromptOrder:
        return PromptOrder(make_dataset(size), batch_size=3, seed=7, shuffle=shuffle, epochs=3)

    undisturbed = draw(fresh(), before + after)
    stopped = fresh()
    draw(stopped, before)
    continued = fresh()
    draw(continued, 5)  # wherever it stands, the state decides
    continued.load_state_dict(json.loads(json.dumps(stopped.state_dict())))
    assert draw(continued, after) == undisturbed[before:]


@pytest.mark.parametrize(
    ("size", "batch_size", "epochs", "max_steps", "expected"),
    [
        (7473, 1024, 20, None, 140),  # GSM8K: 7473 // 1024 = 7 steps, times 20
        (100, 10, 10, 3, 3),
        (25, 1, 2, 50, 50),
        (25, 1, 2, None, 50),
        (5, 5, 1, 10, 1),  # a bound above the data adds nothing
    ],
)
def test_total_steps(
    size: int, batch_size: int, epochs: int, max_steps: int | None, expected: int
) -> None:
    order = PromptOrder(
        make_dataset(size), batch_size=batch_size, seed=0, epochs=epochs, max_steps=max_steps
    )
    assert order.total_steps == expected


def test_it_is_exhausted_after_its_epochs_and_still_draws() -> None:
    order = PromptOrder(make_dataset(4), batch_size=2, seed=0, epochs=2)
    draw(order, 7)
    assert not order.exhausted
    draw(order, 1)
    assert order.exhausted
    assert order.next().uid.startswith("0:")


def test_fewer_prompts_than_a_batch_name_the_key_to_lower() -> None:
    with pytest.raises(
        DataError, match=r"train_batch_size=8 .*: train\.parquet has 7\. Lower trainer\.train_batch"
    ):
        PromptOrder(make_dataset(7), batch_size=8, seed=0)


def test_other_data_than_the_checkpoints_is_refused() -> None:
    state = PromptOrder(make_dataset(5), batch_size=2, seed=0).state_dict()
    with pytest.raises(ResumeError, match=r"other training data.*Restore the data, or start anew"):
        PromptOrder(make_dataset(6), batch_size=2, seed=0).load_state_dict(state)


def test_a_position_beyond_the_epoch_is_refused() -> None:
    order = PromptOrder(make_dataset(5), batch_size=1, seed=0)
    draw(order, 4)
    with pytest.raises(ResumeError, match=r"prompt 4 of an epoch that now has 4: .*was changed"):
        PromptOrder(make_dataset(5), batch_size=2, seed=0).load_state_dict(order.state_dict())
