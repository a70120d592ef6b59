"""How far the policy is from the reference, and the trainer from the engine."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyrl_kernel.protocols import CreditedGroup
from skyrl_kernel.records import (
    Prompt,
    Scored,
    Scores,
    Segment,
    StopReason,
    TokenAdvantages,
    Trajectory,
)
from skyrl_kernel.score_metrics import KL_ESTIMATORS, kl_metrics, mismatch_metrics

Row = Sequence[float] | None


def credited(
    masks: Sequence[Sequence[int]],
    *,
    old: Sequence[Row],
    ref: Sequence[Row] | None = None,
    sampler: Sequence[Row] | None = None,
) -> CreditedGroup:
    """One group with a row for each trajectory."""

    def array(row: Row) -> np.ndarray | None:
        return None if row is None else np.array(row, dtype=np.float32)

    group: CreditedGroup = []
    for number, mask in enumerate(masks):
        logprobs = array(sampler[number]) if sampler else None
        segment = Segment(
            tokens=np.ones(len(mask), dtype=np.int32),
            num_prompt_tokens=0,
            loss_mask=np.array(mask, dtype=np.bool_),
            logprobs=logprobs,
            versions=None if logprobs is None else np.zeros(len(mask), dtype=np.int32),
        )
        trajectory = Trajectory(
            prompt=Prompt(uid="p", messages=(), env_class="e"),
            sample=number,
            segments=(segment,),
            turns=(),
            stop_reason=StopReason.STOP,
        )
        scores = Scores(
            old_logprobs=array(old[number]), ref_logprobs=array(ref[number]) if ref else None
        )
        entry = TokenAdvantages(
            advantages=np.zeros(len(mask), dtype=np.float32), loss_mask=segment.loss_mask
        )
        group.append((Scored(trajectory=trajectory, scores=(scores,)), (entry,)))
    return group


BASE = np.log([[0.1, 0.2, 0.3, 0.2, 0.2], [0.25, 0.25, 0.25, 0.15, 0.1]]).tolist()
POLICY = np.log([[0.1, 0.3, 0.2, 0.2, 0.2], [0.3, 0.3, 0.2, 0.1, 0.1]]).tolist()
MASKS = [[1, 1, 0, 0, 0], [1, 1, 1, 0, 0]]


def test_kl_is_averaged_over_tokens_and_then_over_rows() -> None:  # SkyRL, with k1
    # row 1: 0 and log 1.5; row 2: log 1.2 twice and log 0.8
    found = kl_metrics([credited(MASKS, old=POLICY, ref=BASE)], "k1")
    assert found == {
        "loss/avg_kl": pytest.approx(0.1249, abs=1e-4),
        "loss/avg_kl_max": pytest.approx((0.4055 + 0.2231) / 2, abs=1e-4),
    }


def test_without_a_reference_or_trained_tokens_nothing_is_said_of_kl() -> None:
    assert kl_metrics([credited(MASKS, old=POLICY)], "k1") == {}
    assert kl_metrics([credited([[0] * 5] * 2, old=POLICY, ref=BASE)], "k3") == {}
    assert kl_metrics([credited(MASKS, old=[None, None], ref=BASE)], "k3") == {}
    assert kl_metrics([], "k3") == {}


def test_estimates_are_those_of_the_loss() -> None:
    torch = pytest.importorskip("torch", reason="not checked: the loss's own estimators")
    from skyrl_kernel.torch import kl_estimate

    policy = np.array([-0.2, -0.3, -9.0, -1.0, -50.0], dtype=np.float32)
    reference = np.array([-0.3, -0.4, -1.0, -40.0, -1.0], dtype=np.float32)
    for name, estimate in KL_ESTIMATORS.items():
        expected = kl_estimate(torch.from_numpy(policy), torch.from_numpy(reference), name)
        assert estimate(policy, reference) == pytest.approx(expected.numpy(), abs=1e-6)


def test_differences_to_the_sampler_are_of_trained_tokens() -> None:  # SkyRL
    found = mismatch_metrics(
        [
            credited(
                [[1, 1, 0], [1, 1, 1]],
                old=[[-1, -2, -99], [-0.5, -1.5, -2.5]],
                sampler=[[-1.5, -1, -3], [-0.5, -2, -1]],
            )
        ]
    )
    name = "policy/rollout_train_logprobs_abs_diff"
    assert found == {  # of 0.5, 1, 0, 0.5, 1.5
        f"{name}_mean": pytest.approx(0.7),
        f"{name}_std": pytest.approx((0.75 - 0.49) ** 0.5),
        f"{name}_min": 0.0,
        f"{name}_max": 1.5,
    }


def test_log_probs_that_stand_for_the_old_ones_are_not_compared_with_themselves() -> None:
    group = credited([[1, 1]], old=[None], sampler=[[-1, -2]])
    (scored, entries) = group[0]
    own = scored.trajectory.segments[0].logprobs
    same = Scored(trajectory=scored.trajectory, scores=(Scores(old_logprobs=own),))
    assert mismatch_metrics([[(same, entries)]]) == {}
    assert mismatch_metrics([group]) == {}
    assert mismatch_metrics([credited([[1]], old=[[-1]])]) == {}  # nothing was sampled


@given(
    rows=st.lists(
        st.lists(st.tuples(st.floats(-9, 0), st.floats(-9, 0)), min_size=1, max_size=5),
        min_size=1,
        max_size=6,
    ),
    cut=st.integers(0, 6),
)
def test_how_rows_are_grouped_changes_nothing(
    rows: list[list[tuple[float, float]]], cut: int
) -> None:
    old = [[one for one, _ in row] for row in rows]
    other = [[two for _, two in row] for row in rows]
    masks = [[1] * len(row) for row in rows]
    whole = credited(masks, old=old, ref=other, sampler=other)
    split = [whole[:cut], whole[cut:]]
    assert mismatch_metrics([whole]) == pytest.approx(mismatch_metrics(split))
    assert kl_metrics([whole], "k3") == pytest.approx(kl_metrics(split, "k3"))
