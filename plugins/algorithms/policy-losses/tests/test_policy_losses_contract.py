"""Every loss keeps the contract of losses."""

import pytest

from skyrl_kernel.config import AlgorithmConfig
from skyrl_kernel.protocols import Loss
from skyrl_kernel.testing.contracts import LossContract
from skyrl_policy_losses import (
    cispo,
    clip_cov,
    dppo,
    dual_clip,
    gspo,
    importance_sampling,
    kl_cov,
    rollout_is,
    sapo,
)

SETTINGS = {
    AlgorithmConfig: AlgorithmConfig(loss_reduction="sequence_mean"),
    cispo.CispoConfig: cispo.CispoConfig(),
    sapo.SapoConfig: sapo.SapoConfig(),
    dppo.DppoConfig: dppo.DppoConfig(),
    clip_cov.ClipCovConfig: clip_cov.ClipCovConfig(clip_cov_lb=0.01),
    kl_cov.KlCovConfig: kl_cov.KlCovConfig(),
}


def kept(made: Loss | None) -> Loss:
    assert made is not None
    return made


class TestDualClip(LossContract):
    def loss(self) -> Loss:
        return kept(dual_clip.loss("dual_clip", SETTINGS))


class TestGspo(LossContract):
    def loss(self) -> Loss:
        return kept(gspo.loss("gspo", SETTINGS))


class TestGspoSequence(LossContract):
    def loss(self) -> Loss:
        return kept(gspo.loss("gspo_sequence", SETTINGS))


class TestCispo(LossContract):
    def loss(self) -> Loss:
        return kept(cispo.loss("cispo", SETTINGS))


class TestCispoOnTheSampler(LossContract):
    def loss(self) -> Loss:
        config = cispo.CispoConfig(cispo_anchor="rollout")
        return kept(cispo.loss("cispo", SETTINGS | {cispo.CispoConfig: config}))


class TestSapo(LossContract):
    def loss(self) -> Loss:
        return kept(sapo.loss("sapo", SETTINGS))


@pytest.mark.parametrize("kind", ["binary_tv", "binary_kl"])
class TestDppo(LossContract):
    @pytest.fixture(autouse=True)
    def _kind(self, kind: str) -> None:
        self.config = dppo.DppoConfig(dppo_type=kind)  # type: ignore[arg-type]

    def loss(self) -> Loss:
        return kept(dppo.loss("dppo", SETTINGS | {dppo.DppoConfig: self.config}))


class TestRolloutIs(LossContract):
    def loss(self) -> Loss:
        return kept(rollout_is.loss("rollout_is", SETTINGS))


class TestImportanceSampling(LossContract):
    def loss(self) -> Loss:
        return kept(importance_sampling.loss("importance_sampling"))


class TestClipCov(LossContract):
    is_policy_gradient = False  # but for the tokens it leaves out: see test_policy_losses.py

    def loss(self) -> Loss:
        return kept(clip_cov.loss("clip_cov", SETTINGS))


class TestKlCov(LossContract):
    needs_advantages = False  # it penalises tokens for having moved

    def loss(self) -> Loss:
        return kept(kl_cov.loss("kl_cov", SETTINGS))
