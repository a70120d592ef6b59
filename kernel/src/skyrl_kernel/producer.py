"""The producing side of the loop: begins groups as admission allows, hands them over in order.

| who | consumes | produces | waits for | woken by |
|---|---|---|---|---|
| `Producer._begin_groups` | prompts | running groups | admission | `drop`, `advance`, a group that ends |
| a group | env and engine calls | a judged `Group` | its trajectories | env and engine |
| `Producer.batch` | groups, in order | one batch | the next group, or a failure | a group that ends, or `_begin_groups` |
"""

import asyncio
import collections
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from skyrl_kernel.admission import Admission
from skyrl_kernel.errors import FailureBudgetError, HookError, RunError
from skyrl_kernel.protocols import Select
from skyrl_kernel.records import Failure, Group, Prompt, Selection
from skyrl_kernel.rng import generator


class Prompts(Protocol):
    """Draws prompts; its state says where it stands."""

    def next(self) -> Prompt:
        """The next prompt; begins a new epoch where one ends."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """JSON-able."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to where ``state_dict`` was taken."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """What one step trains on."""

    groups: tuple[Group, ...]
    """Kept and masked groups, in order of admission; one that stands in for another is there again."""
    masked: Mapping[int, str]
    """Indexes of groups that are in the batch but train on nothing, and why."""
    dropped: tuple[tuple[Group, str], ...]
    """Groups that `select` refused, with its reason."""
    rounds: int
    """Times `select` was asked."""
    ready: int = 0
    """Groups that were whole when the step began to wait for its batch."""

    @property
    def failures(self) -> list[Failure]:
        """All lost trajectories, those of dropped groups too, each once."""
        groups = [*self.groups, *(group for group, _ in self.dropped)]
        once = {group.index: group for group in groups}.values()
        return [failure for group in once for failure in group.failures]


class Producer:
    """Keeps as many groups running as admission allows.

    Args:
        prompts: Where prompts come from.
        begin: (prompt, index, step) → the running group.
        select: Stage 3.
        admission: When a group may begin.
        seed: Keys the generators handed to ``select``.
        max_rounds: Most times ``select`` is asked in one step; 0 or less: no bound.
        max_failed_frac: Lost trajectories of a step above this fraction stop the run.
    """

    def __init__(
        self,
        *,
        prompts: Prompts,
        begin: Callable[[Prompt, int, int], "asyncio.Task[Group]"],
        select: Select,
        admission: Admission,
        seed: int,
        max_rounds: int,
        max_failed_frac: float,
    ) -> None:
        self._prompts = prompts
        self._begin = begin
        self._select = select
        self._admission = admission
        self._seed = seed
        self._max_rounds = max_rounds
        self._max_failed_frac = max_failed_frac
        self._running: collections.deque[tuple[dict[str, Any], asyncio.Task[Group]]] = (
            collections.deque()
        )
        self._ended = asyncio.Event()
        """Something has, since the consumer looked."""
        self._failed: asyncio.Task[Any] | None = None
        """What failed first: a group, or that groups are begun."""
        self._task: asyncio.Task[None] | None = None

    async def _begin_groups(self) -> None:
        admission = self._admission
        while True:
            await admission.wait()
            state = self._prompts.state_dict()
            prompt = self._prompts.next()
            index = admission.begin()
            task = self._begin(prompt, index, admission.version + 1)
            task.add_done_callback(lambda _: admission.end())
            task.add_done_callback(self._note_end)
            self._running.append((state, task))

    def _note_end(self, task: "asyncio.Task[Any]") -> None:
        if self._failed is None and not task.cancelled() and task.exception() is not None:
            self._failed = task
        self._ended.set()

    async def _next_group(self) -> Group:
        """The first in order, once it has ended; any that fails ends the run, and is not waited for."""
        while self._failed is None and not (self._running and self._running[0][1].done()):
            self._ended.clear()
            await self._ended.wait()
        if self._failed is not None:
            self._failed.result()
        group = self._running[0][1].result()
        self._running.popleft()
        return group

    async def batch(self, step: int) -> Batch:
        """The groups that step ``step`` trains on.

        Raises:
            FailureBudgetError: Too many trajectories were lost.
            RunError: ``select`` wanted more groups than the bound allows.
        """
        if self._task is None:
            self._task = asyncio.create_task(self._begin_groups())
            self._task.add_done_callback(self._note_end)
        ready = sum(task.done() for _, task in self._running)
        target = self._admission.target
        candidates: list[Group] = []
        dropped: list[tuple[Group, str]] = []
        masked: dict[int, str] = {}
        rounds = 0
        while len(candidates) < target:
            if 0 < self._max_rounds <= rounds:
                raise RunError(
                    f"step {step}: {rounds} rounds of generation left {len(candidates)} of {target} groups to "
                    f"train on ({_reasons(dropped)}); use other data, or raise "
                    "trainer.algorithm.dynamic_sampling.max_sample_batches"
                )
            rounds += 1
            candidates += [await self._next_group() for _ in range(target - len(candidates))]
            self._check_budget(step, [*candidates, *(group for group, _ in dropped)])
            selection = self._select(
                candidates, target, generator(self._seed, "select", step, rounds)
            )
            _check_selection(selection, len(candidates))
            kept = []
            for place, (group, verdict, reason) in enumerate(
                zip(candidates, selection.verdicts, selection.reasons, strict=True)
            ):
                if verdict == "drop":
                    dropped.append((group, reason))
                    if place in selection.stand_ins:
                        kept.append(candidates[selection.stand_ins[place]])
                    continue
                kept.append(group)
                if verdict == "mask":
                    masked[group.index] = reason
            self._admission.drop(len(candidates) - len(kept))
            candidates = kept
        return Batch(
            groups=tuple(candidates),
            masked=masked,
            dropped=tuple(dropped),
            rounds=rounds,
            ready=ready,
        )

    def _check_budget(self, step: int, groups: Sequence[Group]) -> None:
        failures = [failure for group in groups for failure in group.failures]
        total = len(failures) + sum(len(group.trajectories) for group in groups)
        if failures and len(failures) > self._max_failed_frac * total:
            kinds = collections.Counter(failure.kind for failure in failures)
            counted = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
            common = collections.Counter(failure.message for failure in failures).most_common(1)[0][
                0
            ]
            raise FailureBudgetError(
                f"step {step}: {len(failures)} of {total} trajectories failed ({counted}), more than "
                f"trainer.max_failed_frac={self._max_failed_frac:g} allows; the most common: {common}",
                failures,
            )

    def state_dict(self) -> dict[str, Any]:
        """Where to begin again: at the first group that no step has consumed."""
        prompts = self._running[0][0] if self._running else self._prompts.state_dict()
        return {
            "prompts": prompts,
            "begun": self._admission.begun - len(self._running),
            "dropped": self._admission.dropped,
        }

    async def close(self) -> None:
        """Stop beginning groups and cancel those that run."""
        tasks = [task for _, task in self._running]
        if self._task is not None:
            tasks_all: list[asyncio.Task[Any]] = [self._task, *tasks]
            for task in tasks_all:
                task.cancel()
            await asyncio.gather(*tasks_all, return_exceptions=True)


def _check_selection(selection: Selection, candidates: int) -> None:
    """A verdict and a reason for each of so many candidates, or the stage is named as wrong."""
    if not isinstance(selection, Selection):
        raise HookError(
            f"the select stage returned a {type(selection).__name__}; it must return a Selection"
        )
    unknown = set(selection.verdicts) - {"keep", "mask", "drop"}
    if unknown:
        raise HookError(
            f"the select stage returned the verdict {sorted(map(str, unknown))[0]!r}; there are "
            "keep, mask and drop"
        )
    if not len(selection.verdicts) == len(selection.reasons) == candidates:
        raise HookError(
            f"the select stage returned {len(selection.verdicts)} verdicts and "
            f"{len(selection.reasons)} reasons for {candidates} groups; it must return one each"
        )
    _check_stand_ins(selection)


def _check_stand_ins(selection: Selection) -> None:
    verdicts = dict(enumerate(selection.verdicts))
    for place, other in selection.stand_ins.items():
        if verdicts.get(place) != "drop" or verdicts.get(other) != "keep":
            raise HookError(
                f"the select stage lets group {other} ({verdicts.get(other, 'unknown')}) stand in for "
                f"group {place} ({verdicts.get(place, 'unknown')}); a kept group may stand in for a "
                "dropped one"
            )


def _reasons(dropped: Sequence[tuple[Group, str]]) -> str:
    counted = collections.Counter(reason or "no reason given" for _, reason in dropped)
    return (
        ", ".join(f"{count} dropped: {reason}" for reason, count in counted.most_common(3))
        or "none dropped"
    )
