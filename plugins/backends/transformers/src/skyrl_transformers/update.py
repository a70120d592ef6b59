"""Weights arrive as a transaction: all of them and the right ones, or the old ones stay."""

from collections.abc import Iterable

import torch
from torch import Tensor

from skyrl_kernel.errors import WeightSyncError
from skyrl_transformers.loading import distinct_tensors


class WeightUpdate:
    """New weights of one version, kept aside until all are there.

    Args:
        module: The model to be updated.
        version: Policy version of the new weights.
    """

    def __init__(self, module: torch.nn.Module, version: int) -> None:
        self.version = version
        self._targets = distinct_tensors(module)
        self._received: dict[str, Tensor] = {}

    def receive(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Copy some of the tensors aside.

        Raises:
            WeightSyncError: A name is unknown or came twice, or a shape or kind of number differs.
        """
        for name, tensor in weights:
            if name not in self._targets:
                raise self._refusal(
                    f"the tensor '{name}' is not in the engine's model, which has "
                    f"{', '.join(list(self._targets)[:3])}, …"
                )
            if name in self._received:
                raise self._refusal(f"the tensor '{name}' came twice")
            target = self._targets[name]
            if tensor.shape != target.shape:
                raise self._refusal(
                    f"the tensor '{name}' has shape {tuple(tensor.shape)}, "
                    f"the engine's has {tuple(target.shape)}"
                )
            if tensor.is_floating_point() != target.is_floating_point():
                raise self._refusal(
                    f"the tensor '{name}' holds {tensor.dtype}, the engine's {target.dtype}"
                )
            self._received[name] = tensor.detach().to(target.device, target.dtype, copy=True)

    @torch.no_grad()
    def commit(self) -> None:
        """Put all tensors into the model.

        Raises:
            WeightSyncError: Some are missing; nothing was changed.
        """
        missing = [name for name in self._targets if name not in self._received]
        if missing:
            shown = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
            raise self._refusal(
                f"{len(missing)} of its {len(self._targets)} tensors are missing: {shown}"
            )
        for name, target in self._targets.items():
            target.copy_(self._received[name])

    def _refusal(self, found: str) -> WeightSyncError:
        return WeightSyncError(
            f"the update to policy version {self.version} was refused: {found}. The engine keeps "
            "its old weights; send every tensor once, as the trainer's weights() names them"
        )
