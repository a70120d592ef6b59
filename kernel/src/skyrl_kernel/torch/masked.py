"""Statistics of the entries where a mask is True."""

import torch
from torch import Tensor


def masked_mean(values: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Mean of ``values`` where ``mask`` is True; 0 where it never is.

    Args:
        values: Any shape; masked entries may be NaN.
        mask: Same shape, bool or 0/1.
        dim: Reduce over this dimension, or over all.

    Example:
        >>> masked_mean(torch.tensor([1.0, 2.0, 9.0]), torch.tensor([True, True, False]))
        tensor(1.5000)
    """
    mask = mask.bool()
    kept = torch.where(mask, values, torch.zeros_like(values))
    if dim is None:
        return kept.sum() / mask.sum().clamp(min=1)
    return kept.sum(dim) / mask.sum(dim).clamp(min=1)


def masked_var(values: Tensor, mask: Tensor) -> Tensor:
    """Sample variance (n - 1) of ``values`` where ``mask`` is True.

    Raises:
        ValueError: Fewer than two entries are True: the variance is undefined.

    Example:
        >>> masked_var(torch.tensor([1.0, 3.0, 9.0]), torch.tensor([True, True, False]))
        tensor(2.)
    """
    count = int(mask.sum())
    if count < 2:
        raise ValueError(
            f"the sample variance of {count} unmasked values is undefined; at least 2 are needed"
        )
    centred = torch.where(mask.bool(), values - masked_mean(values, mask), torch.zeros_like(values))
    return (centred**2).sum() / (count - 1)


def masked_whiten(values: Tensor, mask: Tensor, eps: float = 1e-8) -> Tensor:
    """``values`` shifted and scaled to mean 0 and variance 1 over the unmasked entries."""
    return (values - masked_mean(values, mask)) * torch.rsqrt(masked_var(values, mask) + eps)
