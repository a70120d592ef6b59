"""Which settings select the correction, and which are refused."""

import pytest

from skyrl_kernel.errors import ConfigError
from skyrl_kernel.plan import make_plan

SECTION = "trainer.algorithm.off_policy_correction"


def wrappers(*overrides: str, plugins: tuple[str, ...] = ("demo",)) -> list[str]:
    plan = make_plan(list(plugins), overrides=[f"{SECTION}.{word}" for word in overrides])
    return [entry.name for entry in plan.stages["loss"].wrappers]


@pytest.mark.parametrize(
    "words",
    [
        ["tis_ratio_type=token"],
        ["sequence_mask_metric=geometric"],
        ["outlier_token_is_threshold_low=1e-4"],
        ["outlier_token_is_threshold_high=100"],
        ["token_mask_is_threshold_low=0.5", "token_mask_is_threshold_high=5"],
    ],
    ids=lambda words: words[0],
)
def test_a_key_of_the_section_selects_the_plugin(words: list[str]) -> None:
    assert wrappers(*words) == ["off_policy_correction"]


def test_the_name_alone_asks_for_truncated_importance_sampling() -> None:
    plan = make_plan(["demo", "off_policy_correction"])
    assert (
        plan.config.tree["trainer"]["algorithm"]["off_policy_correction"]["tis_ratio_type"]
        == "token"
    )


def test_nothing_selects_it_where_nothing_is_asked_for() -> None:
    assert wrappers() == []
    assert wrappers("tis_ratio_type=null") == []


def test_one_bound_of_the_token_mask_is_refused() -> None:
    with pytest.raises(ConfigError, match="come together: set both or neither"):
        wrappers("token_mask_is_threshold_low=0.5")


@pytest.mark.parametrize("loss", ["clip_cov", "kl_cov"])
def test_losses_by_covariance_are_refused(loss: str) -> None:
    with pytest.raises(ConfigError, match=f"does not go with .*policy_loss_type={loss}"):
        make_plan(
            ["demo"],
            overrides=[
                f"{SECTION}.tis_ratio_type=token",
                f"trainer.algorithm.policy_loss_type={loss}",
            ],
        )


@pytest.mark.parametrize(
    "words",
    [
        ["trainer.algorithm.policy_loss_type=rollout_is"],
        ["trainer.algorithm.policy_loss_type=dppo"],
        [
            "trainer.algorithm.policy_loss_type=cispo",
            "trainer.algorithm.cispo.cispo_anchor=rollout",
        ],
    ],
    ids=lambda words: words[0].partition("=")[2],
)
def test_a_ratio_to_the_sampler_is_not_counted_twice(words: list[str]) -> None:
    """SkyRL refuses cispo's; the others' ratio is the same. Their masks go with the correction."""
    with pytest.raises(
        ConfigError, match=r"tis_ratio_type=token .*double-count the ratio to the sampler"
    ):
        make_plan(["demo"], overrides=[*words, f"{SECTION}.tis_ratio_type=token"])
    make_plan(["demo"], overrides=[*words, f"{SECTION}.sequence_mask_metric=geometric"])


def test_both_log_probs_are_asked_for() -> None:
    """So the kernel refuses data that was not sampled, which has no ratio."""
    plan = make_plan(["demo"], overrides=[f"{SECTION}.tis_ratio_type=token"])
    loss = plan.stages["loss"].value
    assert loss.needs == {"old_logprobs"}
    assert loss.needs_sampler_logprobs
