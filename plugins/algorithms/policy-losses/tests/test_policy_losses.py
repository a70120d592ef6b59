"""Every loss against numbers worked out by hand, against calculus, and at the extremes."""

import importlib
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import entry_points

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from skyrl_kernel.config import AlgorithmConfig
from skyrl_kernel.protocols import Loss
from skyrl_kernel.torch import LossInputs, LossTerms, TokenMetric
from skyrl_policy_losses.cispo import CispoConfig, cispo_loss
from skyrl_policy_losses.clip_cov import ClipCovConfig, clip_cov_choice
from skyrl_policy_losses.dppo import DppoConfig, divergence
from skyrl_policy_losses.kl_cov import KlCovConfig
from skyrl_policy_losses.rollout_is import rollout_is_loss
from skyrl_policy_losses.sapo import SapoConfig

MODULES = {
    point.name: point.value
    for point in entry_points(group="skyrl.algorithms")
    if point.value.startswith("skyrl_policy_losses")
}
NAMES = sorted(MODULES)
SECTIONS = {
    "cispo": CispoConfig,
    "sapo": SapoConfig,
    "dppo": DppoConfig,
    "clip_cov": ClipCovConfig,
    "kl_cov": KlCovConfig,
}

# The first token became half as likely, the second stayed, the third became ten times as likely.
OLD = torch.tensor([-1.0, -1.0, -3.0])
NOW = torch.tensor([-1.69315, -1.0, -0.69741])
ADVANTAGES = torch.tensor([1.0, -1.0, -4.0])

settled = settings(deadline=None, max_examples=40)  # the first call of a torch function is slow
logprobs = st.floats(-20, 0, allow_subnormal=False)
advantages = st.floats(-5, 5, allow_subnormal=False)


def make(name: str, **changes: object) -> Loss:
    """The stage, its own keys and those of ``trainer.algorithm`` changed as asked."""
    section = SECTIONS.get(name)
    own = {k: v for k, v in changes.items() if section and k in section.model_fields}
    rest = {k: v for k, v in changes.items() if k not in own}
    settings: dict[type, object] = {AlgorithmConfig: AlgorithmConfig(**rest)}
    if section:
        settings[section] = section(**own)
    hook = importlib.import_module(MODULES[name]).loss
    made = hook(name) if name == "importance_sampling" else hook(name, settings)
    assert isinstance(made, Loss)
    return made


def inputs(
    now: Tensor,
    old: Tensor,
    credit: Tensor,
    trajectory: Tensor | None = None,
    position: Tensor | None = None,
) -> LossInputs:
    """Tokens of one trajectory unless said otherwise; the sampler is the old policy."""
    count = len(now)
    return LossInputs(
        logprobs=now,
        entropy=torch.zeros(count),
        advantages=credit,
        trajectory=torch.zeros(count, dtype=torch.int64) if trajectory is None else trajectory,
        group=torch.zeros(count, dtype=torch.int64),
        position=torch.arange(count) if position is None else position,
        old_logprobs=old,
        sampler_logprobs=old,
        seed=3,
    )


def run(loss: Loss, batch: LossInputs) -> LossTerms:
    """As a trainer whose mini-batch is one micro-batch."""
    if loss.prepare is not None:
        batch = replace(batch, minibatch=loss.prepare(batch))
    return loss(batch)


def policy(loss: Loss, batch: LossInputs) -> Tensor:
    return run(loss, batch).terms["policy"]


def gradient(loss: Loss, batch: LossInputs) -> Tensor:
    """Of the sum over tokens, by log-prob."""
    now = batch.logprobs.detach().clone().requires_grad_()
    policy(loss, replace(batch, logprobs=now)).sum().backward()
    assert now.grad is not None
    return now.grad


def mean(metrics: Mapping[str, TokenMetric], name: str) -> float:
    return metrics[f"loss_metrics/{name}"].values.double().mean().item()


# --- worked numbers -----------------------------------------------------------------


def test_dual_clip_bounds_what_the_clip_leaves_unbounded() -> None:
    # ratios ½, 1, 10: -½·1, 1·1, and 10·4 = 40, which is bounded at c·4 = 3·4
    out = run(make("dual_clip"), inputs(NOW, OLD, ADVANTAGES))
    expected = torch.tensor([-0.5, 1.0, 12.0])
    torch.testing.assert_close(out.terms["policy"], expected, atol=1e-4, rtol=0)
    assert out.metrics["loss_metrics/dual_clip_ratio"].values.tolist() == [0, 0, 1]
    assert out.metrics["loss_metrics/clip_ratio"].values.tolist() == [0, 0, 0]
    # the bound takes the gradient with it
    assert gradient(make("dual_clip"), inputs(NOW, OLD, ADVANTAGES))[2] == 0
    assert policy(make("dual_clip", clip_ratio_c=10.5), inputs(NOW, OLD, ADVANTAGES))[2] > 39.9


def test_dual_clip_is_the_plain_clip_where_the_advantage_is_positive() -> None:
    out = policy(make("dual_clip"), inputs(NOW, OLD, -ADVANTAGES))
    torch.testing.assert_close(out, torch.tensor([0.8, -1.0, -4.8]))  # clip at 0.8 and 1.2


def test_importance_sampling_has_no_clip() -> None:
    out = run(make("importance_sampling"), inputs(NOW, OLD, ADVANTAGES))
    assert out.terms["policy"].sum().item() == pytest.approx(40.500198, abs=1e-3)
    assert mean(out.metrics, "importance_ratio") == pytest.approx(11.5 / 3, rel=1e-4)


def test_cispo_clips_the_weight_and_keeps_the_gradient() -> None:
    # weights 0.8, 1, 1.2: 0.8·1.69315 - 1·1·1 - 1.2·4·0.69741 = 1.354520 - 1 - 3.347568
    loss = make("cispo", cispo_eps_clip_low=0.2, cispo_eps_clip_high=0.2)
    out = run(loss, inputs(NOW, OLD, ADVANTAGES))
    assert out.terms["policy"].sum().item() == pytest.approx(-2.9930, abs=1e-4)
    assert mean(out.metrics, "clip_ratio") == pytest.approx(2 / 3)
    assert mean(out.metrics, "cispo/ratio_clamped_mean") == pytest.approx(1)
    # d/dlogπ of -w·A·logπ is -w·A for each token, also for those that were clipped
    expected = -torch.tensor([0.8, 1.0, 1.2]) * ADVANTAGES
    torch.testing.assert_close(gradient(loss, inputs(NOW, OLD, ADVANTAGES)), expected)


def test_cispo_by_tinker_s_numbers() -> None:
    # ratios 1 and e^5 against the sampler, bounds 0.8 and 1.2: -1·1·0 and -1.2·2·5. SkyRL's third
    # token is masked: such a token is not here
    loss = make("cispo", cispo_anchor="rollout", cispo_eps_clip_low=0.2, cispo_eps_clip_high=0.2)
    batch = inputs(torch.tensor([0.0, 5.0]), torch.zeros(2), torch.tensor([1.0, 2.0]))
    torch.testing.assert_close(policy(loss, batch), torch.tensor([0.0, -12.0]))


def test_cispo_s_extremes_are_of_trained_tokens() -> None:
    # SkyRL's case: the middle token is masked, so it is not here, and the least ratio is not its 0
    part = [0, 2]
    out = run(make("cispo"), inputs(NOW[part], OLD[part], ADVANTAGES[part]))
    least, most = (
        out.metrics[f"loss_metrics/cispo/ratio_{name}"].values.tolist() for name in ("min", "max")
    )
    assert [min(least), max(most)] == pytest.approx([0.5, 10], rel=1e-4)


def test_cispo_s_anchor_may_be_the_sampler() -> None:
    batch = replace(inputs(NOW, OLD, ADVANTAGES), sampler_logprobs=NOW, old_logprobs=None)
    # the sampler is the policy: every weight is 1
    torch.testing.assert_close(
        policy(make("cispo", cispo_anchor="rollout"), batch), -ADVANTAGES * NOW
    )


def test_sapo_s_gate() -> None:
    # ratios e^-½, e^0.2, e^-0.1; -4·σ(e^-½ - 1) = -1.611530, 2·σ(2(e^0.2 - 1)) = 1.217855,
    # -2·σ(e^-0.1 - 1) = -0.952455
    now, old = torch.tensor([-1.5, -0.8, -1.1]), torch.full((3,), -1.0)
    out = run(
        make("sapo", tau_pos=1.0, tau_neg=2.0), inputs(now, old, torch.tensor([1.0, -1.0, 0.5]))
    )
    expected = torch.tensor([-1.611530, 1.217855, -0.952455])
    torch.testing.assert_close(out.terms["policy"], expected, atol=1e-6, rtol=0)
    # SkyRL reports clip_ratio, always 0: a gate clips nothing. Here its slope is reported
    assert "loss_metrics/clip_ratio" not in out.metrics
    assert 0.9 < mean(out.metrics, "gate_mean") < 1


def test_sapo_s_gate_is_narrower_for_negative_advantages() -> None:
    far, start = torch.tensor([-1.0, -1.0]), torch.tensor([-2.0, -2.0])
    got = gradient(make("sapo", tau_neg=3.0), inputs(far, start, torch.tensor([1.0, -1.0])))
    assert got[1] < 0.2 * -got[0]


def test_dppo_drops_what_left_the_trust_region() -> None:
    # p: 0.740818, 0.135335, 0.406570; μ = 0.367879: differences 0.373, -0.233, 0.039
    now, old = torch.tensor([-0.3, -2.0, -0.9]), torch.full((3,), -1.0)
    out = run(make("dppo"), inputs(now, old, torch.tensor([1.0, -1.0, 1.0])))
    expected = torch.tensor([0.0, 0.0, -1.105171])  # e^0.1
    torch.testing.assert_close(out.terms["policy"], expected)
    assert out.metrics["loss_metrics/clip_ratio"].values.tolist() == [1, 1, 0]
    assert out.metrics["loss_metrics/divergence_mean"].values.tolist() == pytest.approx(
        [0.372939, 0.232544, 0.038690], abs=1e-6
    )


def test_dppo_s_bounds_are_of_a_side_each() -> None:
    # divergences 0.373 up and 0.233 down
    now, old = torch.tensor([-0.3, -2.0]), torch.full((2,), -1.0)
    for low, high, left in ((0.2, 0.4, [0, 1]), (0.3, 0.2, [1, 0]), (0.3, 0.4, [0, 0])):
        loss = make("dppo", delta_low=low, delta_high=high)
        out = run(loss, inputs(now, old, torch.tensor([1.0, -1.0])))
        assert out.metrics["loss_metrics/clip_ratio"].values.tolist() == left


def test_dppo_lets_tokens_come_back_from_the_other_side() -> None:
    # a good token that became rarer, a bad one that became more common: e^-1 and e^0.7
    now, old = torch.tensor([-2.0, -0.3]), torch.full((2,), -1.0)
    out = run(make("dppo"), inputs(now, old, torch.tensor([1.0, -1.0])))
    assert out.terms["policy"].sum().item() == pytest.approx(1.645873, abs=1e-6)
    assert out.metrics["loss_metrics/clip_ratio"].values.tolist() == [0, 0]


def test_dppo_keeps_a_rare_token_that_the_ratio_clip_would_drop() -> None:
    # from e^-10 to e^-8: seven times as likely, 0.0003 of all probability
    now, old = torch.tensor([-8.0]), torch.tensor([-10.0])
    assert gradient(make("dppo"), inputs(now, old, torch.ones(1))).item() < -7
    assert gradient(make("dual_clip"), inputs(now, old, torch.ones(1))).item() == 0


def test_dppo_s_binary_kl_by_hand() -> None:
    # μ ¼, p ½: ¼·log(½) + ¾·log(0.75/0.5) = -0.173287 + 0.304099
    now, old = torch.tensor([0.5]).log(), torch.tensor([0.25]).log()
    assert divergence(now, old, "binary_kl").item() == pytest.approx(0.130812, abs=1e-6)
    for delta, kept in ((0.13, False), (0.14, True)):
        loss = make("dppo", dppo_type="binary_kl", delta_high=delta)
        assert (policy(loss, inputs(now, old, torch.ones(1))).item() != 0) is kept


def test_dppo_s_divergence_is_finite_where_rounding_gives_more_than_probability_one() -> None:
    now, old = torch.tensor([1e-6, 0.0, -1e4]), torch.tensor([0.0, -1e4, 0.0])
    for kind in ("binary_tv", "binary_kl"):
        assert torch.isfinite(divergence(now, old, kind)).all()  # type: ignore[arg-type]


def test_rollout_is_drops_what_is_outside_on_both_sides() -> None:
    # ratios 0.5, 1, 1.1, 10, and the range is 0.8 to 1.2
    now, old = torch.tensor([0.5, 1.0, 1.1, 10.0]).log() - 4, torch.full((4,), -4.0)
    credit = torch.tensor([-1.0, 2.0, -3.0, 4.0])
    out = run(make("rollout_is"), inputs(now, old, credit))
    expected = torch.tensor([0.0, -2 * 1 * -4.0, 3 * 1.1 * now[2].item(), 0.0])
    torch.testing.assert_close(out.terms["policy"], expected)
    assert out.metrics["loss_metrics/clip_ratio"].values.tolist() == [1, 0, 0, 1]
    # inside, the gradient is that of -r·A
    torch.testing.assert_close(
        gradient(make("rollout_is"), inputs(now, old, credit)),
        torch.tensor([0.0, -2.0, 3.3, 0.0]),
    )


def test_rollout_is_leaves_out_the_bounds_themselves() -> None:
    now, ratios = torch.full((2,), -1.0), torch.tensor([0.75, 1.25])
    assert rollout_is_loss(now, ratios, torch.ones(2), 0.25, 0.25)[1].tolist() == [False, False]


# --- GSPO -----------------------------------------------------------------------------

# Two sequences, their tokens not side by side; log-ratios (½, -0.1) and (-0.2, 0):
# s = e^0.2 = 1.221403 and e^-0.1 = 0.904837.
PAIR_OLD = torch.tensor([-2.0, -1.0, -2.0, -1.0])
PAIR_NOW = PAIR_OLD + torch.tensor([0.5, -0.2, -0.1, 0.0])
PAIR = torch.tensor([5, 2, 5, 2])


@pytest.mark.parametrize("name", ["gspo", "gspo_sequence"])
def test_gspo_clips_a_sequence_as_a_whole(name: str) -> None:
    loss = make(name, loss_reduction="sequence_mean")
    credit = torch.tensor([1.0, -2.0, 1.0, -2.0])
    out = run(loss, inputs(PAIR_NOW, PAIR_OLD, credit, PAIR))
    # the first is clipped at 1.2, both tokens, though one of them became rarer
    torch.testing.assert_close(
        out.terms["policy"], torch.tensor([-1.2, 1.809675, -1.2, 1.809675]), atol=1e-5, rtol=0
    )
    assert out.metrics["loss_metrics/clip_ratio"].values.tolist() == [1, 0, 1, 0]
    got = gradient(loss, inputs(PAIR_NOW, PAIR_OLD, credit, PAIR))
    torch.testing.assert_close(got, torch.tensor([0.0, 1.809675, 0.0, 1.809675]))  # -s·A


def test_gspo_reports_ratios_once_per_sequence() -> None:
    out = run(make("gspo"), inputs(PAIR_NOW, PAIR_OLD, torch.ones(4), PAIR))
    ratios = out.metrics["loss_metrics/ratio_mean"].values.tolist()
    assert ratios == pytest.approx([0.904837, 1.221403], abs=1e-6)


sequences = st.lists(
    st.tuples(advantages, st.lists(st.tuples(logprobs, st.floats(-1, 1)), min_size=1, max_size=4)),
    min_size=1,
    max_size=4,
)


@settled
@given(sequences)
def test_gspo_by_token_and_by_sequence_agree_where_a_sequence_has_one_advantage(
    rows: list[tuple[float, list[tuple[float, float]]]],
) -> None:
    flat = [
        (number, credit, old, old + moved)
        for number, (credit, tokens) in enumerate(rows)
        for old, moved in tokens
    ]
    number, credit, old, now = torch.tensor(flat, dtype=torch.float64).T
    batch = inputs(now, old, credit, number.long())
    by_token, by_sequence = make("gspo"), make("gspo_sequence")
    torch.testing.assert_close(policy(by_token, batch), policy(by_sequence, batch))
    torch.testing.assert_close(gradient(by_token, batch), gradient(by_sequence, batch))


def test_gspo_by_token_gives_each_token_its_own_advantage() -> None:
    old, credit = torch.full((2,), -1.0), torch.tensor([3.0, -1.0])
    batch = inputs(old, old, credit)
    assert gradient(make("gspo"), batch).tolist() == [-3, 1]
    assert gradient(make("gspo_sequence"), batch).tolist() == [-1, -1]  # the mean


@pytest.mark.parametrize("name", ["gspo", "gspo_sequence"])
def test_gspo_has_no_gradient_beyond_its_clamp(name: str) -> None:
    # mean log-ratio 15, A = -1: -min(s·A, …) = e^10 with no slope
    batch = inputs(torch.tensor([-1.0]), torch.tensor([-16.0]), torch.tensor([-1.0]))
    assert policy(make(name), batch).item() == pytest.approx(22026.47, rel=1e-5)
    assert gradient(make(name), batch).item() == 0


# --- covariance losses in one micro-batch; splits are in test_covariance_losses.py ------------

# log-probs 2 above and 2 below their mean -2.1, advantages ±1 around 0: c = 2, -2, -2, 2
COV_NOW = torch.tensor([-0.1, -0.1, -4.1, -4.1])
COV_ADVANTAGES = torch.tensor([1.0, -1.0, 1.0, -1.0])
COV_OLD = COV_NOW - torch.tensor([0.1, 0.1, 0.1, 0.1])


def test_clip_cov_leaves_out_tokens_between_its_bounds() -> None:
    # ½ of 4 tokens may go: those of c = 2. The others: -e^0.1·A
    loss = make("clip_cov", clip_ratio=0.5)
    out = run(loss, inputs(COV_NOW, COV_OLD, COV_ADVANTAGES))
    torch.testing.assert_close(out.terms["policy"], torch.tensor([0.0, 1.105171, -1.105171, 0.0]))
    assert mean(out.metrics, "clip_ratio") == 0.5
    assert mean(out.metrics, "covariance_mean") == pytest.approx(0, abs=1e-6)
    got = gradient(loss, inputs(COV_NOW, COV_OLD, COV_ADVANTAGES))
    torch.testing.assert_close(got, torch.tensor([0.0, 1.105171, -1.105171, 0.0]))


def test_clip_cov_leaves_out_at_least_one_where_any_may_be() -> None:
    out = run(make("clip_cov"), inputs(COV_NOW, COV_OLD, COV_ADVANTAGES))  # 0.0002 of 4
    assert out.metrics["loss_metrics/clip_ratio"].values.sum() == 1
    none = run(make("clip_cov", clip_cov_lb=2.5), inputs(COV_NOW, COV_OLD, COV_ADVANTAGES))
    assert none.metrics["loss_metrics/clip_ratio"].values.sum() == 0


def test_clip_cov_does_not_choose_what_the_clip_has_taken() -> None:
    # the first token became twice as likely and did well: clipped; the last is the only candidate
    old = COV_NOW - torch.tensor([0.7, 0.1, 0.1, 0.1])
    for seed in range(8):  # by chance alone it would be the first token half of the times
        out = run(make("clip_cov"), replace(inputs(COV_NOW, old, COV_ADVANTAGES), seed=seed))
        assert out.metrics["loss_metrics/clip_ratio"].values.tolist() == [0, 0, 0, 1]
        assert out.metrics["loss_metrics/ppo_clip_ratio"].values.tolist() == [1, 0, 0, 0]


def test_clip_cov_s_bounds_are_outside() -> None:
    part = torch.tensor([1.0, 2.0, 5.0, 4.0])
    assert clip_cov_choice(part, torch.zeros(4).bool(), 1.0, 1.0, 5.0).tolist() == [1, 3]


def test_clip_cov_s_bounds_can_be_met_because_advantages_are_not_divided_by_tokens() -> None:
    # SkyRL divides by the trained tokens first (token_mean): c = 2 / 4, below the bound 1
    batch = inputs(COV_NOW, COV_OLD, COV_ADVANTAGES / 4)
    assert run(make("clip_cov"), batch).metrics["loss_metrics/clip_ratio"].values.sum() == 0
    batch = inputs(COV_NOW, COV_OLD, COV_ADVANTAGES)
    assert run(make("clip_cov"), batch).metrics["loss_metrics/clip_ratio"].values.sum() == 1


def test_kl_cov_penalises_the_tokens_of_largest_covariance() -> None:
    # ½ of 4 tokens: c = 2. They pay 3·|0.1| beside -e^0.1·A; no token is clipped
    loss = make("kl_cov", kl_cov_frac=0.5, ppo_kl_coef=3.0)
    out = run(loss, inputs(COV_NOW, COV_OLD, COV_ADVANTAGES))
    expected = torch.tensor([-0.805171, 1.105171, -1.105171, 1.405171])
    torch.testing.assert_close(out.terms["policy"], expected)
    assert mean(out.metrics, "kl_cov_ratio") == 0.5
    assert mean(out.metrics, "kl_cov_penalty") == pytest.approx(0.15)
    # d/dlogπ: -r·A, and +3 where the token that pays has become more likely
    torch.testing.assert_close(
        gradient(loss, inputs(COV_NOW, COV_OLD, COV_ADVANTAGES)),
        torch.tensor([1.894829, 1.105171, -1.105171, 4.105171]),
    )


def test_kl_cov_penalises_at_least_one_token() -> None:
    out = run(make("kl_cov", kl_cov_frac=0.0), inputs(COV_NOW, COV_OLD, COV_ADVANTAGES))
    assert out.metrics["loss_metrics/kl_cov_ratio"].values.sum() == 1


# --- calculus -------------------------------------------------------------------------

# Away from the corners, where a loss has two slopes; six tokens of two sequences for each sign.
RATIOS = torch.tensor([0.5, 0.79, 0.9, 1.1, 1.21, 3.5], dtype=torch.float64).repeat(2)
CREDIT = torch.tensor([1.5, -0.7], dtype=torch.float64).repeat_interleave(6)
START = torch.linspace(-3, -1.5, 12, dtype=torch.float64)
WHOSE = torch.tensor([0, 1, 0, 1, 1, 1, 2, 2, 3, 3, 3, 3])
TRUE_SLOPES = {
    "dual_clip": {},
    "gspo_sequence": {},
    "sapo": {"tau_neg": 1.5},
    "dppo": {},
    "importance_sampling": {},
    "clip_cov": {"clip_ratio": 0.25, "clip_cov_lb": 0.1},
    "kl_cov": {},
}
"""Losses that stop no gradient, with settings that reach all of their branches."""


@pytest.mark.parametrize("name", TRUE_SLOPES)
def test_the_gradient_is_the_slope_of_the_loss_in_double_precision(name: str) -> None:
    loss = make(name, **TRUE_SLOPES[name])
    now = START + RATIOS.log()
    batch = inputs(now, START, CREDIT, WHOSE)
    if loss.prepare is not None:
        batch = replace(batch, minibatch=loss.prepare(batch))
    slopes = gradient(replace(loss, prepare=None), batch)
    assert (slopes != 0).sum() > 3
    assert torch.autograd.gradcheck(
        lambda x: loss(replace(batch, logprobs=x)).terms["policy"],
        (now.clone().requires_grad_(),),
        eps=1e-6,
        atol=1e-8,
    )


def test_the_weights_of_cispo_and_rollout_is_have_no_gradient() -> None:
    now = (START + RATIOS.log()).requires_grad_()
    for fn, bounds in ((cispo_loss, (1.0, 2.0)), (rollout_is_loss, (0.2, 0.2))):
        assert torch.autograd.gradcheck(
            lambda x, fn=fn, bounds=bounds: fn(x, RATIOS, CREDIT, *bounds)[0], (now,), atol=1e-8
        )
    for name in ("cispo", "rollout_is"):
        batch = inputs(now.detach(), START, CREDIT)
        got = gradient(make(name), batch)
        inside = run(make(name), batch).metrics["loss_metrics/clip_ratio"].values == 0
        torch.testing.assert_close(got[inside], (-RATIOS * CREDIT)[inside])


def test_gspo_by_token_has_the_slope_of_its_own_ratio_with_the_sequence_s_held() -> None:
    now = START + RATIOS.log()
    batch = inputs(now, START, CREDIT, WHOSE)
    means = torch.stack([(now - START)[number == WHOSE].mean() for number in WHOSE])

    def held(x: Tensor) -> Tensor:
        ratios = (means + x - now).exp()
        return torch.maximum(-ratios * CREDIT, -ratios.clamp(0.8, 1.2) * CREDIT)

    x = now.clone().requires_grad_()
    assert torch.autograd.gradcheck(held, (x,), atol=1e-8)
    (expected,) = torch.autograd.grad(held(x).sum(), x)
    torch.testing.assert_close(gradient(make("gspo"), batch), expected)


# --- what must hold for any numbers -----------------------------------------------------

whole = st.lists(
    st.tuples(advantages, st.lists(logprobs, min_size=1, max_size=4)), min_size=1, max_size=4
)


@settled
@given(whole)
def test_clip_cov_begins_as_the_plain_policy_gradient_but_for_what_it_leaves_out(
    rows: list[tuple[float, list[float]]],
) -> None:
    flat = [(i, j, credit, lp) for i, (credit, lps) in enumerate(rows) for j, lp in enumerate(lps)]
    number, place, credit, now = torch.tensor(flat, dtype=torch.float64).T
    batch = inputs(now, now, credit, number.long(), place.long())
    out = run(make("clip_cov"), batch)
    left_out = out.metrics["loss_metrics/clip_ratio"].values.bool()
    assert left_out.sum() <= 1
    torch.testing.assert_close(
        gradient(make("clip_cov"), batch), -credit.masked_fill(left_out, 0.0)
    )


tokens = st.lists(st.tuples(logprobs, logprobs, advantages), min_size=1, max_size=6)


@pytest.mark.parametrize("name", NAMES)
@settled
@given(rows=tokens, rng=st.randoms(use_true_random=False))
def test_the_order_of_tokens_changes_nothing(name: str, rows: list[tuple], rng) -> None:  # type: ignore[no-untyped-def,type-arg]
    now, old, credit = torch.tensor(rows, dtype=torch.float64).T
    count = len(rows)
    trajectory = torch.arange(count) % 2
    shuffled = list(range(count))
    rng.shuffle(shuffled)
    order = torch.tensor(shuffled)
    straight = inputs(now, old, credit, trajectory)
    turned = inputs(now[order], old[order], credit[order], trajectory[order], order)
    torch.testing.assert_close(policy(make(name), straight)[order], policy(make(name), turned))
    torch.testing.assert_close(gradient(make(name), straight)[order], gradient(make(name), turned))


# --- extremes -------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("far", [1e4, -1e4])
@pytest.mark.parametrize("credit", [1.0, -1.0, 0.0])
def test_a_policy_far_from_the_old_one_gives_finite_numbers(
    name: str, far: float, credit: float
) -> None:
    for changes in ({}, *({"dppo_type": "binary_kl"},) * (name == "dppo")):
        loss = make(name, **changes)
        # one token alone, and one beside a token that has not moved
        for count in (1, 2):
            now, old = torch.full((count,), -1.0), torch.full((count,), -1.0)
            now[0], old[0] = min(far, 0.0), min(-far, 0.0)
            batch = inputs(now, old, torch.full((count,), credit))
            out = run(loss, batch)
            assert torch.isfinite(out.terms["policy"]).all()
            assert torch.isfinite(gradient(loss, batch)).all()
            for metric in out.metrics.values():
                assert torch.isfinite(metric.values).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_micro_batch_without_tokens_has_no_terms_and_no_metrics(name: str) -> None:
    empty = torch.zeros(0)
    out = run(make(name), inputs(empty, empty, empty))
    assert out.terms["policy"].shape == (0,)
    assert all(metric.values.numel() == 0 for metric in out.metrics.values())


# --- what is declared -----------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_only_losses_that_read_old_log_probs_ask_for_them(name: str) -> None:
    loss = make(name)
    on_sampler = name in ("dppo", "rollout_is")
    assert loss.needs == (frozenset() if on_sampler else {"old_logprobs"})
    assert loss.needs_sampler_logprobs is on_sampler
    batch = inputs(NOW, OLD, ADVANTAGES)
    unread = {"old_logprobs": None} if on_sampler else {"sampler_logprobs": None}
    torch.testing.assert_close(policy(loss, replace(batch, **unread)), policy(loss, batch))


def test_cispo_on_the_sampler_asks_for_no_old_log_probs() -> None:
    loss = make("cispo", cispo_anchor="rollout")
    assert loss.needs == frozenset()
    assert loss.needs_sampler_logprobs
