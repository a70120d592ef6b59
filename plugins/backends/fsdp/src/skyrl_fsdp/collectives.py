"""What partners send each other in a forward pass, with the gradients that go back."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def exchanged(parts: Tensor, group: dist.ProcessGroup) -> Tensor:
    """[s, …] a part for each of s partners → [s, …] a part from each. The gradient goes back so."""
    received: Tensor = _Exchange.apply(parts, group)  # type: ignore[no-untyped-call]
    return received


def gathered(values: Tensor, most: int, group: dist.ProcessGroup, index: int) -> Tensor:
    """[n, …] of each of s partners → [s × most, …] of all, each filled up with 0.

    All partners go on alike with all of it, so each has the whole gradient: its own
    part of that goes back, and nothing is sent.

    Args:
        values: This partner's, n at most ``most``.
        most: The same on all partners.
        group: Of the partners.
        index: Of this one.
    """
    found: Tensor = _Gather.apply(values, most, group, index)  # type: ignore[no-untyped-call]
    return found


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, parts: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        parts = parts.contiguous()
        received = torch.empty_like(parts)
        dist.all_to_all_single(received, parts, group=group)
        return received

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return exchanged(gradient, ctx.group), None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, values: Tensor, most: int, group: dist.ProcessGroup, index: int
    ) -> Tensor:
        ctx.own = slice(index * most, index * most + len(values))
        filled = values.new_zeros(most, *values.shape[1:])
        filled[: len(values)] = values
        parts = [torch.empty_like(filled) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, filled, group=group)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return gradient[ctx.own], None, None, None
