"""Negative log-likelihood of the trained tokens."""

from typing import TYPE_CHECKING

from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.protocols import Loss

if TYPE_CHECKING:
    from skyrl_kernel.torch import LossInputs, LossTerms


@hookimpl
def loss(name: str) -> Loss | None:
    """The loss of ``trainer.algorithm.policy_loss_type=cross_entropy``; ignores advantages."""
    return Loss(fn=cross_entropy) if name == "cross_entropy" else None


def cross_entropy(inputs: "LossInputs") -> "LossTerms":
    """``-log p`` per token, in nats."""
    from skyrl_kernel.torch import LossTerms

    return LossTerms(terms={"policy": -inputs.logprobs})
