"""Which tokens of a mini-batch drive its entropy down: what Clip-Cov and KL-Cov share.

Cui et al. 2025, "The Entropy Mechanism of Reinforcement Learning for Reasoning
Language Models", arXiv:2505.22617. The policy's entropy falls by the covariance of
log-prob and advantage; a token's part in it is

    c = (A - mean(A))·(logπ - mean(logπ))

with means over all trained tokens of the mini-batch. The pass ``prepare`` therefore
collects every token's A and logπ first, and a key of the token. Tokens are named by
their keys, so the same ones are chosen however the mini-batch is split over
micro-batches and ranks; and the keys' order is as good as random, so a choice
among equals follows it.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from skyrl_kernel.torch import LossInputs

_ALL = 2**64


def token_keys(seed: int, trajectory: "Tensor", position: "Tensor") -> "Tensor":
    """A pseudo-random number of each token: a hash of (seed, trajectory, position).

    Tokens of two rows of one trajectory that stand at the same place have the same
    key, and are chosen together.

    Args:
        seed: ``LossInputs.seed``, another one for each update.
        trajectory: [N] int64 number of the token's trajectory in the mini-batch.
        position: [N] int64 place of the token in its row.

    Returns:
        [N] int64.
    """
    start = trajectory.new_full((), _signed(seed))
    return _mixed(_mixed(_mixed(start) + trajectory) + position)


def _mixed(x: "Tensor") -> "Tensor":
    """SplitMix64's step (Steele, Lea, Flood 2014): each bit in changes half of the bits out."""
    x = x + _signed(0x9E3779B97F4A7C15)  # int64 wraps around, as is meant
    x = (x ^ _shifted(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shifted(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shifted(x, 31)


def _shifted(x: "Tensor", bits: int) -> "Tensor":
    """``x >> bits`` of an unsigned number: torch repeats the sign instead of zeros."""
    shifted: Tensor = (x >> bits) & (2 ** (64 - bits) - 1)
    return shifted


def _signed(number: int) -> int:
    """The int64 of the same 64 bits."""
    number %= _ALL
    return number - _ALL if number >= _ALL // 2 else number


def columns(inputs: "LossInputs") -> dict[str, "Tensor"]:
    """What must be known of every token of the mini-batch: its key, log-prob and advantage."""
    return {
        "key": token_keys(inputs.seed, inputs.trajectory, inputs.position),
        "logprobs": inputs.logprobs.detach(),
        "advantages": inputs.advantages,
    }


def by_key(minibatch: Mapping[str, "Tensor"]) -> dict[str, "Tensor"]:
    """The [M] columns in the order of their keys, so that sums round the same way each time."""
    order = minibatch["key"].argsort()
    return {name: column[order] for name, column in minibatch.items()}


def covariances(logprobs: "Tensor", advantages: "Tensor") -> "Tensor":
    """``c`` of each token; their mean is the covariance.

    Args:
        logprobs: [M] of all trained tokens of the mini-batch, nats.
        advantages: [M], as the advantage stage gave them.

    Returns:
        [M] float64.

    Example:
        >>> import torch
        >>> covariances(torch.tensor([-1.0, -3.0]), torch.tensor([2.0, 0.0])).tolist()
        [1.0, 1.0]
    """
    logprobs, advantages = logprobs.double(), advantages.double()
    return (advantages - advantages.mean()) * (logprobs - logprobs.mean())


def are_among(inputs: "LossInputs", chosen: "Tensor") -> "Tensor":
    """[N] bool: the token's key is one of the ``chosen``."""
    import torch

    return torch.isin(token_keys(inputs.seed, inputs.trajectory, inputs.position), chosen)
