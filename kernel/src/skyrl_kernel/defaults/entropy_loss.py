"""An entropy bonus, around any policy loss.

Source: Williams and Peng 1991, "Function optimization using connectionist
reinforcement learning algorithms".
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
    """Add the term ``entropy`` where ``trainer.algorithm.use_entropy_loss`` asks for it."""
    inner = yield
    algorithm = settings[AlgorithmConfig]
    if inner is None or not algorithm.use_entropy_loss:
        return inner
    return with_entropy(inner, algorithm.entropy_loss_coef)


def with_entropy(inner: Loss, coefficient: float) -> Loss:
    """``inner`` minus ``coefficient`` × the policy's entropy per token, in nats."""

    def fn(inputs: "LossInputs") -> "LossTerms":
        out = inner(inputs)
        return replace(out, terms={**out.terms, "entropy": inputs.entropy})

    return replace(inner, fn=fn, coefficients={**inner.coefficients, "entropy": -coefficient})
