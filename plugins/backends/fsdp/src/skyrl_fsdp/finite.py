"""NaN and infinity are refused before they reach a weight, naming where they came from."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from skyrl_kernel.errors import NonFiniteError
from skyrl_kernel.records import TrainingSample

_SHOWN = 5
"""Trajectories named in one message."""


def require_finite(quantities: Mapping[str, Tensor], samples: Sequence[TrainingSample]) -> None:
    """Refuse NaN and infinity.

    Args:
        quantities: Name → [N] values of the trained tokens, packed in row order.
        samples: The rows that they belong to.

    Raises:
        NonFiniteError: Names the first bad quantity, and the trajectories.
    """
    for name, values in quantities.items():
        finite = torch.isfinite(values.detach())
        if bool(finite.all()):
            continue
        bad = ~finite.cpu().numpy()
        owners = np.concatenate([np.full(s.loss_mask.sum(), i) for i, s in enumerate(samples)])
        ids = list(dict.fromkeys(samples[i].trajectory_id for i in owners[bad]))
        more = f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else ""
        raise NonFiniteError(
            f"{name} of {int(bad.sum())} tokens are NaN or infinite, in trajectories "
            f"{', '.join(ids[:_SHOWN])}{more}; the weights were not changed. Common causes: a "
            "learning rate too high, rewards of very different size, or a loss that divides by 0"
        )


def require_finite_gradient(norm: float, trajectory_ids: Sequence[str]) -> None:
    """The same for the gradient's norm, which belongs to the mini-batch as a whole."""
    if not np.isfinite(norm):
        ids = list(dict.fromkeys(trajectory_ids))
        more = f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else ""
        raise NonFiniteError(
            f"the gradient's norm is {norm} in the mini-batch of trajectories "
            f"{', '.join(ids[:_SHOWN])}{more}; the weights were not changed. Log-probs and losses "
            "were finite, so the backward pass overflowed: try a lower learning rate, or "
            "trainer.bf16=false"
        )
