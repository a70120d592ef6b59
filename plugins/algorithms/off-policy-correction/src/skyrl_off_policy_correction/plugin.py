"""The correction as a wrapper around any loss. What it does: this package's docstring."""

from collections.abc import Generator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from pydantic import BaseModel

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
    """Correct, where a key of the section asks for it."""
    inner = yield
    config = settings[OffPolicyCorrectionConfig]
    return corrected(inner, config) if inner is not None and config.is_on else inner


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
