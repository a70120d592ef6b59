import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import TopKLogitsWarper, TopPLogitsWarper

from skyrl_kernel.records import Sampling
from skyrl_transformers.noise import as_seed, uniform
from skyrl_transformers.sampler import Sampler, SamplingRows

CPU = torch.device("cpu")


def sample(logits: torch.Tensor, noise: object, *samplings: Sampling):
    rows = samplings if len(samplings) == len(logits) else samplings * len(logits)
    sampler = Sampler(SamplingRows.of(rows, CPU))
    return sampler(logits, torch.as_tensor(noise, dtype=torch.float64))


def support(logits: torch.Tensor, sampling: Sampling) -> set[int]:
    """Every id that some noise reaches."""
    noise = torch.linspace(0, 1 - 1e-12, 4001, dtype=torch.float64)
    return set(sample(logits.expand(4001, -1), noise, sampling)[0].tolist())


def chi_square(counts: np.ndarray, expected: np.ndarray) -> float:
    """In standard deviations from its mean: degrees of freedom d have variance 2d."""
    freedom = counts.size - 1
    statistic = ((counts - expected) ** 2 / expected).sum()
    return float((statistic - freedom) / math.sqrt(2 * freedom))


def test_noise_is_uniform_over_seeds_and_over_positions() -> None:
    count, bins = 100_000, 100
    many = np.arange(count)
    zeros = np.zeros(count, dtype=np.int64)
    for seeds, positions in ((many, zeros), (zeros, many), (many, many), (many * 2**32, zeros)):
        values = uniform(seeds.astype(np.uint64), positions)
        assert values.min() >= 0
        assert values.max() < 1
        counts = np.bincount((values * bins).astype(int), minlength=bins)
        assert abs(chi_square(counts, np.full(bins, count / bins))) < 4


def test_neighbouring_seeds_and_positions_are_independent() -> None:
    # Pairs fall evenly into a 16 × 16 grid: neither a row's next token nor the next row repeats it.
    seeds, positions = np.divmod(np.arange(100_000), 100)
    here = uniform(seeds.astype(np.uint64), positions)
    for other in (
        uniform(seeds.astype(np.uint64), positions + 1),
        uniform((seeds + 1).astype(np.uint64), positions),
        uniform(
            (seeds + 1).astype(np.uint64), np.maximum(positions - 1, 0) + (positions == 0) * 500
        ),
    ):
        grid, _, _ = np.histogram2d(here, other, bins=16, range=[[0, 1], [0, 1]])
        assert abs(chi_square(grid.ravel(), np.full(256, 100_000 / 256))) < 4


def test_noise_is_a_function_of_seed_and_position_alone() -> None:
    one = uniform(np.array([3, 5], dtype=np.uint64), np.array([7, 9]))
    other = uniform(np.array([9, 5, 3], dtype=np.uint64), np.array([9, 9, 7]))
    assert one.tolist() == other[[2, 1]].tolist()
    assert as_seed(2**64 + 3) == 3


def test_samples_follow_the_distribution_at_every_temperature() -> None:
    torch.manual_seed(0)
    logits = torch.randn(1, 50)
    count = 200_000
    noise = uniform(np.arange(count, dtype=np.uint64), np.full(count, 11))
    for temperature in (0.7, 1.0, 2.0):
        sampling = Sampling(temperature=temperature)
        sampler = Sampler(SamplingRows.of([sampling] * count, CPU))
        tokens, logprobs = sampler(logits.expand(count, -1), torch.from_numpy(noise))
        expected = (logits[0] / temperature).softmax(-1)
        counts = np.bincount(tokens.numpy(), minlength=50)
        assert abs(chi_square(counts, expected.double().numpy() * count)) < 4
        torch.testing.assert_close(logprobs, expected.log()[tokens], atol=1e-5, rtol=0)


def test_inverse_of_a_distribution_by_hand() -> None:
    # probabilities 1/2, 0, 1/4, 1/4: cumulative 1/2, 1/2, 3/4, 1
    logits = torch.tensor([[0.5, 0.0, 0.25, 0.25]]).log().expand(6, -1)
    noise = [0.0, 0.4999999, 0.5, 0.7499999, 0.75, 1 - 2**-50]
    tokens, logprobs = sample(logits, noise, Sampling())
    assert tokens.tolist() == [0, 0, 2, 2, 3, 3]
    assert logprobs.exp().tolist() == pytest.approx([0.5, 0.5, 0.25, 0.25, 0.25, 0.25])


def test_temperature_zero_takes_the_best_and_reports_its_logprob_at_temperature_one() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0]])
    tokens, logprobs = sample(logits, [0.0], Sampling(temperature=0, top_p=0.1, top_k=1))
    assert tokens.tolist() == [1]
    assert logprobs.item() == pytest.approx(2 - math.log(1 + math.e**2 + math.e))


def test_truncated_logprobs_are_of_what_is_left() -> None:
    # 0.5, 0.3, 0.15, 0.05: a nucleus of 0.7 keeps 0.5 and 0.3, which become 5/8 and 3/8
    logits = torch.tensor([[0.15, 0.5, 0.05, 0.3]]).log()
    tokens, logprobs = sample(logits.expand(2, -1), [0.1, 0.9], Sampling(top_p=0.7))
    assert tokens.tolist() == [1, 3]
    assert logprobs.exp().tolist() == pytest.approx([5 / 8, 3 / 8])
    assert support(logits, Sampling(top_p=0.7)) == {1, 3}
    assert support(logits, Sampling(top_k=3)) == {0, 1, 3}
    assert support(logits, Sampling(min_p=0.3)) == {0, 1, 3}  # 0.15 = 0.3 × 0.5 at the edge
    assert support(logits, Sampling(min_p=0.31)) == {1, 3}


def test_min_p_then_top_k_then_top_p() -> None:
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    # top_k 2 leaves 4/7 and 3/7; a nucleus of 0.55 then needs only the first
    assert support(logits, Sampling(top_k=2, top_p=0.55)) == {0}
    assert support(logits, Sampling(top_p=0.55)) == {0, 1}


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.05, 1.0), st.integers(1, 12), st.floats(0.3, 3))
def test_supports_are_those_of_hugging_face(
    seed: int, top_p: float, top_k: int, temperature: float
) -> None:
    logits = torch.randn(1, 12, generator=torch.Generator().manual_seed(seed)) / temperature
    for sampling, warper in (
        (Sampling(top_p=top_p), TopPLogitsWarper(top_p)),
        (Sampling(top_k=top_k), TopKLogitsWarper(top_k)),
    ):
        sampler = Sampler(SamplingRows.of([sampling], CPU))
        ours = sampler._truncate(logits) if sampler._truncates else logits
        theirs = warper(torch.zeros(1, 1, dtype=torch.int64), logits.clone())
        assert torch.isfinite(ours).tolist() == torch.isfinite(theirs).tolist()


def test_rows_of_a_batch_sample_by_their_own_settings() -> None:
    logits = torch.tensor([[0.0, 1.0, 0.9]]).expand(4, -1)
    samplings = (Sampling(temperature=0), Sampling(top_k=1), Sampling(), Sampling(temperature=100))
    tokens, logprobs = sample(logits, [0.01, 0.01, 0.01, 0.01], *samplings)
    assert tokens.tolist() == [1, 1, 0, 0]
    log_z = math.log(1 + math.e + math.exp(0.9))
    hot = math.log(1 + math.exp(0.01) + math.exp(0.009))
    assert logprobs.tolist() == pytest.approx([1 - log_z, 0.0, -log_z, -hot], abs=1e-6)


def test_nan_logits_are_visible_in_the_logprob() -> None:
    for sampling in (Sampling(), Sampling(temperature=0)):
        _, logprobs = sample(torch.tensor([[0.0, math.nan]]), [0.5], sampling)
        assert logprobs.isnan().all()
