"""Clip-Cov and KL-Cov choose the same tokens however a mini-batch is cut, and choose fairly."""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from skyrl_kernel.config import AlgorithmConfig
from skyrl_kernel.protocols import Loss
from skyrl_kernel.records import Scores, TrainingSample
from skyrl_kernel.torch import MetricSums, objective, pack
from skyrl_policy_losses import clip_cov, kl_cov
from skyrl_policy_losses.covariance import by_key, covariances, token_keys

settled = settings(deadline=None, max_examples=40)  # the first call of a torch function is slow

LENGTHS = (40, 7, 93, 1, 25, 60, 33, 18)
"""Trained tokens of the trajectories; 277 together."""


def clip_cov_loss() -> Loss:
    config = clip_cov.ClipCovConfig(clip_ratio=0.05, clip_cov_lb=0.2)
    made = clip_cov.loss(
        "clip_cov", {AlgorithmConfig: AlgorithmConfig(), clip_cov.ClipCovConfig: config}
    )
    assert made is not None
    return made


def kl_cov_loss() -> Loss:
    made = kl_cov.loss("kl_cov", {kl_cov.KlCovConfig: kl_cov.KlCovConfig()})
    assert made is not None
    return made


LOSSES = {"clip_cov": clip_cov_loss, "kl_cov": kl_cov_loss}
METRIC = {"clip_cov": "clip_ratio", "kl_cov": "kl_cov_ratio"}


def samples() -> list[tuple[TrainingSample, np.ndarray]]:
    """One row per trajectory, with a prompt token before it, and its current log-probs.

    Many tokens have equal covariances: log-probs are few values and advantages two.
    """
    rng = np.random.default_rng(0)
    made = []
    for number, length in enumerate(LENGTHS):
        mask = np.arange(length + 1) > 0
        old = rng.choice([-0.1, -0.5, -2.0, -4.0], length + 1).astype(np.float32)
        made.append(
            (
                TrainingSample(
                    trajectory_id=f"0:{number}/0",
                    group=number // 2,
                    trajectory=number,
                    tokens=np.arange(length + 1, dtype=np.int32),
                    loss_mask=mask,
                    advantages=np.full(length + 1, (-1.0) ** number, np.float32),
                    returns=None,
                    sampler_logprobs=None,
                    scores=Scores(old_logprobs=old),
                    loss_weights={"policy": mask * np.float32(1 / sum(LENGTHS))},
                ),
                old + rng.choice([-0.1, 0.1], length + 1).astype(np.float32),
            )
        )
    return made


def step(
    loss: Loss, micro_batches: Sequence[Sequence[int]], seed: int
) -> tuple[float, dict[int, Tensor], dict[str, float]]:
    """As a trainer does it: the objective, the gradient by trajectory, and the metrics."""
    rows = samples()
    current = {
        i: torch.from_numpy(now[1:].copy()).requires_grad_() for i, (_, now) in enumerate(rows)
    }

    def packed(part: Sequence[int], columns: dict[str, Tensor]):  # type: ignore[no-untyped-def]
        now = torch.cat([current[i] for i in part])
        return pack(
            [rows[i][0] for i in part],
            now,
            torch.zeros(len(now)),
            needs=loss.needs,
            minibatch=columns,
            seed=seed,
        )

    assert loss.prepare is not None
    found = [loss.prepare(packed(part, {})[0]) for part in micro_batches]
    columns = {name: torch.cat([one[name] for one in found]) for name in found[0]}
    total, sums = 0.0, MetricSums()
    for part in micro_batches:
        inputs, weights = packed(part, columns)
        scalar, out = objective(loss, inputs, weights)
        scalar.backward()
        total += scalar.item()
        sums.add(inputs, out, weights)
    return total, {i: t.grad for i, t in current.items() if t.grad is not None}, sums.result()


@st.composite
def cuts(draw: st.DrawFn) -> list[list[int]]:
    """The trajectories in any order, dealt into any micro-batches."""
    order = draw(st.permutations(range(len(LENGTHS))))
    marks = draw(st.sets(st.integers(1, len(LENGTHS) - 1)))
    edges = [0, *sorted(marks), len(LENGTHS)]
    return [list(order[a:b]) for a, b in pairwise(edges)]


@pytest.mark.parametrize("name", LOSSES)
@settled
@given(cut=cuts(), seed=st.integers(0, 2**32 - 1))
def test_no_cut_and_no_order_changes_which_tokens_are_chosen(
    name: str, cut: list[list[int]], seed: int
) -> None:
    loss = LOSSES[name]()
    total, gradients, metrics = step(loss, [range(len(LENGTHS))], seed)
    other_total, other_gradients, other_metrics = step(loss, cut, seed)
    assert other_total == pytest.approx(total, abs=1e-6)
    assert other_metrics == pytest.approx(metrics, abs=1e-6)
    for i, gradient in gradients.items():
        # bit for bit: a token chosen otherwise would differ, and nothing else may
        torch.testing.assert_close(other_gradients[i], gradient, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "count"), [("clip_cov", int(0.05 * 277)), ("kl_cov", int(0.2 * 277))]
)
def test_the_fraction_is_of_the_mini_batch_and_not_of_each_micro_batch(
    name: str, count: int
) -> None:
    for cut in ([range(8)], [[i] for i in range(8)]):
        metrics = step(LOSSES[name](), cut, seed=1)[2]
        assert metrics[f"loss_metrics/{METRIC[name]}"] * 277 == pytest.approx(count, abs=1e-3)


def test_another_seed_chooses_other_tokens() -> None:
    def left_out(seed: int) -> list[int]:
        gradients = step(clip_cov_loss(), [range(8)], seed)[1]
        return (torch.cat([gradients[i] for i in range(8)]) == 0).nonzero()[:, 0].tolist()

    assert left_out(1) == left_out(1)
    assert left_out(1) != left_out(2)


def test_every_candidate_is_chosen_about_equally_often() -> None:
    # the least of 5 keys, over 4000 seeds: 800 each, standard deviation √(4000·⅕·⅘) = 25
    trajectory, position = torch.tensor([0, 0, 1, 1, 7]), torch.tensor([5, 6, 5, 6, 5])
    first = Counter(int(token_keys(seed, trajectory, position).argmin()) for seed in range(4000))
    assert set(first) == set(range(5))
    assert all(abs(times - 800) < 5 * 25 for times in first.values())


def test_every_token_of_a_step_has_a_key_of_its_own() -> None:
    trajectory = torch.arange(2000).repeat_interleave(100)
    position = torch.arange(100).repeat(2000)
    for seed in (0, 1, 2**32 - 1):
        assert len(token_keys(seed, trajectory, position).unique()) == 200_000


def mixed(x: int) -> int:
    """SplitMix64 in Python's own numbers, which do not overflow."""
    x = (x + 0x9E3779B97F4A7C15) % 2**64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % 2**64
    return x ^ (x >> 31)


@settled
@given(st.integers(0, 2**63 - 1), st.integers(0, 2**40), st.integers(0, 2**40))
def test_a_key_is_three_rounds_of_splitmix(seed: int, trajectory: int, position: int) -> None:
    # so a resumed run chooses as the first one would have, on any device
    expected = mixed(mixed(mixed(seed) + trajectory) + position)
    (key,) = token_keys(seed, torch.tensor([trajectory]), torch.tensor([position])).tolist()
    assert key % 2**64 == expected


def test_tokens_at_one_place_of_two_rows_of_a_trajectory_share_their_fate() -> None:
    assert token_keys(1, torch.tensor([4, 4]), torch.tensor([2, 2])).unique().numel() == 1


def test_columns_are_sorted_by_key_and_stay_together() -> None:
    got = by_key({"key": torch.tensor([3, -1, 2]), "logprobs": torch.tensor([30.0, -10.0, 20.0])})
    assert got["key"].tolist() == [-1, 2, 3]
    assert got["logprobs"].tolist() == [-10, 20, 30]


@settled
@given(st.lists(st.tuples(st.floats(-20, 0), st.floats(-5, 5)), min_size=2, max_size=20))
def test_the_mean_of_the_parts_is_the_covariance(rows: list[tuple[float, float]]) -> None:
    lps, credit = torch.tensor(rows, dtype=torch.float64).T
    expected = np.cov(lps.numpy(), credit.numpy(), ddof=0)[0, 1]
    assert covariances(lps, credit).mean().item() == pytest.approx(expected, abs=1e-9)


@settled
@given(
    st.lists(st.tuples(st.floats(-20, 0), st.floats(-5, 5)), min_size=1, max_size=20),
    st.floats(-10, 10),
)
def test_an_advantage_that_every_token_has_changes_no_covariance(
    rows: list[tuple[float, float]], shift: float
) -> None:
    lps, credit = torch.tensor(rows, dtype=torch.float64).T
    torch.testing.assert_close(
        covariances(lps, credit + shift), covariances(lps, credit), rtol=0, atol=1e-10
    )
