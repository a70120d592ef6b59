"""The correction against numbers worked out by hand, and what must hold for any."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from skyrl_grpo.clip import loss as clip
from skyrl_kernel.config import AlgorithmConfig
from skyrl_kernel.defaults import entropy_loss, kl_loss
from skyrl_kernel.protocols import Loss
from skyrl_kernel.testing.contracts import LossContract
from skyrl_kernel.torch import LossInputs, MetricSums, objective
from skyrl_off_policy_correction import OffPolicyCorrectionConfig
from skyrl_off_policy_correction.correction import correction
from skyrl_off_policy_correction.plugin import corrected

PREFIX = "loss_metrics/"
GEOMETRIC: dict[str, Any] = {"sequence_mask_metric": "geometric"}
EVERYTHING: dict[str, Any] = {
    "tis_ratio_type": "sequence",
    "sequence_mask_metric": "product",
    "outlier_token_is_threshold_low": 1e-4,
    "outlier_token_is_threshold_high": 100,
    "token_mask_is_threshold_low": 0.5,
    "token_mask_is_threshold_high": 5,
}


def regular() -> Loss:
    made = clip("regular", {AlgorithmConfig: AlgorithmConfig()})
    assert made is not None
    return made


class TestToken(LossContract):
    def loss(self) -> Loss:
        return corrected(regular(), OffPolicyCorrectionConfig(tis_ratio_type="token"))


class TestEverything(LossContract):
    def loss(self) -> Loss:
        return corrected(regular(), OffPolicyCorrectionConfig(**EVERYTHING))


def weights(
    old: list[float], sampler: list[float], trajectory: list[int] | None = None, **config: Any
) -> tuple[list[float], dict[str, float]]:
    """The weights, and the metrics as a run reports them."""
    log_ratios = torch.tensor(old) - torch.tensor(sampler)
    owner = torch.tensor(trajectory or [0] * len(old))
    found, metrics = correction(log_ratios, owner, OffPolicyCorrectionConfig(**config))
    means = {
        name.removeprefix(PREFIX): metric.values.float().mean().item()
        for name, metric in metrics.items()
        if metric.reduction == "mean"
    }
    return found.tolist(), means


# --- worked numbers: SkyRL's cases -------------------------------------------------------

OLD, SAMPLER = [-1, -1.5, -0.5], [-1.5, -1, -1.5]
"""Ratios e^½ = 1.6487, e^-½ = 0.6065 and e = 2.7183; their product is e."""
FAR = [-1.0, -1, -6]
"""With old -1: ratios 1, 1 and e^5 = 148.4."""


def test_a_token_counts_with_its_ratio_but_no_more_than_the_cap() -> None:
    found, metrics = weights(OLD, SAMPLER, tis_ratio_type="token")
    assert found == pytest.approx([1.6487, 0.6065, 2.0], abs=1e-4)
    assert metrics["tis_token_clip_high_ratio"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("old", "sampler", "weight", "clipped"),
    [(OLD, SAMPLER, 2.7183, 0), ([-1] * 3, [-2] * 3, 5.0, 1)],  # e³ = 20.1 in the second
)
def test_a_trajectory_counts_with_the_product_but_no_more_than_the_cap(
    old: list[float], sampler: list[float], weight: float, clipped: float
) -> None:
    found, metrics = weights(old, sampler, tis_ratio_type="sequence")
    assert found == pytest.approx([weight] * 3, abs=1e-4)
    assert metrics["tis_seq_clip_high_ratio"] == clipped


@pytest.mark.parametrize(
    ("sampler", "low", "high", "kept"),
    [
        ([-1.1, -1, -1.1], 0.9, 1.1, 1),  # mean log-ratio 0.2 / 3: e^.0667 = 1.069
        ([-2, -2, -2], 0.9, 1.1, 0),  # e
        ([-1, -1, -1], 0.99, 1.01, 1),
    ],
)
def test_a_trajectory_stays_if_its_geometric_mean_is_within_the_bounds(
    sampler: list[float], low: float, high: float, kept: float
) -> None:
    found, metrics = weights([-1] * 3, sampler, **GEOMETRIC, geo_mask_low=low, geo_mask_high=high)
    assert found == [kept] * 3
    assert metrics["geo_sequence_mask_masked_ratio"] == 1 - kept
    assert metrics["geo_sequence_mask_over_high_ratio"] == 1 - kept
    assert metrics["geo_sequence_mask_under_low_ratio"] == 0


def test_a_trajectory_stays_if_its_product_is_within_the_bounds() -> None:
    # log-ratios 0.2, 0.1, 0: e^.3 = 1.35
    old, sampler = [-1, -1.1, -1.2], [-1.2] * 3
    assert weights(old, sampler, sequence_mask_metric="product")[0] == [1] * 3
    found, metrics = weights(old, sampler, sequence_mask_metric="product", product_mask_low=1.5)
    assert found == [0] * 3
    assert metrics["product_sequence_mask_under_low_ratio"] == 1


@pytest.mark.parametrize(
    ("thresholds", "kept"),
    [
        ({"low": 1e-4, "high": 100}, 0),
        ({"high": 100}, 0),
        ({"low": 1e-4}, 1),
        ({"high": 150}, 1),
    ],
)
def test_one_token_far_out_takes_its_trajectory_out(
    thresholds: dict[str, float], kept: float
) -> None:
    config = {f"outlier_token_is_threshold_{side}": value for side, value in thresholds.items()}
    found, metrics = weights([-1] * 3, FAR, **config)
    assert found == [kept] * 3
    assert metrics["outlier_seq_masked_ratio"] == 1 - kept
    assert metrics["outlier_seq_over_high_ratio"] == 1 - kept
    assert metrics["outlier_seq_under_low_ratio"] == 0


def test_a_token_that_is_not_trained_on_takes_nothing_out() -> None:
    """Such a token never reaches a loss: what is left of `FAR` is within the bounds."""
    found, metrics = weights([-1] * 2, FAR[:2], outlier_token_is_threshold_high=100)
    assert found == [1, 1]
    assert metrics["outlier_seq_masked_ratio"] == 0


def test_icepop_takes_out_the_tokens_beyond_its_bounds_and_keeps_those_at_them() -> None:
    log = torch.log(torch.tensor([0.5, 1.0, 4.0, 0.25]))
    config = OffPolicyCorrectionConfig(
        token_mask_is_threshold_low=log[0].exp().item(), token_mask_is_threshold_high=2.0
    )
    found, metrics = correction(log, torch.zeros(4, dtype=torch.int64), config)
    assert found.tolist() == [1, 1, 0, 0]
    assert metrics[f"{PREFIX}token_mask_ratio"].values.mean().item() == 0.5


def test_weights_and_sequence_mask_go_together() -> None:
    bounds = {"geo_mask_low": 0.8, "geo_mask_high": 1.2}
    found, metrics = weights([-1] * 3, [-1.1] * 3, tis_ratio_type="token", **GEOMETRIC, **bounds)
    assert found == pytest.approx([1.10517] * 3, abs=1e-5)
    assert {"tis_token_clip_high_ratio", "geo_sequence_mask_masked_ratio"} <= set(metrics)


def test_each_step_sees_what_the_one_before_left() -> None:
    # trajectory 0: ratios 1 and e^5, out as an outlier; trajectory 1: ratios 1 and 4
    log_ratios = torch.tensor([0.0, 5.0, 0.0, 4.0]).where(
        torch.tensor([True, True, True, False]), torch.tensor(4.0).log()
    )
    config = OffPolicyCorrectionConfig(
        outlier_token_is_threshold_high=100,
        token_mask_is_threshold_low=0.5,
        token_mask_is_threshold_high=2,  # takes the 4 out
        tis_ratio_type="sequence",  # so the product is 1, not 4
        sequence_mask_metric="product",  # and within 0.5 and 2
    )
    found, metrics = correction(log_ratios, torch.tensor([0, 0, 1, 1]), config)
    assert found.tolist() == [0, 0, 1, 0]
    # of four tokens one was taken out as a token; those of the outlier were gone already
    assert metrics[f"{PREFIX}token_mask_ratio"].values.tolist() == [0, 0, 0, 1]
    assert metrics[f"{PREFIX}product_sequence_mask_masked_ratio"].values.tolist() == [0, 0]


def test_the_geometric_mean_is_over_the_tokens_that_are_left() -> None:
    # ratios 4, 1.1 and 1.1; the token mask takes the 4 out: (1.1 · 1.1)^½, not ^⅓
    log_ratios = torch.tensor([4.0, 1.1, 1.1]).log()
    bounds = {"token_mask_is_threshold_low": 0.5, "token_mask_is_threshold_high": 2}
    for low, kept in ((1.09, [0, 1, 1]), (1.11, [0, 0, 0])):
        config = OffPolicyCorrectionConfig(
            **GEOMETRIC, **bounds, geo_mask_low=low, geo_mask_high=1.2
        )
        found, _ = correction(log_ratios, torch.zeros(3, dtype=torch.int64), config)
        assert found.tolist() == kept


def test_truncation_comes_between_the_masks_of_tokens_and_of_sequences() -> None:
    # ratios 4 and 10 of trajectory 0; the token mask takes the 10 out before the cap could count
    # it, and the sequence mask the 4 only after
    config = OffPolicyCorrectionConfig(
        token_mask_is_threshold_low=0.5,
        token_mask_is_threshold_high=5,
        tis_ratio_type="token",
        sequence_mask_metric="product",
    )
    log_ratios = torch.tensor([4.0, 10.0, 1.0]).log()
    found, metrics = correction(log_ratios, torch.tensor([0, 0, 1]), config)
    assert metrics[f"{PREFIX}tis_token_clip_high_ratio"].values.tolist() == [1, 0, 0]
    assert metrics[f"{PREFIX}product_sequence_mask_over_high_ratio"].values.tolist() == [1, 0]
    assert found.tolist() == [0, 0, 1]


@pytest.mark.parametrize("edge", ["low", "high"])
@pytest.mark.parametrize("kind", ["product", "geometric"])
def test_a_sequence_at_a_bound_stays(kind: str, edge: str) -> None:
    short = {"product": "product", "geometric": "geo"}[kind]
    bounds = {f"{short}_mask_low": 0.5, f"{short}_mask_high": 2.0} | {f"{short}_mask_{edge}": 1.0}
    assert weights([-1], [-1], sequence_mask_metric=kind, **bounds)[0] == [1]


def test_the_rows_of_a_trajectory_count_together() -> None:
    log = [0.0] * 4
    sampler = [-0.5, -0.5, 0.0, -0.25]  # trajectory 7 in places 0, 1 and 3: product e^1.25
    found, _ = weights(log, sampler, [7, 7, 3, 7], tis_ratio_type="sequence")
    assert found == pytest.approx([3.4903, 3.4903, 1, 3.4903], abs=1e-4)


def test_the_ratios_are_reported() -> None:
    _, metrics = correction(
        torch.tensor([0.5, -0.5]),
        torch.zeros(2, dtype=torch.int64),
        OffPolicyCorrectionConfig(tis_ratio_type="token"),
    )
    reductions = {name: one.reduction for name, one in metrics.items() if "is_ratio" in name}
    assert reductions == {
        f"{PREFIX}is_ratio_{name}": name for name in ("mean", "std", "max", "min")
    }
    assert metrics[f"{PREFIX}is_ratio_max"].values.tolist() == pytest.approx(
        [1.6487, 0.6065], abs=1e-4
    )


# --- settings ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "is_on"),
    [
        ({}, False),
        ({"token_tis_ratio_clip_high": 3}, False),
        ({"tis_ratio_type": "token"}, True),
        ({"sequence_mask_metric": "product"}, True),
        ({"outlier_token_is_threshold_low": 0.1}, True),
        ({"outlier_token_is_threshold_high": 10}, True),
        ({"token_mask_is_threshold_low": 0.1, "token_mask_is_threshold_high": 10}, True),
    ],
)
def test_what_switches_it_on(config: dict[str, Any], is_on: bool) -> None:
    assert OffPolicyCorrectionConfig(**config).is_on is is_on


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"tis_ratio_type": "row"}, "'token' or 'sequence'"),
        ({"sequence_mask_metric": "mean"}, "'product' or 'geometric'"),
        ({"geo_mask_low": 1.2}, r"geo_mask_low=1.2 is above geo_mask_high=1.01, .*exchange them"),
        ({"token_tis_ratio_clip_high": 0}, "greater than 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        OffPolicyCorrectionConfig(**config)


# --- around a loss ------------------------------------------------------------------------


def inputs(
    now: Tensor, old: Tensor, sampler: Tensor, trajectory: list[int] | None = None
) -> LossInputs:
    count = len(now)
    return LossInputs(
        logprobs=now,
        entropy=torch.full((count,), 0.5, dtype=now.dtype),
        advantages=torch.linspace(-1, 1, count, dtype=now.dtype),
        trajectory=torch.tensor(trajectory or [0] * count),
        group=torch.zeros(count, dtype=torch.int64),
        position=torch.arange(count),
        old_logprobs=old,
        ref_logprobs=old,
        sampler_logprobs=sampler,
    )


def test_only_the_policy_term_is_weighted_wherever_kl_and_entropy_are_wrapped() -> None:
    config = OffPolicyCorrectionConfig(tis_ratio_type="token")
    old = torch.tensor([-1.0, -1.5, -0.5])
    batch = inputs(old + 0.1, old, torch.tensor([-1.5, -1.0, -1.5]))
    plain = regular()(batch).terms["policy"]

    def with_terms(loss: Loss) -> Loss:
        return entropy_loss.with_entropy(kl_loss.with_kl(loss, "k3", 0.1), 0.01)

    inside, outside = (
        with_terms(corrected(regular(), config)),
        corrected(with_terms(regular()), config),
    )
    untouched = with_terms(regular())(batch).terms
    for loss in (inside, outside):
        terms = loss(batch).terms
        torch.testing.assert_close(
            terms["policy"], plain * torch.tensor([1.6487, 0.6065, 2.0]), rtol=1e-4, atol=0
        )
        for name in ("kl", "entropy"):
            assert terms[name].tolist() == untouched[name].tolist()
        assert loss.coefficients == {"policy": 1.0, "kl": 0.1, "entropy": -0.01}
        assert loss.needs == {"old_logprobs", "ref_logprobs"}
        assert loss.needs_sampler_logprobs


def test_what_is_masked_keeps_its_share_of_the_mean_and_has_no_gradient() -> None:
    """As in SkyRL: the objective is divided by all trained tokens, masked ones too."""
    config = OffPolicyCorrectionConfig(
        token_mask_is_threshold_low=0.5, token_mask_is_threshold_high=2
    )
    old = torch.tensor([-1.0, -1.0])
    now = old.clone().requires_grad_()
    batch = inputs(now, old, torch.tensor([-1.0, -9.0]))  # advantages -1 and 1
    total, _ = objective(corrected(regular(), config), batch, {"policy": torch.tensor([0.5, 0.5])})
    total.backward()
    assert total.item() == 0.5  # ½ · 1 + ½ · 0, not 1
    assert now.grad is not None
    assert now.grad.tolist() == [0.5, 0]


def test_the_weights_carry_no_gradient() -> None:
    old = torch.tensor([-1.0, -1.5, -0.5], dtype=torch.float64)
    sampler = torch.tensor([-1.3, -1.4, -0.9], dtype=torch.float64)
    now = (old + torch.tensor([0.05, -0.05, 0.1], dtype=torch.float64)).requires_grad_()
    for kind in ("token", "sequence"):
        loss = corrected(regular(), OffPolicyCorrectionConfig(tis_ratio_type=kind))
        assert torch.autograd.gradcheck(
            lambda x, loss=loss: loss(inputs(x, old, sampler)).terms["policy"],
            (now,),
            eps=1e-6,
            atol=1e-8,
        )


def test_metrics_are_of_the_mini_batch_whatever_the_micro_batches() -> None:
    loss = corrected(regular(), OffPolicyCorrectionConfig(**EVERYTHING))
    numbers = torch.Generator().manual_seed(3)
    old, sampler = -torch.rand(9, generator=numbers), -torch.rand(9, generator=numbers)
    owner = [0, 0, 0, 1, 1, 2, 2, 2, 2]

    def reported(*parts: list[int]) -> dict[str, float]:
        sums = MetricSums()
        for part in parts:
            batch = inputs(old[part], old[part], sampler[part], [owner[i] for i in part])
            sums.add(batch, loss(batch), {"policy": torch.ones(len(part))})
        return {
            name: value
            for name, value in sums.result().items()
            if name.startswith(PREFIX) and name.removeprefix(PREFIX) not in ("clip_ratio",)
        }

    whole = reported(list(range(9)))
    assert whole == pytest.approx(reported([0, 1, 2], [5, 6, 7, 8], [3, 4]), abs=1e-6)


# --- what must hold for any numbers ---------------------------------------------------

logs = st.lists(st.tuples(st.floats(-1e4, 1e4), st.integers(0, 3)), max_size=8)
configs = st.sampled_from(
    [{"tis_ratio_type": "token"}, {"tis_ratio_type": "sequence"}, GEOMETRIC, EVERYTHING]
)


@given(logs, configs)
def test_weights_are_finite_and_at_most_the_cap(rows: list[tuple[float, int]], config: Any) -> None:
    log = torch.tensor([one for one, _ in rows])
    owner = torch.tensor([one for _, one in rows], dtype=torch.int64)
    found, metrics = correction(log, owner, OffPolicyCorrectionConfig(**config))
    assert torch.isfinite(found).all()
    assert ((found >= 0) & (found <= 5)).all()
    assert all(torch.isfinite(one.values).all() for one in metrics.values())


@given(st.lists(st.integers(0, 3), max_size=8), configs)
def test_where_trainer_and_engine_agree_nothing_changes(owner: list[int], config: Any) -> None:
    found, _ = correction(
        torch.zeros(len(owner)),
        torch.tensor(owner, dtype=torch.int64),
        OffPolicyCorrectionConfig(**config),
    )
    assert found.tolist() == [1.0] * len(owner)


@given(logs, configs, st.randoms(use_true_random=False))
def test_the_order_of_tokens_does_not_matter(
    rows: list[tuple[float, int]], config: Any, rng: Any
) -> None:
    order = list(range(len(rows)))
    rng.shuffle(order)
    log = torch.tensor([one for one, _ in rows])
    owner = torch.tensor([one for _, one in rows], dtype=torch.int64)
    settings = OffPolicyCorrectionConfig(**config)
    straight, _ = correction(log, owner, settings)
    shuffled, _ = correction(log[order], owner[order], settings)
    torch.testing.assert_close(shuffled, straight[order], rtol=1e-4, atol=1e-6)
