"""The producer against a consumer that trains for random times, on a clock that jumps."""

import asyncio
import dataclasses
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skyrl_kernel.admission import Admission
from skyrl_kernel.data import Dataset, PromptOrder
from skyrl_kernel.errors import FailureBudgetError, FailureKind, HookError, RunError
from skyrl_kernel.producer import Batch, Producer
from skyrl_kernel.protocols import Select
from skyrl_kernel.records import Failure, Group, Prompt, Segment, Selection, StopReason, Trajectory
from skyrl_kernel.testing.clock import run_without_waiting

EPOCHS = 2
PROMPTS = 12


@dataclass(kw_only=True)
class World:
    """One run without an engine: groups take random times, and so does training."""

    seed: int = 0
    target: int = 2
    max_staleness: int = 0
    workers: int | None = None
    """Most groups at a time."""
    select: Select = lambda groups, target, rng: _verdicts(["keep"] * len(groups))
    max_rounds: int = 0
    max_failed_frac: float = 0.5
    lost: Callable[[int], int] = lambda index: 0
    """Of the 4 trajectories of group ``index``, how many are lost."""
    takes_s: Callable[[int], float] | None = None
    """How long group ``index`` takes; None: random times."""
    broken: frozenset[int] = frozenset()
    """Groups that end the run when their time is over."""
    begun: dict[int, int] = field(default_factory=dict)
    """Group → version of the weights when it began."""
    running: int = 0
    most_running: int = 0

    def start(self, state: dict[str, Any] | None = None) -> tuple[Producer, Admission, PromptOrder]:
        prompts = tuple(Prompt(uid=f"0:{i}", messages=(), env_class="e") for i in range(PROMPTS))
        order = PromptOrder(Dataset(prompts=prompts), batch_size=self.target, seed=3, epochs=EPOCHS)
        admission = Admission(
            target=self.target,
            max_staleness=self.max_staleness,
            most_running=self.workers,
            total=order.total_steps * self.target,
        )
        if state is not None:
            order.load_state_dict(state["prompts"])
            admission.begun, admission.dropped = state["begun"], state["dropped"]
            admission.version = state["version"]
        producer = Producer(
            prompts=order,
            begin=lambda prompt, index, step: self._begin(prompt, index, admission),
            select=self.select,
            admission=admission,
            seed=1,
            max_rounds=self.max_rounds,
            max_failed_frac=self.max_failed_frac,
        )
        return producer, admission, order

    def _begin(self, prompt: Prompt, index: int, admission: Admission) -> "asyncio.Task[Group]":
        self.begun[index] = admission.version
        return asyncio.create_task(self._group(prompt, index))

    async def _group(self, prompt: Prompt, index: int) -> Group:
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        drawn = random.Random(self.seed * 1000 + index).choice([0, 0, 1, 2, 9])
        await asyncio.sleep(drawn if self.takes_s is None else self.takes_s(index))
        self.running -= 1
        if index in self.broken:
            raise RunError(f"group {index} is broken")
        lost = self.lost(index)
        return Group(
            index=index,
            prompt=prompt,
            trajectories=tuple(_trajectory(prompt, sample) for sample in range(4 - lost)),
            failures=tuple(
                Failure(
                    step=0,
                    uid=prompt.uid,
                    sample=3 - place,
                    kind=FailureKind.TASK,
                    plugin="e",
                    message=f"lost {'early' if place else 'late'}",
                )
                for place in range(lost)
            ),
        )

    async def train(
        self, steps: int, state: dict[str, Any] | None = None
    ) -> tuple[list[Batch], dict[str, Any]]:
        """Consume ``steps`` batches as the loop does; returns them and the state after the last."""
        producer, admission, _ = self.start(state)
        batches = []
        try:
            for step in range(admission.version + 1, admission.version + 1 + steps):
                batches.append(await producer.batch(step))
                await asyncio.sleep(random.Random(self.seed + step).choice([0, 1, 5]))
                admission.advance()
            after = producer.state_dict() | {"version": admission.version}
        finally:
            await producer.close()
        return batches, after


def _trajectory(prompt: Prompt, sample: int) -> Trajectory:
    segment = Segment(
        tokens=np.array([1], dtype=np.int32), num_prompt_tokens=1, loss_mask=np.array([False])
    )
    return Trajectory(
        prompt=prompt, sample=sample, segments=(segment,), turns=(), stop_reason=StopReason.STOP
    )


def _verdicts(verdicts: Sequence[Any]) -> Selection:
    return Selection(verdicts=tuple(verdicts), reasons=tuple("why" for _ in verdicts))


def by_hash(seed: int) -> Select:
    """Keeps, masks or drops each group by its own number, whenever it is asked."""

    def select(groups: Sequence[Group], target: int, rng: np.random.Generator) -> Selection:
        choices = ["keep", "keep", "mask", "drop"]
        return _verdicts([random.Random(seed * 7919 + g.index).choice(choices) for g in groups])

    return select


worlds = st.builds(
    World,
    seed=st.integers(0, 10**6),
    target=st.integers(1, 4),
    max_staleness=st.integers(0, 3),
    workers=st.none() | st.integers(1, 6),
    select=st.one_of(st.just(World.select), st.builds(by_hash, st.integers(0, 10**6))),
)


@settings(max_examples=60, deadline=None)
@given(world=worlds)
def test_no_group_is_trained_on_that_is_staler_than_allowed_and_all_come_in_order(
    world: World,
) -> None:
    steps = EPOCHS * (PROMPTS // world.target)
    batches, _ = run_without_waiting(world.train(steps))

    consumed: list[int] = []
    for step, batch in enumerate(batches, start=1):
        assert len(batch.groups) == world.target
        for group in batch.groups:
            assert 0 <= step - 1 - world.begun[group.index] <= world.max_staleness
        assert batch.masked.keys() <= {group.index for group in batch.groups}
        taken = [*batch.groups, *(group for group, _ in batch.dropped)]
        consumed += sorted(group.index for group in taken)
    # every group that began was trained on or dropped, once, in the order of beginning
    assert consumed == sorted(world.begun) == list(range(len(consumed)))
    assert world.most_running <= world.target * (1 + world.max_staleness)
    assert world.workers is None or world.most_running <= world.workers


@settings(max_examples=40, deadline=None)
@given(world=worlds)
def test_each_prompt_is_consumed_once_per_epoch(world: World) -> None:
    steps = EPOCHS * (PROMPTS // world.target)
    batches, _ = run_without_waiting(world.train(steps))

    taken = {
        group.index: group.prompt.uid
        for batch in batches
        for group in [*batch.groups, *(group for group, _ in batch.dropped)]
    }
    per_epoch = PROMPTS // world.target * world.target
    drawn = [uid for _, uid in sorted(taken.items())]
    for start in range(0, len(drawn), per_epoch):
        epoch = Counter(drawn[start : start + per_epoch])
        assert set(epoch.values()) == {1}


@settings(max_examples=40, deadline=None)
@given(world=worlds, cut=st.integers(1, 5))
def test_a_run_that_is_continued_trains_on_what_an_undisturbed_one_does(
    world: World, cut: int
) -> None:
    steps = EPOCHS * (PROMPTS // world.target)
    cut = min(cut, steps - 1)
    whole, _ = run_without_waiting(world.train(steps))
    first, state = run_without_waiting(world.train(cut))
    rest, _ = run_without_waiting(world.train(steps - cut, state))

    def names(batches: Sequence[Batch]) -> list[list[tuple[int, str]]]:
        return [[(group.index, group.prompt.uid) for group in batch.groups] for batch in batches]

    assert names([*first, *rest]) == names(whole)


def ready(max_staleness: int) -> list[int]:
    """Of each batch; every training takes longer than any group."""

    async def train() -> list[int]:
        producer, admission, _ = World(max_staleness=max_staleness).start()
        found = []
        for step in range(1, 5):
            found.append((await producer.batch(step)).ready)
            await asyncio.sleep(20)
            admission.advance()
        await producer.close()
        return found

    return run_without_waiting(train())


def test_a_batch_tells_how_many_groups_lay_ready() -> None:
    assert ready(max_staleness=0) == [0, 0, 0, 0]
    assert ready(max_staleness=1) == [0, 2, 2, 2]  # the next batch of 2
    assert ready(max_staleness=2) == [0, 4, 4, 4]


def test_with_staleness_the_next_groups_run_while_the_consumer_trains() -> None:
    async def main() -> int:
        world = World(max_staleness=2)
        producer, _, _ = world.start()
        await producer.batch(1)
        running = len(world.begun)
        await producer.close()
        return running

    assert run_without_waiting(main()) == 6  # batches 1, 2 and 3 of two groups each


def test_select_is_asked_again_about_what_it_kept_and_what_is_new() -> None:
    asked: list[list[int]] = []

    def select(groups: Sequence[Group], target: int, rng: np.random.Generator) -> Selection:
        asked.append([group.index for group in groups])
        return _verdicts(["drop" if group.index in {0, 2} else "keep" for group in groups])

    (batch,), _ = run_without_waiting(World(select=select).train(1))

    assert asked == [[0, 1], [1, 2], [1, 3]]
    assert [group.index for group in batch.groups] == [1, 3]
    assert [(group.index, reason) for group, reason in batch.dropped] == [(0, "why"), (2, "why")]
    assert batch.rounds == 3


def test_a_kept_group_may_stand_in_for_a_dropped_one_and_no_other_is_generated() -> None:
    def select(groups: Sequence[Group], target: int, rng: np.random.Generator) -> Selection:
        verdicts = ["drop" if group.index in {0, 3} else "keep" for group in groups]
        stand_ins = {place: 1 - place for place in range(2) if verdicts[place] == "drop"}
        return dataclasses.replace(_verdicts(verdicts), stand_ins=stand_ins)

    batches, _ = run_without_waiting(World(select=select).train(2))

    assert [[group.index for group in batch.groups] for batch in batches] == [[1, 1], [2, 2]]
    assert [[group.index for group, _ in batch.dropped] for batch in batches] == [[0], [3]]
    assert [batch.rounds for batch in batches] == [1, 1]


@pytest.mark.parametrize(
    ("verdicts", "stand_ins"),
    [
        (["keep", "keep"], {0: 1}),
        (["drop", "drop"], {0: 1}),
        (["drop", "mask"], {0: 1}),
        (["drop", "keep"], {0: 2}),
    ],
)
def test_only_a_kept_group_stands_in_and_only_for_a_dropped_one(
    verdicts: list[Any], stand_ins: dict[int, int]
) -> None:
    selection = dataclasses.replace(_verdicts(verdicts), stand_ins=stand_ins)
    world = World(select=lambda groups, target, rng: selection)
    with pytest.raises(HookError, match="a kept group may stand in for a dropped one"):
        run_without_waiting(world.train(1))


def test_select_gets_the_same_random_numbers_in_every_run() -> None:
    drawn: list[float] = []

    def select(groups: Sequence[Group], target: int, rng: np.random.Generator) -> Selection:
        drawn.append(float(rng.random()))
        return _verdicts(["keep"] * len(groups))

    run_without_waiting(World(select=select, seed=1).train(2))
    run_without_waiting(World(select=select, seed=2).train(2))
    assert drawn[:2] == drawn[2:]
    assert drawn[0] != drawn[1]


def test_a_bound_on_rounds_ends_the_run_with_the_reasons() -> None:
    world = World(
        select=lambda groups, target, rng: _verdicts(["drop"] * len(groups)), max_rounds=4
    )
    with pytest.raises(
        RunError, match=r"step 1: 4 rounds.*left 0 of 2 groups.*8 dropped: why.*max_sample_batches"
    ):
        run_without_waiting(world.train(1))


def test_a_selection_of_the_wrong_length_is_refused() -> None:
    world = World(select=lambda groups, target, rng: _verdicts(["keep"]))
    with pytest.raises(HookError, match="1 verdicts and 1 reasons for 2 groups"):
        run_without_waiting(world.train(1))


def test_failures_up_to_the_budget_are_carried_and_counted() -> None:
    # 8 trajectories, 4 lost: 0.5 is allowed
    (batch,), _ = run_without_waiting(World(lost=lambda index: 2).train(1))
    assert [failure.uid for failure in batch.failures] == [
        uid for group in batch.groups for uid in [group.prompt.uid] * 2
    ]


def test_failures_above_the_budget_end_the_run_and_name_the_most_common() -> None:
    world = World(lost=lambda index: 3)
    with pytest.raises(
        FailureBudgetError,
        match=r"step 1: 6 of 8 trajectories failed \(6 task\).*=0.5 allows; the most common: lost early",
    ):
        run_without_waiting(world.train(1))


def test_failures_of_dropped_groups_count_too() -> None:
    def select(groups: Sequence[Group], target: int, rng: np.random.Generator) -> Selection:
        return _verdicts(["drop" if group.index < 2 else "keep" for group in groups])

    world = World(select=select, lost=lambda index: 2 if index < 2 else 0)
    (batch,), _ = run_without_waiting(world.train(1))
    assert len(batch.failures) == 4


def test_an_exception_while_prompts_are_drawn_reaches_the_consumer() -> None:
    async def main() -> None:
        world = World()
        producer, _, order = world.start()
        order.next = lambda: 1 / 0
        await producer.batch(1)

    with pytest.raises(ZeroDivisionError):
        run_without_waiting(main())


def test_an_error_in_a_later_group_is_not_told_after_earlier_ones() -> None:
    """The 6 groups of steps 1 to 3 run; one of step 3 fails long before those of step 1 are there."""
    world = World(max_staleness=2, takes_s=lambda index: 1 if index == 4 else 9)
    assert broken_at(world, steps=1) == (9, None)
    world.broken = frozenset({4})
    assert broken_at(world, steps=1) == (1, "group 4 is broken")


def test_an_error_while_the_consumer_trains_is_told_as_the_next_batch_is_asked_for() -> None:
    """Step 1 is there after 1 s and trained after 11; group 2, the next, would be there after 90."""
    takes_s = [1, 1, 90, 5].__getitem__
    world = World(max_staleness=1, takes_s=takes_s, broken=frozenset({3}))
    assert broken_at(world, steps=2) == (11, "group 3 is broken")


def broken_at(world: World, steps: int) -> tuple[float, str | None]:
    """When the consumer, which trains for 10 s, has its last batch or hears an error; and which."""

    async def train() -> tuple[float, str | None]:
        producer, admission, _ = world.start()
        error = None
        try:
            await producer.batch(1)
            for step in range(2, steps + 1):
                await asyncio.sleep(10)
                admission.advance()
                await producer.batch(step)
        except RunError as raised:
            error = str(raised)
        await producer.close()
        return asyncio.get_running_loop().time(), error

    return run_without_waiting(train())


def test_a_prompt_that_cannot_be_drawn_is_told_while_groups_run() -> None:
    async def main() -> float:
        world = World(workers=2, max_staleness=1, takes_s=lambda index: 1 if index else 9)
        producer, _, order = world.start()
        prompts = iter([order.next(), order.next()])
        order.next = lambda: next(prompts, None) or 1 / 0  # a third where the second has ended
        with pytest.raises(ZeroDivisionError):
            await producer.batch(1)
        await producer.close()
        return asyncio.get_running_loop().time()

    assert run_without_waiting(main()) == 1


def test_closing_cancels_what_runs() -> None:
    async def main() -> int:
        world = World(max_staleness=3)
        producer, _, _ = world.start()
        await producer.batch(1)
        await producer.close()
        return len(asyncio.all_tasks()) - 1

    assert run_without_waiting(main()) == 0
