"""Our losses, gradients and advantages against those of TRL, an implementation by other people.

The same batch, from the same old and new weights, goes through the stages that a run resolves and
through TRL's own trainers (`trl_side`). Both compute in float32; losses agree to 1e-6, gradients to
1e-5 of their largest entry. Where the two differ on purpose, a test says by what and why.

TRL 1.16 has no PPO any more (no critic, no GAE), and none of DPPO, rollout-IS, clip-cov, kl-cov and
MaxRL: those are held to worked numbers and finite differences beside their own code.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip(
    "trl",
    reason="not checked: losses and advantages against TRL, which is not installed; "
    "`pip install trl`, or `make install`",
)

from trl_side import (
    LOSS,
    REWARDS,
    Models,
    Rollouts,
    assert_agree,
    make_models,
    ours,
    outcome_of,
    record,
)

from skyrl_dapo import penalty
from skyrl_kernel.records import Group
from skyrl_transformers.loading import load_causal_lm

# TRL's dependencies warn of each other.
pytestmark = pytest.mark.filterwarnings("ignore")

VOCABULARY = 258
"""Of the models."""


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return make_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def batch(models: Models) -> list[Group]:
    """Completions of 2 to 9 tokens, some with a hole where an env spoke."""
    return record(models)


@pytest.fixture(scope="module")
def even(models: Models) -> list[Group]:
    """Completions of 6 tokens each: a mean over tokens is a mean over completions."""
    return record(models, num_tokens=6, holes=False)


# --- policy losses ----------------------------------------------------------------------------

SEQUENCE = {"loss_reduction": "sequence_mean"}
TO_TRL: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "regular, token_mean": ({}, {"loss_type": "bnpo"}),
    "regular, token_mean, as DAPO counts it": ({}, {"loss_type": "dapo"}),
    "regular, two clip ranges": (
        {"eps_clip_low": 0.1, "eps_clip_high": 0.28},
        {"loss_type": "dapo", "epsilon": 0.1, "epsilon_high": 0.28},
    ),
    "regular, sequence_mean": (SEQUENCE, {"loss_type": "grpo"}),
    "regular, seq_mean_token_sum_norm": (
        {"loss_reduction": "seq_mean_token_sum_norm", "max_seq_len": 16},
        {"loss_type": "dr_grpo", "max_completion_length": 16},
    ),
    "dual_clip": (
        {"policy_loss_type": "dual_clip", "clip_ratio_c": 1.5},
        {"loss_type": "bnpo", "delta": 1.5},
    ),
    "gspo": (
        {"policy_loss_type": "gspo", "eps_clip_low": 0.05, "eps_clip_high": 0.1, **SEQUENCE},
        {
            "loss_type": "grpo",
            "importance_sampling_level": "sequence",
            "epsilon": 0.05,
            "epsilon_high": 0.1,
        },
    ),
    "cispo": (  # TRL bounds the ratio, we its distance from 1; neither bounds it below
        {"policy_loss_type": "cispo", "cispo.cispo_eps_clip_high": 0.2},
        {"loss_type": "cispo", "epsilon_high": 1.2},
    ),
    "sapo": (
        {"policy_loss_type": "sapo", "sapo.tau_pos": 0.9, "sapo.tau_neg": 1.3, **SEQUENCE},
        {"loss_type": "sapo", "sapo_temperature_pos": 0.9, "sapo_temperature_neg": 1.3},
    ),
    "importance_sampling": (  # a clip that is never reached
        {"policy_loss_type": "importance_sampling"},
        {"loss_type": "bnpo", "epsilon": 1e6},
    ),
}
"""Ours (keys of trainer.algorithm) → TRL's (fields of GRPOConfig)."""


@pytest.mark.parametrize("case", TO_TRL)
def test_a_policy_loss_is_trls(
    models: Models, batch: list[Group], tmp_path: Path, case: str
) -> None:
    changes, options = TO_TRL[case]
    mine = ours(models, batch, **changes)
    # With our advantages, since TRL adds 1e-4 to the deviation and we add 1e-6: see below.
    theirs = Rollouts("grpo", models, batch, tmp_path, **options).step(mine.advantages)
    assert_agree(mine, theirs)


def test_every_loss_of_the_table_is_another(models: Models, batch: list[Group]) -> None:
    """The batch reaches what they differ in: no bound is compared where it binds nobody."""
    losses = {case: ours(models, batch, **changes).loss for case, (changes, _) in TO_TRL.items()}
    assert losses.pop("regular, token_mean, as DAPO counts it") == losses["regular, token_mean"]
    ordered = sorted(losses.values())
    assert min(np.diff(ordered)) > 100 * LOSS, losses


def test_gspo_by_sequence_is_trls_too(models: Models, batch: list[Group], tmp_path: Path) -> None:
    changes, options = TO_TRL["gspo"]
    mine = ours(models, batch, **{**changes, "policy_loss_type": "gspo_sequence"})
    assert_agree(mine, Rollouts("grpo", models, batch, tmp_path, **options).step(mine.advantages))


def test_the_batch_reaches_both_clips(models: Models, batch: list[Group], tmp_path: Path) -> None:
    theirs = Rollouts("grpo", models, batch, tmp_path, loss_type="bnpo").step()
    assert theirs.metrics["clip_ratio/low_mean"] > 0.05
    assert theirs.metrics["clip_ratio/high_mean"] > 0.05
    assert ours(models, batch).metrics["loss_metrics/clip_ratio"] == pytest.approx(
        theirs.metrics["clip_ratio/region_mean"]
    )


# --- off-policy correction ----------------------------------------------------------------------

CORRECTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "tokens truncated": (
        {"tis_ratio_type": "token", "token_tis_ratio_clip_high": 1.2},
        {
            "vllm_importance_sampling_mode": "token_truncate",
            "vllm_importance_sampling_clip_max": 1.2,
        },
    ),
    "sequences truncated": (
        {"tis_ratio_type": "sequence", "sequence_tis_ratio_clip_high": 1.5},
        {
            "vllm_importance_sampling_mode": "sequence_truncate",
            "vllm_importance_sampling_clip_max": 1.5,
        },
    ),
    # TRL's masks weigh what they keep; here that is a setting of its own.
    "tokens masked": (
        {
            "token_mask_is_threshold_low": 0.8,
            "token_mask_is_threshold_high": 1.25,
            "tis_ratio_type": "token",
            "token_tis_ratio_clip_high": 1.25,
        },
        {
            "vllm_importance_sampling_mode": "token_mask",
            "vllm_importance_sampling_clip_min": 0.8,
            "vllm_importance_sampling_clip_max": 1.25,
        },
    ),
    "sequences masked": (
        {
            "sequence_mask_metric": "product",
            "product_mask_low": 0.6,
            "product_mask_high": 1.8,
            "tis_ratio_type": "sequence",
            "sequence_tis_ratio_clip_high": 1.8,
        },
        {
            "vllm_importance_sampling_mode": "sequence_mask",
            "vllm_importance_sampling_clip_min": 0.6,
            "vllm_importance_sampling_clip_max": 1.8,
        },
    ),
}


@pytest.mark.parametrize("case", CORRECTIONS)
def test_the_ratio_to_the_sampler_weighs_the_loss_as_in_trl(
    models: Models, batch: list[Group], tmp_path: Path, case: str
) -> None:
    changes, options = CORRECTIONS[case]
    mine = ours(
        models,
        batch,
        ("grpo", "off_policy_correction"),
        **{f"off_policy_correction.{key}": value for key, value in changes.items()},
    )
    rollouts = Rollouts(
        "grpo", models, batch, tmp_path, corrected=True, loss_type="bnpo", **options
    )
    theirs = rollouts.step(mine.advantages)
    assert_agree(mine, theirs)
    ratios = "sampling/importance_sampling_ratio"
    if case.endswith("masked"):
        assert theirs.metrics[f"{ratios}/min"] == 0 < theirs.metrics[f"{ratios}/mean"]
    else:
        assert theirs.metrics[f"{ratios}/max"] == pytest.approx(
            options["vllm_importance_sampling_clip_max"]
        )


# --- advantages -------------------------------------------------------------------------------


def spreads(rewards: Sequence[Sequence[float]] = REWARDS) -> np.ndarray:
    return np.repeat([np.std(group, ddof=1) for group in rewards], len(rewards[0]))


def test_grpos_advantage_differs_from_trls_by_the_epsilon_alone(
    models: Models, batch: list[Group], tmp_path: Path
) -> None:
    """TRL adds 1e-4 to the standard deviation; we add 1e-6, as SkyRL does."""
    mine = np.array(ours(models, batch).advantages)
    theirs = np.array(Rollouts("grpo", models, batch, tmp_path).step().advantages)
    np.testing.assert_allclose(mine * (spreads() + 1e-6), theirs * (spreads() + 1e-4), atol=1e-6)
    assert np.abs(mine - theirs).max() > 1e-5


def test_dr_grpos_advantage_is_trls(models: Models, batch: list[Group], tmp_path: Path) -> None:
    mine = ours(models, batch, grpo_norm_by_std=False)
    theirs = Rollouts("grpo", models, batch, tmp_path, scale_rewards="none").step()
    np.testing.assert_allclose(mine.advantages, theirs.advantages, atol=1e-7)


def test_rloos_advantage_is_trls(models: Models, batch: list[Group], tmp_path: Path) -> None:
    mine = ours(models, batch, ("rloo",))
    theirs = Rollouts("rloo", models, batch, tmp_path, beta=0.0).step()
    np.testing.assert_allclose(mine.advantages, theirs.advantages, atol=1e-6)
    assert np.abs(mine.advantages).max() > 0.5


def test_rloos_advantage_with_kl_in_the_reward_is_trls(
    models: Models, even: list[Group], tmp_path: Path
) -> None:
    """TRL's RLOO knows no tokens of an env, so the batch has none."""
    mine = ours(
        models,
        even,
        ("rloo",),
        use_kl_in_reward=True,
        kl_estimator_type="k1",
        kl_loss_coef=0.2,
    )
    theirs = Rollouts("rloo", models, even, tmp_path, beta=0.2).step()
    np.testing.assert_allclose(mine.advantages, theirs.advantages, atol=2e-6)
    without = ours(models, even, ("rloo",)).advantages
    assert np.abs(np.subtract(mine.advantages, without)).max() > 0.1


def test_reinforces_advantage_with_baseline_is_rloos_normalised(
    models: Models, tmp_path: Path
) -> None:
    """With one token each, a mean over tokens is one over completions. TRL adds 1e-4 to a deviation."""
    short = record(models, num_tokens=1, holes=False)
    mine = ours(models, short, ("reinforce++_baseline",))
    theirs = Rollouts("rloo", models, short, tmp_path, beta=0.0, normalize_advantages=True).step()
    np.testing.assert_allclose(mine.advantages, theirs.advantages, rtol=5e-4, atol=1e-6)
    spread = np.std(ours(models, short, ("rloo",)).advantages, ddof=1)
    np.testing.assert_allclose(
        mine.advantages,
        np.array(theirs.advantages) * (spread + 1e-4) / spread,
        rtol=1e-5,
        atol=1e-6,
    )


def test_the_soft_overlong_punishment_is_trls() -> None:
    from trl.rewards import get_soft_overlong_punishment

    theirs = get_soft_overlong_punishment(max_completion_len=20, soft_punish_cache=8)
    lengths = range(26)
    assert [penalty(n, limit=20, buffer=8, factor=1.0) for n in lengths] == pytest.approx(
        theirs([[0] * n for n in lengths])
    )


# --- KL and entropy ---------------------------------------------------------------------------


KL = {"beta": 0.3, "use_bias_correction_kl": False}
"""TRL's default multiplies the KL by the ratio, which makes its gradient that of the current policy's
KL (DeepSeek-V3.2, arXiv:2512.02556, §3.1). We take the estimator as it stands, as SkyRL does."""


def test_the_kl_term_is_trls_where_completions_are_equally_long(
    models: Models, even: list[Group], tmp_path: Path
) -> None:
    mine = ours(models, even, use_kl_loss=True, kl_loss_coef=0.3)
    theirs = Rollouts("grpo", models, even, tmp_path, loss_type="bnpo", **KL).step(mine.advantages)
    assert_agree(mine, theirs)
    assert mine.metrics["policy_kl"] == pytest.approx(theirs.metrics["kl"], rel=1e-5)


def test_the_kl_term_weighs_completions_not_tokens(
    models: Models, batch: list[Group], tmp_path: Path
) -> None:
    """The KL is a mean over each completion first, as in SkyRL and in GRPO's paper.

    TRL reduces it as it reduces the policy loss: with ``bnpo`` over tokens, with ``grpo`` as we do.
    """
    without = ours(models, batch, use_kl_loss=False)
    mine = ours(models, batch, use_kl_loss=True, kl_loss_coef=0.3)
    by_token, by_completion = (
        Rollouts("grpo", models, batch, tmp_path, loss_type=loss_type, **KL)
        for loss_type in ("bnpo", "grpo")
    )
    zeros = [0.0] * len(mine.advantages)
    assert mine.loss - without.loss == pytest.approx(by_completion.step(zeros).loss, rel=1e-4)
    assert mine.loss - without.loss != pytest.approx(by_token.step(zeros).loss, rel=1e-2)


def test_the_entropy_bonus_is_trls_where_completions_are_equally_long(
    models: Models, even: list[Group], tmp_path: Path
) -> None:
    mine = ours(models, even, use_entropy_loss=True, entropy_loss_coef=0.05)
    theirs = Rollouts("grpo", models, even, tmp_path, loss_type="bnpo", entropy_coef=0.05).step(
        mine.advantages
    )
    assert_agree(mine, theirs)
    assert mine.metrics["policy_entropy"] == pytest.approx(theirs.metrics["entropy"], rel=1e-5)


# --- distillation -----------------------------------------------------------------------------


def standing(models: Models) -> Models:
    """The policy is the one that sampled."""
    return replace(models, new=models.old)


def logits_of(
    models: Models, tokens: np.ndarray
) -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
    """The policy; its [1, T, V] logits, and those of the teacher."""
    ids = torch.from_numpy(tokens.astype(np.int64))[None]
    policy, teacher = load_causal_lm(models.new), load_causal_lm(models.reference)
    with torch.no_grad():
        judged = teacher(input_ids=ids).logits
    return policy, policy(input_ids=ids).logits, judged


def test_the_expectation_of_distillation_is_trls_reverse_kl(models: Models) -> None:
    """Over all tokens that may stand at a place, each with its probability: loss and gradient of GKD."""
    from trl.experimental.gkd import GKDTrainer

    models = standing(models)
    (group,) = record(models, [[0.0] * VOCABULARY], num_tokens=1, holes=False)
    every = []
    for token, one in enumerate(group.trajectories):
        (segment,) = one.segments
        tokens = np.array([*segment.tokens[:-1], token], dtype=np.int32)
        every.append(replace(one, segments=(replace(segment, tokens=tokens),)))
    policy, logits, judged = logits_of(models, every[0].segments[0].tokens[:-1])
    probs = logits[0, -1].detach().softmax(-1).numpy()

    mine = ours(
        models,
        [replace(group, trajectories=tuple(every))],
        ("distillation",),
        reduction=lambda masks, *_: [mask * p for mask, p in zip(masks, probs, strict=True)],
    )
    loss = GKDTrainer.generalized_jsd_loss(logits[:, -1:], judged[:, -1:], beta=1.0)
    assert_agree(mine, outcome_of(loss, policy))


def test_distillations_gradient_is_trls_for_sampled_tokens(
    models: Models, even: list[Group]
) -> None:
    """IW-OPD without its weights by place (γ = 0) is -A log p; we have -A p / p_old, of one gradient."""
    from trl.experimental.iw_opd import IWOPDTrainer

    models = standing(models)
    mine = ours(models, even, ("distillation",))
    rows = [one.segments[0] for group in even for one in group.trajectories]
    policy = load_causal_lm(models.new)
    teacher = load_causal_lm(models.reference)
    settings = SimpleNamespace(
        temperature=1.0,
        iw_opd_gamma=0.0,
        iw_opd_epsilon=1e-6,
        model=policy,
        _metrics=defaultdict(lambda: defaultdict(list)),
    )
    total = torch.zeros(())
    for row in rows:
        ids = torch.from_numpy(row.tokens.astype(np.int64))[None]
        n = row.num_prompt_tokens
        with torch.no_grad():
            judged = teacher(input_ids=ids).logits.log_softmax(-1)[:, n - 1 : -1]
        total = total + IWOPDTrainer._compute_iw_opd_loss(
            settings,
            student_logits=policy(input_ids=ids).logits[:, n - 1 : -1],
            completion_tokens=ids[:, n:],
            labels=ids[:, n:],
            teacher_actual_logprobs=judged.gather(-1, ids[:, n:, None]).squeeze(-1),
        )
    theirs = outcome_of(total / len(rows), policy)
    assert_agree(mine, replace(theirs, loss=mine.loss))
    advantages = settings._metrics["eval"]["iw_opd/mean_advantage"]
    assert -mine.loss == pytest.approx(np.mean(advantages), rel=1e-5)
