"""A KL term against the frozen reference, around any policy loss.

Source: Shao et al. 2024, DeepSeekMath, arXiv:2402.03300, eq. 3-4. The estimator
is a setting; its gradient is taken as it stands, as in the paper and in SkyRL.
"""

from collections.abc import Generator
from dataclasses import replace
from typing import TYPE_CHECKING

from skyrl_kernel.config.algorithm import AlgorithmConfig
from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.protocols import Loss, Settings

if TYPE_CHECKING:
    from skyrl_kernel.torch import LossInputs, LossTerms


@hookimpl(wrapper=True)
def loss(settings: Settings) -> Generator[None, Loss | None, Loss | None]:
    """Add the term ``kl`` where ``trainer.algorithm.use_kl_loss`` asks for it."""
    inner = yield
    algorithm = settings[AlgorithmConfig]
    if inner is None or not algorithm.use_kl_loss:
        return inner
    return with_kl(inner, algorithm.kl_estimator_type, algorithm.kl_loss_coef)


def with_kl(inner: Loss, estimator: str, coefficient: float) -> Loss:
    """``inner`` plus ``coefficient`` × KL(policy ‖ reference) per token.

    The trainer reports the term as ``policy_kl``: its mean over each trajectory's
    tokens, then over trajectories, in nats (SkyRL's definition).
    """

    def fn(inputs: "LossInputs") -> "LossTerms":
        from skyrl_kernel.torch import kl_estimate

        assert inputs.ref_logprobs is not None
        kl = kl_estimate(inputs.logprobs, inputs.ref_logprobs, estimator)
        out = inner(inputs)
        return replace(out, terms={**out.terms, "kl": kl})

    return replace(
        inner,
        fn=fn,
        needs=inner.needs | {"ref_logprobs"},
        coefficients={**inner.coefficients, "kl": coefficient},
    )
