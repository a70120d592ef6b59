"""From judged groups to what the trainer sees: scores, advantages, weights per token."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from skyrl_kernel.credited import Credited
from skyrl_kernel.errors import HookError, NonFiniteError
from skyrl_kernel.protocols import Advantage, CreditedGroup, Reduction, Trainer
from skyrl_kernel.records import (
    BoolArray,
    FloatArray,
    Group,
    IntArray,
    Scored,
    Scores,
    Segment,
    TokenAdvantages,
    TrainingSample,
    Trajectory,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Scorer:
    """Computes the log-probs that somebody declared to need, and no others."""

    trainer: Trainer
    needs: frozenset[str]
    """Union of the needs of `advantage` and `loss`."""
    recompute_old: bool
    """False where the engine sampled with the trainer's own weights: old = sampler."""
    temperature: float
    only_sampled: bool = False
    """True refuses data that was not sampled: ``Loss.needs_sampler_logprobs``."""

    def __call__(self, groups: Sequence[Group]) -> list[list[Scored]]:
        """[P] groups of [G] scored trajectories.

        Raises:
            NonFiniteError: A score is not finite; names the trajectory.
        """
        scored = iter(self.score([one for group in groups for one in group.trajectories]))
        return [[next(scored) for _ in group.trajectories] for group in groups]

    def score(self, trajectories: Sequence[Trajectory]) -> list[Scored]:
        """Each trajectory with the scores of its rows.

        Raises:
            NonFiniteError: A score is not finite; names the trajectory.
        """
        segments = [segment for trajectory in trajectories for segment in trajectory.segments]
        if self.only_sampled:
            for trajectory in trajectories:
                if any(segment.logprobs is None for segment in trajectory.segments):
                    raise HookError(
                        "the loss or its off-policy correction needs the sampler's log-probs, and "
                        f"trajectory {trajectory.id} was not sampled; use another "
                        "trainer.algorithm.policy_loss_type, and no key of "
                        "trainer.algorithm.off_policy_correction, for such data"
                    )
        rows = [segment.tokens for segment in segments]
        computed: dict[str, Sequence[FloatArray]] = {}
        sampled: list[FloatArray | None] = [None] * len(rows)
        if "old_logprobs" in self.needs:
            if self.recompute_old or any(segment.logprobs is None for segment in segments):
                computed["old_logprobs"] = self._score("policy", rows)
            else:  # checked when they were sampled
                sampled = [segment.logprobs for segment in segments]
        if "ref_logprobs" in self.needs:
            computed["ref_logprobs"] = self._score("reference", rows)
        if "teacher_logprobs" in self.needs:
            computed["teacher_logprobs"] = self._score("teacher", rows)
        if "values" in self.needs:
            computed["values"] = self._score("value", rows)
        masks = [segment.loss_mask for segment in segments]
        owners = [one for one in trajectories for _ in one.segments]
        for name, column in computed.items():
            _check_finite(name, column, masks, owners)
        old, ref, teacher, values = (
            computed.get(name, sampled if name == "old_logprobs" else [None] * len(rows))
            for name in ("old_logprobs", "ref_logprobs", "teacher_logprobs", "values")
        )
        scores = iter(
            [
                Scores(old_logprobs=o, ref_logprobs=r, teacher_logprobs=t, values=v)
                for o, r, t, v in zip(old, ref, teacher, values, strict=True)
            ]
        )
        return [
            Scored(trajectory=one, scores=tuple([next(scores) for _ in one.segments]))
            for one in trajectories
        ]

    def _score(self, role: str, rows: Sequence[IntArray]) -> Sequence[FloatArray]:
        return self.trainer.score(role, rows, temperature=self.temperature)


def _check_finite(
    name: str,
    rows: Sequence[FloatArray | None],
    masks: Sequence[BoolArray],
    owners: Sequence[Trajectory],
) -> None:
    """Refuse a number that is not finite where a row's mask is True; a row may be missing.

    All rows are looked at together, and one by one only to find the owner of a bad one.
    """
    there = [row for row in rows if row is not None]
    if not there:
        return
    mask_of_all = np.concatenate(
        [mask for row, mask in zip(rows, masks, strict=True) if row is not None]
    )
    if np.isfinite(np.concatenate(there)[mask_of_all]).all():
        return
    for row, mask, owner in zip(rows, masks, owners, strict=True):
        if row is not None and not np.isfinite(row[mask]).all():
            raise NonFiniteError(f"trajectory {owner.id}: {name} are not finite")


def credit(
    advantage: Advantage, scored: Sequence[Sequence[Scored]], masked: Collection[int]
) -> Credited:
    """Run the stage `advantage` and check what it returns.

    Args:
        advantage: Stage 4.
        scored: [P] groups of [G] trajectories.
        masked: Places of groups that train on nothing.

    Raises:
        HookError: Wrong number or shape of results.
        NonFiniteError: An advantage or return of a trained token is not finite.
    """
    if advantage.needs_one_row:
        _refuse_several_rows(scored)
    # What trains on nothing must not count in statistics over the batch either.
    results = advantage(
        [
            [_without_trained_tokens(one) for one in group] if place in masked else group
            for place, group in enumerate(scored)
        ]
    )
    if len(results) != len(scored) or any(
        len(result) != len(group) for result, group in zip(results, scored, strict=True)
    ):
        raise HookError(
            "the advantage stage must return one entry per trajectory of each group; it returned "
            f"{[len(result) for result in results]} for {[len(group) for group in scored]}"
        )
    pairs = [list(zip(*both, strict=True)) for both in zip(scored, results, strict=True)]
    for group in pairs:
        for one, tokens in group:
            _check_shapes(one, tokens)
    for place in masked:
        pairs[place] = [(one, _all_masked(tokens)) for one, tokens in pairs[place]]
    credited = Credited(pairs)
    _check_credits(credited)
    return credited


def _check_credits(credited: Credited) -> None:
    entries = credited.entries
    masks = [entry.loss_mask for entry in entries]
    owners = [one for one in credited.trajectories for _ in one.segments]
    if not np.isfinite(credited.trained_advantages).all():
        _check_finite("advantages", [entry.advantages for entry in entries], masks, owners)
    _check_finite("returns", [entry.returns for entry in entries], masks, owners)


def _refuse_several_rows(scored: Sequence[Sequence[Scored]]) -> None:
    for group in scored:
        for one in group:
            if len(one.trajectory.segments) > 1:
                raise HookError(
                    f"trajectory {one.trajectory.id} has {len(one.trajectory.segments)} token rows, and "
                    "the advantage stage credits tokens along one; use another "
                    "trainer.algorithm.advantage_estimator, or another generator.rollout"
                )


def _without_trained_tokens(scored: Scored) -> Scored:
    segments = tuple(
        replace(segment, loss_mask=np.zeros_like(segment.loss_mask))
        for segment in scored.trajectory.segments
    )
    return replace(scored, trajectory=replace(scored.trajectory, segments=segments))


def _all_masked(tokens: Sequence[TokenAdvantages]) -> tuple[TokenAdvantages, ...]:
    return tuple(
        TokenAdvantages(
            advantages=entry.advantages,
            loss_mask=np.zeros_like(entry.loss_mask),
            returns=entry.returns,
        )
        for entry in tokens
    )


def _check_shapes(scored: Scored, tokens: Sequence[TokenAdvantages]) -> None:
    segments = scored.trajectory.segments
    if len(tokens) != len(segments):
        raise HookError(
            f"the advantage stage returned {len(tokens)} entries for trajectory "
            f"{scored.trajectory.id}, which has {len(segments)} segments"
        )
    for segment, entry in zip(segments, tokens, strict=True):
        shape, returns = segment.tokens.shape, entry.returns
        if entry.advantages.shape != shape or entry.loss_mask.shape != shape:
            raise HookError(
                f"the advantage stage returned shapes {entry.advantages.shape} and {entry.loss_mask.shape} "
                f"for trajectory {scored.trajectory.id}, whose segment has {shape}"
            )
        if returns is not None and returns.shape != shape:
            raise HookError(
                f"the advantage stage returned returns of shape {returns.shape} for trajectory "
                f"{scored.trajectory.id}, whose segment has {shape}"
            )
        if entry.loss_mask is segment.loss_mask:
            continue
        if entry.loss_mask.dtype != np.bool_:
            raise HookError(
                f"the advantage stage returned a mask of {entry.loss_mask.dtype} for trajectory "
                f"{scored.trajectory.id}; needed: bool"
            )
        if (entry.loss_mask & ~segment.loss_mask).any():
            raise HookError(
                f"the advantage stage unmasked tokens of trajectory {scored.trajectory.id} that the policy "
                "did not sample; it may only mask more"
            )


def training_samples(
    groups: Sequence[CreditedGroup], reduction: Reduction, terms: Collection[str]
) -> list[TrainingSample]:
    """One mini-batch as token rows with a weight per token and term.

    The policy term is weighted by ``reduction``, every other term by the mean
    over a trajectory's tokens and then over trajectories (SkyRL's rule for KL,
    entropy and value).

    Args:
        groups: The mini-batch.
        reduction: ``trainer.algorithm.loss_reduction``.
        terms: Names of the loss's terms.
    """
    parts: list[tuple[int, int, str, Segment, Scores, TokenAdvantages]] = []
    number = 0
    for group_number, group in enumerate(groups):
        for one, tokens in group:
            name = one.trajectory.id
            for segment, scores, entry in zip(
                one.trajectory.segments, one.scores, tokens, strict=True
            ):
                parts.append((group_number, number, name, segment, scores, entry))
            number += 1
    masks = [part[5].loss_mask for part in parts]
    trajectories = [part[1] for part in parts]
    weights = {"policy": reduction(masks, trajectories, [part[0] for part in parts])}
    others = [term for term in terms if term != "policy"]
    if others:
        weights |= dict.fromkeys(others, trajectory_mean(masks, trajectories, number))
    return [
        TrainingSample(
            trajectory_id=name,
            group=group_number,
            trajectory=trajectory,
            tokens=segment.tokens,
            loss_mask=entry.loss_mask,
            advantages=entry.advantages.astype(np.float32, copy=False),
            returns=entry.returns,
            sampler_logprobs=segment.logprobs,
            scores=scores,
            loss_weights={term: weights[term][row] for term in terms},
        )
        for row, (group_number, trajectory, name, segment, scores, entry) in enumerate(parts)
    ]


def trajectory_mean(
    masks: Sequence[BoolArray], trajectories: Sequence[int], count: int
) -> list[FloatArray]:
    """Weight 1 / (count × trained tokens of the trajectory) for each trained token.

    Args:
        masks: [T] per row.
        trajectories: Number of each row's trajectory.
        count: Trajectories of the mini-batch, those without trained tokens too.

    Example:
        >>> rows = trajectory_mean([np.array([True, True]), np.array([True])], [0, 1], 2)
        >>> [row.tolist() for row in rows]
        [[0.25, 0.25], [0.5]]
    """
    lengths = np.zeros(max(count, 1), dtype=np.int64)
    for mask, trajectory in zip(masks, trajectories, strict=True):
        lengths[trajectory] += np.count_nonzero(mask)
    return [
        mask * np.float32(1 / (max(count, 1) * max(int(lengths[trajectory]), 1)))
        for mask, trajectory in zip(masks, trajectories, strict=True)
    ]
