"""Whether a trainer of several ranks computes what one process computes, at the same precision.

The same recorded trajectories are trained on by one process and by several, whose shares of a
mini-batch are unequal and may be empty. Compared are the gradients of the first update by Hugging
Face name, and of five updates log-probs, losses, KL and the gradient's norm. Weights after
Adam's first step are not: where a gradient is next to nothing, its rounding decides the direction.

A subclass says how a rank makes its trainer, in a function of a module's top level since it is
called in processes of their own::

    def on_a_rank(model, precision, options):
        trainer = FooTrainer({role: model for role in ROLES}, ...)
        return record(trainer, gradients_of)

    class TestFoo(ParityContract):
        options = {"plain": {}, "offloading": {"offload": True}}
        on_a_rank = staticmethod(on_a_rank)

        def model(self, architecture, precision):
            return folder_with_a_tiny_model(architecture)
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import pytest

from skyrl_kernel.batch import trajectory_mean
from skyrl_kernel.defaults.token_mean import token_mean
from skyrl_kernel.protocols import Loss, Trainer
from skyrl_kernel.records import FloatArray, Scores, TrainingSample
from skyrl_kernel.testing.ranks import on_ranks

if TYPE_CHECKING:
    from torch import Tensor

    from skyrl_kernel.torch import LossInputs, LossTerms, ValueInputs

Precision = Literal["fp32", "bf16"]

ROLES = ("policy", "reference", "value")
"""Those that the trainer is to have; all of one model."""
UPDATES = 5
LEARNING_RATE = 1e-5
"""Of AdamW, for policy and critic."""
VOCABULARY = 250
"""Token ids are below it."""
TEMPERATURE = 0.7
_GROUPS = 5
_DEADLINE_S = 120.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Recording:
    """What a rank saw of the updates."""

    gradients: Mapping[str, FloatArray]
    """Of the first update, by Hugging Face name; whole."""
    metrics: Sequence[Mapping[str, float]]
    """Of each update."""
    logprobs: Sequence[Mapping[int, FloatArray]]
    """Of each update beforehand: number of a row → [T], of the rank's own rows."""


def trajectories(update: int) -> list[TrainingSample]:
    """The mini-batch of an update: groups of two trajectories, of which the second has two rows."""
    rng = np.random.default_rng([7, update])
    lengths = rng.integers(3, 20, (_GROUPS, 3))
    masks = [np.arange(length) >= rng.integers(1, length) for length in lengths.flat]
    groups = [group for group in range(_GROUPS) for _ in range(3)]
    owners = [2 * group + row for group in range(_GROUPS) for row in (0, 1, 1)]
    weights = {
        "policy": token_mean(masks, owners, groups),
        **dict.fromkeys(("kl", "entropy", "value"), trajectory_mean(masks, owners, 2 * _GROUPS)),
    }

    def noise(length: int, scale: float) -> FloatArray:
        return (scale * rng.normal(size=length)).astype(np.float32)

    return [
        TrainingSample(
            trajectory_id=f"{group}/{owner}",
            group=group,
            trajectory=owner,
            tokens=rng.integers(0, VOCABULARY, len(mask)).astype(np.int32),
            loss_mask=mask,
            advantages=noise(len(mask), 1.0),
            returns=noise(len(mask), 1.0),
            sampler_logprobs=noise(len(mask), 1.0),
            scores=Scores(),
            loss_weights={term: of_rows[row] for term, of_rows in weights.items()},
        )
        for row, (group, owner, mask) in enumerate(zip(groups, owners, masks, strict=True))
    ]


def dealt(rows: Sequence[TrainingSample], share: int, shares: int, update: int) -> list[int]:
    """Places of a share's rows: whole groups, evenly, or all to the last share, or mostly to the first."""
    deals: tuple[Callable[[int], int], ...] = (
        lambda group: group % shares,
        lambda group: shares - 1,
        lambda group: max(0, group - _GROUPS + shares),
    )
    owner = deals[update % len(deals)]
    return [place for place, row in enumerate(rows) if min(owner(row.group), shares - 1) == share]


def recorded_loss() -> Loss:
    """Every term, each token's depending on all tokens of the mini-batch."""

    def prepare(inputs: "LossInputs") -> "dict[str, Tensor]":
        return {"logprobs": inputs.logprobs}

    def fn(inputs: "LossInputs") -> "LossTerms":
        from skyrl_kernel.torch import LossTerms, TokenMetric, kl_estimate, ratio

        assert inputs.old_logprobs is not None
        assert inputs.ref_logprobs is not None
        all_of_them = inputs.minibatch["logprobs"]
        credit = inputs.advantages * (1 + 0.1 * (inputs.logprobs.detach() - all_of_them.mean()))
        return LossTerms(
            terms={
                "policy": -credit * ratio(inputs.logprobs, inputs.old_logprobs),
                "kl": kl_estimate(inputs.logprobs, inputs.ref_logprobs, "k3"),
                "entropy": inputs.entropy,
            },
            metrics={
                f"logprobs_{reduction}": TokenMetric(
                    values=inputs.logprobs.detach(), reduction=reduction
                )
                for reduction in ("mean", "std", "min", "max")
            },
        )

    def critic(inputs: "ValueInputs") -> "LossTerms":
        from skyrl_kernel.torch import LossTerms

        assert inputs.returns is not None
        return LossTerms(terms={"value": (inputs.values - inputs.returns) ** 2})

    return Loss(
        fn=fn,
        critic=critic,
        prepare=prepare,
        needs=frozenset({"old_logprobs", "ref_logprobs"}),
        atom="group",
        coefficients={"policy": 1.0, "kl": 0.1, "entropy": -0.01, "value": 0.5},
    )


def record(trainer: Trainer, gradients: Callable[[Trainer], Mapping[str, FloatArray]]) -> Recording:
    """Train on the recorded trajectories, as one rank of several or alone.

    Args:
        trainer: It has the `ROLES` and, of several, `skyrl_kernel.protocols.Ranked`'s
            ``share`` and ``shares``.
        gradients: What the first update saw, by name, before clipping, which is up to the
            trainer's settings: a norm of 1e9 keeps it out of the way. Called on all ranks.
    """
    share, shares = getattr(trainer, "share", 0), getattr(trainer, "shares", 1)
    loss = recorded_loss()
    found: Mapping[str, FloatArray] = {}
    metrics, logprobs = [], []
    for update in range(UPDATES):
        rows = trajectories(update)
        places = dealt(rows, share, shares, update)
        tokens = [rows[place].tokens for place in places]
        current, reference, values = (
            trainer.score(role, tokens, temperature=TEMPERATURE) for role in ROLES
        )
        batch = [
            replace(
                rows[place],
                scores=Scores(
                    old_logprobs=current[i] + rows[place].advantages * np.float32(0.1),
                    ref_logprobs=reference[i],
                    values=values[i],
                ),
            )
            for i, place in enumerate(places)
        ]
        metrics.append(dict(trainer.update(batch, loss, temperature=TEMPERATURE).metrics))
        logprobs.append(dict(zip(places, current, strict=True)))
        found = found or gradients(trainer)
    return Recording(gradients=found, metrics=metrics, logprobs=logprobs)


class ParityContract:
    """Subclass and override `on_a_rank` and `model`; `options` where there are any."""

    architectures: ClassVar[Sequence[str]] = ("qwen2", "qwen3", "llama")
    """``model_type`` of transformers; the first has tied embeddings."""
    ranks: ClassVar[Sequence[int]] = (2, 4)
    options: ClassVar[Mapping[str, Mapping[str, object]]] = {}
    """Name → what `on_a_rank` gets as its options, each tried on the first architecture."""
    tolerances: ClassVar[Mapping[Precision, float]] = {"fp32": 1e-5, "bf16": 5e-3}
    """As in `differences`."""
    marks_of_others: ClassVar[Sequence[pytest.MarkDecorator]] = ()
    """Of the tests of all but the first architecture, number of ranks, option and precision, such as ``slow``."""
    on_a_rank: Callable[[Path, Precision, Mapping[str, object]], Recording]
    """(model, precision, options) → what `record` returns, in a process with torchrun's variables."""
    _alone: ClassVar[dict[tuple[Path, Precision], Recording]] = {}

    def model(self, architecture: str, precision: Precision) -> Path:
        """A directory that `on_a_rank` can load, the same one every time; with random weights.

        In bfloat16 weights are to be what that can hold: else rounding them to travel changes numbers.
        """
        raise NotImplementedError("override model()")

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """A test per architecture, number of ranks, option and precision."""
        for name, values in (
            ("architecture", self.architectures),
            ("ranks", self.ranks),
            ("option", list(self.options)),
            ("precision", list(self.tolerances)),
        ):
            if name in metafunc.fixturenames:
                first, *others = values or [pytest.param(None, marks=pytest.mark.skip("none"))]
                marked = [pytest.param(other, marks=self.marks_of_others) for other in others]
                metafunc.parametrize(name, [first, *marked])

    def test_ranks_compute_what_one_process_does(
        self, architecture: str, ranks: int, precision: Precision
    ) -> None:
        """Whatever the model."""
        self._compare(architecture, precision, ranks, {})

    def test_an_option_changes_memory_and_not_numbers(
        self, option: str, precision: Precision
    ) -> None:
        """With the most ranks."""
        self._compare(self.architectures[0], precision, max(self.ranks), self.options[option])

    def _compare(
        self, architecture: str, precision: Precision, ranks: int, options: Mapping[str, object]
    ) -> None:
        run, model = type(self).on_a_rank, self.model(architecture, precision)
        if (model, precision) not in self._alone:
            (alone,) = on_ranks(1, run, model, precision, {}, deadline_s=_DEADLINE_S)
            self._alone[model, precision] = alone
        expected = self._alone[model, precision]
        found = on_ranks(ranks, run, model, precision, options, deadline_s=_DEADLINE_S)
        problems = [
            f"rank {rank}: {problem}"
            for rank, recording in enumerate(found)
            for problem in differences(recording, expected, self.tolerances[precision])
        ]
        assert not problems, "\n".join(problems[:20])
        for update, rows in enumerate(expected.logprobs):
            seen = {row for recording in found for row in recording.logprobs[update]}
            assert seen == rows.keys(), (
                f"update {update}: rows {sorted(rows.keys() - seen)} are lost"
            )


def differences(found: Recording, expected: Recording, tolerance: float) -> list[str]:
    """What is further apart than the tolerance, in words.

    Gradients: ‖a − b‖ ≤ tolerance · max(‖b‖, 1e-3 · the norm of all together). Log-probs
    and metrics: tolerance, relative where they are above 1.
    """
    problems = []
    if found.gradients.keys() != expected.gradients.keys():
        return [f"gradients of {sorted(found.gradients.keys() ^ expected.gradients.keys())}"]
    together = sum(float(np.sum(g.astype(np.float64) ** 2)) for g in expected.gradients.values())
    for name, theirs in expected.gradients.items():
        apart = float(np.linalg.norm(found.gradients[name] - theirs))
        bound = tolerance * max(float(np.linalg.norm(theirs)), 1e-3 * together**0.5)
        if not apart <= bound:
            problems.append(f"gradient of {name}: {apart:.3g} apart, {bound:.3g} allowed")
    for update, theirs_of_rows in enumerate(expected.logprobs):
        for row, mine in found.logprobs[update].items():
            theirs = theirs_of_rows[row]
            apart = float((np.abs(mine - theirs) / np.maximum(np.abs(theirs), 1.0)).max())
            if not apart <= tolerance:
                problems.append(f"update {update}, log-probs of row {row}: {apart:.3g} apart")
    for update, theirs_of_update in enumerate(expected.metrics):
        mine_of_update = found.metrics[update]
        if mine_of_update.keys() != theirs_of_update.keys():
            names = sorted(mine_of_update.keys() ^ theirs_of_update.keys())
            problems.append(f"update {update}: metrics {names}")
            continue
        for name, value in theirs_of_update.items():
            apart = abs(mine_of_update[name] - value)
            if not apart <= tolerance * max(abs(value), 1.0):
                problems.append(f"update {update}, {name}: {mine_of_update[name]} for {value}")
    return problems
