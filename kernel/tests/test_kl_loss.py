"""The KL term against the reference, as the kernel puts it around a policy loss."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from skyrl_kernel.batch import trajectory_mean
from skyrl_kernel.config import AlgorithmConfig
from skyrl_kernel.defaults.kl_loss import with_kl
from skyrl_kernel.plugins import PluginManager, Resolved, discover
from skyrl_kernel.protocols import Loss
from skyrl_kernel.records import Scores, TrainingSample
from skyrl_kernel.testing.distributions import make_distribution, on_path
from skyrl_kernel.torch import LossInputs, LossTerms, MetricSums, objective, pack


def policy_gradient(inputs: LossInputs) -> LossTerms:
    return LossTerms(terms={"policy": -inputs.advantages * inputs.logprobs})


def inputs(logprobs: Tensor, reference: Tensor) -> LossInputs:
    count = len(logprobs)
    return LossInputs(
        logprobs=logprobs,
        entropy=torch.zeros(count),
        advantages=torch.ones(count),
        trajectory=torch.zeros(count, dtype=torch.int64),
        group=torch.zeros(count, dtype=torch.int64),
        position=torch.arange(count),
        ref_logprobs=reference,
    )


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        ("k1", 0.1),  # the difference of log-probs
        ("abs", 0.1),
        ("k2", 0.005),  # 0.1² / 2
        ("k3", 0.00483742),  # e^-0.1 + 0.1 - 1
    ],
)
def test_the_term_stands_beside_the_policy_s(estimator: str, expected: float) -> None:
    loss = with_kl(Loss(fn=policy_gradient), estimator, 0.25)
    out = loss(inputs(torch.tensor([-0.2, -0.3]), torch.tensor([-0.3, -0.4])))
    torch.testing.assert_close(out.terms["kl"], torch.full((2,), expected), atol=1e-7, rtol=1e-5)
    torch.testing.assert_close(out.terms["policy"], torch.tensor([0.2, 0.3]))
    assert loss.coefficients == {"policy": 1.0, "kl": 0.25}
    assert loss.needs == {"ref_logprobs"}


def test_the_gradient_of_k3_pulls_towards_the_reference() -> None:
    # d/d lp of e^(ref-lp) - (ref-lp) - 1 is 1 - e^(ref-lp): half as likely under the reference
    # gives 1 - ½, twice as likely 1 - 2, equal 0
    logprobs = torch.tensor([-1.0, -1.0, -1.0], requires_grad=True)
    reference = torch.tensor([-1.0 - np.log(2), -1.0 + np.log(2), -1.0], dtype=torch.float32)
    loss = with_kl(Loss(fn=policy_gradient), "k3", 1.0)
    loss(inputs(logprobs, reference)).terms["kl"].sum().backward()
    assert logprobs.grad is not None
    torch.testing.assert_close(logprobs.grad, torch.tensor([0.5, -1.0, 0.0]))


@pytest.mark.parametrize("far", [1e4, -1e4])
def test_a_policy_far_from_the_reference_gives_finite_numbers(far: float) -> None:
    logprobs = torch.tensor([min(far, 0.0)], requires_grad=True)
    kl = with_kl(Loss(fn=policy_gradient), "k3", 1.0)(
        inputs(logprobs, torch.tensor([min(-far, 0.0)]))
    ).terms["kl"]
    kl.sum().backward()
    assert torch.isfinite(kl).all()
    assert logprobs.grad is not None
    assert torch.isfinite(logprobs.grad).all()


# --- through the mini-batch: weights, masks, metrics --------------------------------------

# Two rows over a vocabulary of five; the probability of the sampled token, token by token.
POLICY = np.array([[0.1, 0.3, 0.2, 0.2, 0.2], [0.3, 0.3, 0.2, 0.1, 0.1]])
REFERENCE = np.array([[0.1, 0.2, 0.3, 0.2, 0.2], [0.25, 0.25, 0.25, 0.15, 0.1]])
MASKS = np.array([[1, 1, 0, 0, 0], [1, 1, 1, 0, 0]], dtype=bool)


def rows(reference: np.ndarray = REFERENCE) -> list[TrainingSample]:
    masks = [np.array([False, *mask]) for mask in MASKS]
    weights = trajectory_mean(masks, [0, 1], 2)
    return [
        TrainingSample(
            trajectory_id=f"0:{i}/0",
            group=i,
            trajectory=i,
            tokens=np.zeros(6, dtype=np.int32),
            loss_mask=masks[i],
            advantages=np.zeros(6, dtype=np.float32),
            returns=None,
            sampler_logprobs=None,
            scores=Scores(ref_logprobs=np.log([1.0, *reference[i]]).astype(np.float32)),
            loss_weights={"policy": weights[i], "kl": weights[i]},
        )
        for i in range(2)
    ]


def kl_of(samples: list[TrainingSample]) -> tuple[float, dict[str, float]]:
    loss = with_kl(Loss(fn=policy_gradient), "k1", 0.01)
    packed, weights = pack(
        samples, torch.tensor(POLICY[MASKS]).log(), torch.zeros(5), needs=loss.needs
    )
    total, out = objective(loss, packed, weights)
    sums = MetricSums()
    sums.add(packed, out, weights)
    return total.item(), sums.result()


def test_trajectories_count_the_same_however_long_they_are() -> None:
    # row 0: ln 1 = 0, ln(.3/.2) = .4055, mean .2027
    # row 1: ln(.3/.25) = .1823 twice, ln(.2/.25) = -.2231, mean .0472
    # mean of the rows .1249; times the coefficient .01
    total, metrics = kl_of(rows())
    assert total == pytest.approx(0.01 * 0.12494, abs=1e-6)
    assert metrics["policy_kl"] == pytest.approx(0.12494, abs=1e-4)


def test_what_is_masked_may_be_nan() -> None:
    """SkyRL's masks may be fractions, which scale the estimate; here a token is trained on or not,
    and what it counts is its weight."""
    spoiled = np.where(MASKS, REFERENCE, np.nan)
    assert kl_of(rows(spoiled)) == kl_of(rows())


# --- selection ----------------------------------------------------------------------------

PLAIN = """
from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.protocols import Loss


def fn(inputs):
    from skyrl_kernel.torch import LossTerms

    return LossTerms(terms={"policy": -inputs.logprobs})


@hookimpl
def loss(name):
    return Loss(fn=fn) if name == "plain" else None
"""


@pytest.fixture
def resolve(tmp_path: Path):  # type: ignore[no-untyped-def]
    """The stage `loss`, resolved as a run does it, around a loss of somebody else's."""
    make_distribution(
        tmp_path,
        "skyrl-plain",
        modules={"skyrl_plain": PLAIN},
        entry_points={"skyrl.algorithms": {"plain": "skyrl_plain"}},
    )

    def make(**config: object) -> Resolved:
        catalog = discover()
        manager = PluginManager(catalog)
        manager.load([catalog.find(name) for name in ("plain", "kl_loss", "entropy_loss")])
        settings = {AlgorithmConfig: AlgorithmConfig(**config)}
        return manager.resolve("loss", "plain", name="plain", settings=settings)

    with on_path(tmp_path):
        yield make


def test_it_wraps_any_loss_where_the_switch_is_on(resolve) -> None:  # type: ignore[no-untyped-def]
    resolved = resolve(use_kl_loss=True, kl_estimator_type="k2", kl_loss_coef=0.5)
    assert [entry.name for entry in resolved.wrappers] == ["kl_loss"]
    assert resolved.value.needs == {"ref_logprobs"}
    assert resolved.value.coefficients == {"policy": 1.0, "kl": 0.5}
    out = resolved.value(inputs(torch.tensor([-1.0]), torch.tensor([-3.0])))
    assert out.terms["kl"].tolist() == [2.0]  # (-1 + 3)² / 2
    assert out.terms["policy"].tolist() == [1.0]


def test_switched_off_nothing_is_added_and_no_reference_is_asked_for(resolve) -> None:  # type: ignore[no-untyped-def]
    resolved = resolve(use_kl_loss=False)
    assert resolved.wrappers == ()
    assert resolved.value.needs == frozenset()
    assert resolved.value.coefficients == {"policy": 1.0}


def test_kl_and_entropy_add_up_whatever_the_order(resolve) -> None:  # type: ignore[no-untyped-def]
    resolved = resolve(use_entropy_loss=True, kl_loss_coef=0.001, entropy_loss_coef=0.01)
    assert {entry.name for entry in resolved.wrappers} == {"kl_loss", "entropy_loss"}
    assert resolved.value.coefficients == {"policy": 1.0, "kl": 0.001, "entropy": -0.01}
