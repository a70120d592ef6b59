"""Log-probs and entropy from logits, in float32 at least, whatever the model computes in."""

from torch import Tensor

from skyrl_kernel.torch.precision import at_least_float32


def selected_logprobs(logits: Tensor, tokens: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-prob in nats of each token under its logits.

    Args:
        logits: [..., V].
        tokens: [...] int64 ids.
        temperature: Divides the logits; above 0.

    Returns:
        [...] float32, or float64 if the logits are.
    """
    scaled = at_least_float32(logits) / temperature
    chosen = scaled.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    return chosen - scaled.logsumexp(-1)


def entropy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Entropy in nats of the distribution of each row of logits.

    Args:
        logits: [..., V].
        temperature: Divides the logits; above 0.

    Returns:
        [...] float32, or float64 if the logits are.

    Example:
        >>> import torch
        >>> entropy(torch.zeros(1, 4)).item()  # ln 4
        1.386294...
    """
    logprobs = (at_least_float32(logits) / temperature).log_softmax(-1)
    return -(logprobs.exp() * logprobs).sum(-1)
