"""Spreads a model over ranks with PyTorch's FSDP2: each keeps a part of every matrix.

A layer is gathered when it computes and given back afterwards. What the plain calls
of `fully_shard` get wrong, or leave to the caller, is decided here:

- Gradients are summed over ranks. FSDP2 averages, but the weight of each token was
  computed from the whole mini-batch.
- With weights gathered in bfloat16, what the embedding gives is float32, so that the sums
  along the layers are, as in one process. Norms and biases, and a critic's head, which are small,
  are whole and float32 on every rank: FSDP2 knows nothing of them, `sum_whole` adds their gradients up.
- A model that was built without weights is filled layer by layer as it is cut up: no rank
  holds more than its part and one layer. Rotary frequencies, which no file has, are computed.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.distributed.tensor import DTensor, Shard
from torch.nn import Module, Parameter
from transformers import PreTrainedModel

from skyrl_fsdp.critic import Critic
from skyrl_kernel.config.sharding import ShardingConfig
from skyrl_kernel.errors import ModelError


def shard(
    module: PreTrainedModel | Critic,
    mesh: DeviceMesh,
    config: ShardingConfig,
    *,
    bf16: bool,
    device: torch.device,
    tensors: Mapping[str, Tensor] | None = None,
) -> None:
    """Cut every matrix of a model into a part per rank, in place.

    Args:
        module: Calls of it compute as before; its parameters become parts.
        mesh: Of all ranks.
        config: ``….fsdp_config`` of its role.
        bf16: ``trainer.bf16``.
        device: Where it computes.
        tensors: Its weights by name, read one at a time, if it was built on the
            device ``meta``.

    Raises:
        ModelError: Something of the model is in no file and cannot be computed.
    """
    precision = config.mixed_precision
    gathered = torch.bfloat16 if bf16 and precision.param_dtype == "bf16" else None
    reduced = torch.bfloat16 if precision.reduce_dtype == "bf16" else torch.float32
    options: dict[str, Any] = {
        "mesh": mesh,
        "mp_policy": MixedPrecisionPolicy(
            param_dtype=gathered, reduce_dtype=reduced, cast_forward_inputs=False
        ),
        "offload_policy": CPUOffloadPolicy(pin_memory=device.type == "cuda")
        if config.cpu_offload
        else OffloadPolicy(),
    }
    fill = _Filling(module, tensors, device)
    for name, layer in _layers(module):
        fill(layer, f"{name}.")
        fully_shard(
            layer,
            reshard_after_forward=config.reshard_after_forward,
            ignored_params=_small(layer),
            **options,
        )
    fill(module, "")
    fully_shard(module, ignored_params=_small(module), **options)
    body = module.body if isinstance(module, Critic) else module
    if gathered is not None:
        body.get_input_embeddings().register_forward_hook(_in_float32)
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.set_gradient_divide_factor(1.0)
            # Without it a factor becomes a scaled reduction, which gloo does not have.
            part.set_force_sum_reduction_for_comms(True)


@torch.no_grad()
def sum_whole(parameters: Iterable[Parameter]) -> None:
    """Add up the gradients of parameters that every rank has whole, over all ranks, in one go."""
    gradients = [p.grad for p in parameters if not isinstance(p, DTensor) and p.grad is not None]
    if not gradients:
        return
    together = torch.cat([gradient.flatten() for gradient in gradients])
    torch.distributed.all_reduce(together)
    parts = torch.split(together, [gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


def abandon_pass(module: Module) -> None:
    """Make a model ready for its next pass after an error in the middle of one."""
    if isinstance(module, FSDPModule) and hasattr(module, "reset_iter_state"):  # since torch 2.13
        # It fails where there was no pass yet, nor anything to reset.
        with suppress(AttributeError):
            module.reset_iter_state()


def reshard(module: Module) -> None:
    """Give back what the last forward pass left gathered: the root's weights, for a backward pass."""
    if isinstance(module, FSDPModule):
        module.reshard()


def whole(tensor: Tensor) -> Tensor:
    """A tensor of which each rank has a part, on every rank; any other as it is. All ranks call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """This rank's part."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def mesh_of(tensor: Tensor) -> DeviceMesh | None:
    """The ranks that have the other parts; None of a tensor that is not cut."""
    return tensor.device_mesh if isinstance(tensor, DTensor) else None


def first_row(tensor: Tensor) -> int:
    """Where this rank's part begins in the first dimension; 0 of a tensor that is not cut."""
    if not isinstance(tensor, DTensor):
        return 0
    (dimension,) = [d for d, place in enumerate(tensor.placements) if isinstance(place, Shard)]
    per_rank = -(-tensor.shape[0] // tensor.device_mesh.size(dimension))
    return min(tensor.device_mesh.get_local_rank(dimension) * per_rank, tensor.shape[0])


def keeps_a_copy(tensor: Tensor) -> bool:
    """Whether an earlier rank has the same part: `fsdp_size` makes copies, and small things are not cut."""
    if not isinstance(tensor, DTensor):
        return torch.distributed.is_initialized() and torch.distributed.get_rank() > 0
    mesh = tensor.device_mesh
    return any(
        mesh.get_local_rank(dimension) > 0
        for dimension, place in enumerate(tensor.placements)
        if not isinstance(place, Shard)
    )


def like(part: Tensor, tensor: Tensor) -> Tensor:
    """A rank's part as a tensor of the same kind as ``tensor``, and where that is."""
    if not isinstance(tensor, DTensor):
        return part
    # Not `DTensor.from_local`: it moves the part to the mesh's device, where an offloaded optimizer has no room.
    made = torch.empty_like(tensor, dtype=part.dtype)
    local(made).copy_(part)
    return made


def _layers(module: PreTrainedModel | Critic) -> Iterator[tuple[str, Module]]:
    """The layers that transformers never splits, with their names."""
    body = module.body if isinstance(module, Critic) else module
    kinds = set(body._no_split_modules or ())
    for name, part in module.named_modules():
        if type(part).__name__ in kinds:
            yield name, part


def _small(module: Module) -> set[Parameter]:
    """Norms and biases, and a critic's head."""
    head = set(module.head[1].parameters()) if isinstance(module, Critic) else set()
    return {parameter for parameter in module.parameters() if parameter.ndim < 2} | head


def _in_float32(module: Module, arguments: Any, output: Tensor) -> Tensor:
    return output.float()


class _Filling:
    """Gives the parts of a model their weights. Those that it has already stay."""

    def __init__(
        self,
        module: PreTrainedModel | Critic,
        tensors: Mapping[str, Tensor] | None,
        device: torch.device,
    ) -> None:
        body = module.body if isinstance(module, Critic) else module
        self._initialise: Callable[[Module], None] = body._init_weights
        self._tensors = tensors or {}
        self._device = device
        self._made: dict[Parameter, Parameter] = {}
        """Empty → filled: tied weights stay one."""

    @torch.no_grad()
    def __call__(self, part: Module, prefix: str) -> None:
        for path, one in part.named_modules():
            name = f"{prefix}{path}." if path else prefix
            for key, parameter in list(one.named_parameters(recurse=False)):
                if parameter.is_meta:
                    one.register_parameter(key, self._filled(parameter, f"{name}{key}"))
            empty = [key for key, buffer in one.named_buffers(recurse=False) if buffer.is_meta]
            if empty:
                self._fill_buffers(one, name, empty)

    def _filled(self, parameter: Parameter, name: str) -> Parameter:
        if parameter not in self._made:
            tensor = self._tensors[name].to(self._device, torch.float32, copy=True)
            self._made[parameter] = Parameter(tensor, parameter.requires_grad)
        return self._made[parameter]

    def _fill_buffers(self, one: Module, name: str, empty: list[str]) -> None:
        """Those in files are read; the others, such as rotary frequencies, are computed."""
        computed = [key for key in empty if f"{name}{key}" not in self._tensors]
        for key in empty:
            buffer = getattr(one, key)
            if key in computed:  # NaN is found below, should the model leave it as it is
                fill = torch.nan if buffer.is_floating_point() else 0
                setattr(one, key, torch.full_like(buffer, fill, device=self._device))
            else:
                stored = self._tensors[f"{name}{key}"]
                setattr(one, key, stored.to(self._device, buffer.dtype, copy=True))
        if not computed:
            return
        self._initialise(one)
        if left := [key for key in computed if not bool(getattr(one, key).isfinite().all())]:
            raise ModelError(
                f"'{name}{left[0]}' of {type(one).__name__} is in no file of the model, and transformers does "
                "not say how to compute it, so the model cannot be loaded a layer at a time"
            )
