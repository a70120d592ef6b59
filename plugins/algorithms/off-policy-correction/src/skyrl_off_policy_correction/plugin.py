"""The correction as a wrapper around any loss. What it does: this package's docstring."""

from collections.abc import Generator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from pydantic import BaseModel

from skyrl_kernel.config import AlgorithmConfig
from skyrl_kernel.errors import ConfigError
from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.protocols import Loss, Settings
from skyrl_off_policy_correction.config import OffPolicyCorrectionConfig

if TYPE_CHECKING:
    from skyrl_kernel.torch import LossInputs, LossTerms


@hookimpl
def config_sections() -> Mapping[str, type[BaseModel]]:
    """``trainer.algorithm.off_policy_correction``."""
    return {"trainer.algorithm.off_policy_correction": OffPolicyCorrectionConfig}


@hookimpl(wrapper=True)
def loss(settings: Settings) -> Generator[None, Loss | None, Loss | None]:
    """Correct, where a key of the section asks for it.

    Raises:
        ConfigError: A weight is asked for, but the loss has the sampler in its ratio already.
    """
    inner = yield
    config = settings[OffPolicyCorrectionConfig]
    if inner is None or not config.is_on:
        return inner
    if config.tis_ratio_type is not None and inner.needs_sampler_logprobs:
        loss_type = settings[AlgorithmConfig].policy_loss_type
        raise ConfigError(
            f"trainer.algorithm.off_policy_correction.tis_ratio_type={config.tis_ratio_type} would "
            f"double-count the ratio to the sampler, which trainer.algorithm.policy_loss_type={loss_type} "
            "has in its own; set tis_ratio_type=null (the masks go with it), or use another loss"
        )
    return corrected(inner, config)


def corrected(inner: Loss, config: OffPolicyCorrectionConfig) -> Loss:
    """``inner``, its term ``policy`` times the correction of each token."""

    def fn(inputs: "LossInputs") -> "LossTerms":
        from skyrl_off_policy_correction.correction import correction

        assert inputs.old_logprobs is not None, "declared in needs"
        assert inputs.sampler_logprobs is not None, "declared in needs_sampler_logprobs"
        weights, metrics = correction(
            inputs.old_logprobs - inputs.sampler_logprobs, inputs.trajectory, config
        )
        out = inner(inputs)
        return replace(
            out,
            terms={**out.terms, "policy": out.terms["policy"] * weights},
            metrics={**out.metrics, **metrics},
        )

    return replace(inner, fn=fn, needs=inner.needs | {"old_logprobs"}, needs_sampler_logprobs=True)
