"""What the plugins answer to, refuse and warn of."""

import importlib
import logging
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from pydantic import ValidationError

import skyrl_policy_losses
from skyrl_kernel.config import AlgorithmConfig
from skyrl_kernel.protocols import RunInfo
from skyrl_policy_losses.cispo import CispoConfig
from skyrl_policy_losses.clip_cov import ClipCovConfig
from skyrl_policy_losses.dppo import DppoConfig
from skyrl_policy_losses.kl_cov import KlCovConfig
from skyrl_policy_losses.sapo import SapoConfig

MODULES = {
    point.name: point.value
    for point in entry_points(group="skyrl.algorithms")
    if point.value.startswith("skyrl_policy_losses")
}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_another_name_is_not_answered(name: str) -> None:
    hook = importlib.import_module(MODULES[name]).loss
    settings: dict[type, object] = {AlgorithmConfig: AlgorithmConfig()}
    assert (hook("x") if name == "importance_sampling" else hook("x", settings)) is None


@pytest.mark.parametrize(
    ("section", "values", "complaint"),
    [
        (CispoConfig, {"cispo_anchor": "bogus"}, "cispo_anchor"),
        (CispoConfig, {"cispo_eps_clip_low": -1.0}, "cispo_eps_clip_low"),
        (SapoConfig, {"tau_pos": 0.0}, "tau_pos"),
        (DppoConfig, {"dppo_type": "tv"}, "dppo_type"),
        (DppoConfig, {"delta_low": -0.1}, "delta_low"),
        (ClipCovConfig, {"clip_cov_lb": 5.0}, "is not below clip_cov_ub=5.0"),
        (ClipCovConfig, {"clip_ratio": 2.0}, "clip_ratio"),
        (KlCovConfig, {"kl_cov_frac": 20.0}, "kl_cov_frac"),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(
    section: type, values: dict[str, object], complaint: str
) -> None:
    with pytest.raises(ValidationError, match=complaint):
        section(**values)


def started(loss_name: str, reduction: str) -> RunInfo:
    algorithm = {"policy_loss_type": loss_name, "loss_reduction": reduction}
    return RunInfo(
        name="r",
        project="p",
        folder=Path("runs/r"),
        total_steps=1,
        start_step=0,
        config={"trainer": {"algorithm": algorithm}},
        plugins=(),
    )


@pytest.mark.parametrize("name", ["gspo", "gspo_sequence", "sapo"])
def test_a_run_with_a_loss_of_sequences_and_another_reduction_is_warned(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    module = importlib.import_module(MODULES[name])
    with caplog.at_level(logging.WARNING):
        module.on_run_start(started(name, "sequence_mean"))
        module.on_run_start(started("regular", "token_mean"))  # selected, but in no slot
        assert not caplog.records
        module.on_run_start(started(name, "token_mean"))
    assert "set trainer.algorithm.loss_reduction=sequence_mean" in caplog.text
    assert "token_mean" in caplog.text


def test_the_package_offers_each_loss_as_a_plain_function() -> None:
    assert all(callable(getattr(skyrl_policy_losses, name)) for name in skyrl_policy_losses.__all__)
