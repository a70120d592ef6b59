"""Our losses, gradients and advantages against those of TRL, an implementation by other people.

The same batch, from the same old and new weights, goes through the stages that a run resolves and
through TRL's own trainers (`trl_side`). Both compute in float32; losses agree to 1e-6, gradients to
1e-5 of their largest entry. Where the two differ on purpose, a test says by what and why.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip(
    "trl",
    reason="not checked: losses and advantages against TRL, which is not installed; "
    "`pip install trl`, or `make install`",
)

from trl_side import REWARDS, Models, Outcome, Rollouts, make_models, ours, record

from skyrl_kernel.records import Group

# TRL's dependencies warn of each other.
pytestmark = pytest.mark.filterwarnings("ignore")

LOSS, GRADIENT = 1e-6, 1e-5


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


def assert_agree(mine: Outcome, theirs: Outcome) -> None:
    assert mine.loss == pytest.approx(theirs.loss, rel=1e-5, abs=LOSS)
    assert mine.gradients.keys() == theirs.gradients.keys()
    largest = max(gradient.abs().max().item() for gradient in theirs.gradients.values())
    assert largest > 1e-3  # the comparison is of something
    for name, gradient in theirs.gradients.items():
        worst = (mine.gradients[name] - gradient).abs().max().item()
        assert worst <= GRADIENT * largest, f"gradient of {name}: {worst} of {largest}"


# --- policy losses ----------------------------------------------------------------------------

POLICY_LOSSES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "regular, token_mean": ({}, {"loss_type": "bnpo"}),
    "regular, token_mean, as DAPO counts it": ({}, {"loss_type": "dapo"}),
    "regular, two clip ranges": (
        {"eps_clip_low": 0.1, "eps_clip_high": 0.28},
        {"loss_type": "dapo", "epsilon": 0.1, "epsilon_high": 0.28},
    ),
}
"""Ours (keys of trainer.algorithm) → TRL's (fields of GRPOConfig)."""


@pytest.mark.parametrize("case", POLICY_LOSSES)
def test_a_policy_loss_is_trls(
    models: Models, batch: list[Group], tmp_path: Path, case: str
) -> None:
    changes, options = POLICY_LOSSES[case]
    mine = ours(models, batch, **changes)
    # With our advantages, since TRL adds 1e-4 to the deviation and we add 1e-6: see below.
    theirs = Rollouts("grpo", models, batch, tmp_path, **options).step(mine.advantages)
    assert_agree(mine, theirs)


def test_the_batch_reaches_both_clips(models: Models, batch: list[Group], tmp_path: Path) -> None:
    theirs = Rollouts("grpo", models, batch, tmp_path, loss_type="bnpo").step()
    assert theirs.metrics["clip_ratio/low_mean"] > 0.05
    assert theirs.metrics["clip_ratio/high_mean"] > 0.05
    assert ours(models, batch).metrics["loss_metrics/clip_ratio"] == pytest.approx(
        theirs.metrics["clip_ratio/region_mean"]
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
