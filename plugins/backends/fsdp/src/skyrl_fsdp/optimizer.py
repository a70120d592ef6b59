"""The optimizers of one model, their learning rate over time, and the step itself."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import AdamW, Muon, Optimizer
from transformers import PreTrainedModel

from skyrl_fsdp.critic import Critic
from skyrl_fsdp.sharding import local, mesh_of, whole
from skyrl_kernel.config.roles import OptimizerConfig
from skyrl_kernel.errors import ConfigError


def make_optimizers(module: PreTrainedModel | Critic, config: OptimizerConfig) -> list[Optimizer]:
    """AdamW for every parameter that is trained; with ``name=muon``, Muon for the hidden matrices.

    Hidden matrices are the two-dimensional weights that are neither embeddings
    nor the output head: Muon orthogonalises an update, which means something
    only for a map between hidden spaces.

    Source:
        K. Jordan 2024, "Muon: an optimizer for hidden layers in neural networks";
        `torch.optim.Muon` with its defaults (momentum 0.95, Nesterov).
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    hidden = hidden_matrices(module) if config.name == "muon" else []
    ids = {id(parameter) for parameter in hidden}
    others = [parameter for parameter in parameters if id(parameter) not in ids]
    optimizers: list[Optimizer] = []
    if others:  # adapters are hidden matrices all
        optimizers.append(
            AdamW(
                # Torch's fused step takes parts of parameters, or whole ones, and no mixture.
                [{"params": same} for same in (_cut(others, True), _cut(others, False)) if same],
                lr=config.lr,
                betas=config.adam_betas,
                weight_decay=config.weight_decay,
                fused=True,
            )
        )
    if hidden:
        optimizers.append(Muon(hidden, lr=config.muon_lr, weight_decay=config.weight_decay))
    return optimizers


def hidden_matrices(module: PreTrainedModel | Critic) -> list[Parameter]:
    """Two-dimensional parameters that are trained, and no embedding and no output head."""
    outer = {id(m.weight) for m in module.modules() if isinstance(m, torch.nn.Embedding)}
    outer.add(id(module.get_output_embeddings().weight))
    trained = (p for p in module.parameters() if p.requires_grad)
    return [p for p in trained if p.ndim == 2 and id(p) not in outer]


def _cut(parameters: Sequence[Parameter], cut: bool) -> list[Parameter]:
    """Those that this rank has a part of, or those that it has whole."""
    return [p for p in parameters if (mesh_of(p) is not None) == cut]


def rate_factor(
    update: int,
    config: OptimizerConfig,
    total_updates: int | None,
    *,
    key: str = "trainer.policy.optimizer_config",
) -> float:
    """What the peak rate is multiplied by.

    The first update already moves the weights: warm-up rises from 1/n, not from
    0, and ``linear`` would reach its end after the last update.

    Args:
        update: Optimizer steps made before this one.
        config: Warm-up and scheduler.
        total_updates: Of the whole run; needed by ``linear``.
        key: Where ``config`` stands in the tree, for messages.

    Raises:
        ConfigError: ``linear`` without ``total_updates``.

    Example: 2 updates of warm-up, 6 in all, down to a tenth.
        >>> config = OptimizerConfig(num_warmup_steps=2, scheduler="linear", min_lr_frac=0.1)
        >>> [round(rate_factor(k, config, 6), 3) for k in range(6)]
        [0.5, 1.0, 1.0, 0.775, 0.55, 0.325]
    """
    warmup = config.num_warmup_steps
    if update < warmup:
        return (update + 1) / warmup
    if config.scheduler == "constant_with_warmup":
        return 1.0
    if total_updates is None:
        raise ConfigError(
            f"{key}.scheduler=linear needs the number of updates of the run, which this run did not "
            "give; use constant_with_warmup"
        )
    passed = (update - warmup) / max(1, total_updates - warmup)
    return 1.0 - (1.0 - config.min_lr_frac) * min(1.0, passed)


def set_rates(optimizers: Sequence[Optimizer], factor: float) -> None:
    """Set every group's rate to its peak (`Optimizer.defaults`) times ``factor``."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = optimizer.defaults["lr"] * factor


@torch.no_grad()
def clip_gradients(parameters: Sequence[Parameter], max_norm: float) -> float:
    """Scale gradients down so that their norm, taken together, is at most ``max_norm``.

    Args:
        parameters: Parts of them may be on other ranks, of each on its own mesh: torch's
            `clip_grad_norm_` refuses several.
        max_norm: Above 0.

    Returns:
        The norm before, over all ranks.
    """
    by_mesh: dict[object, list[Parameter]] = defaultdict(list)
    for parameter in parameters:
        if parameter.grad is not None:
            by_mesh[mesh_of(parameter)].append(parameter)
    norms = [
        whole(get_total_norm([p.grad for p in of_one if p.grad is not None]))
        for of_one in by_mesh.values()
    ]
    # Of one mesh as it is: a square and its root would change the last bit.
    norm = norms[0] if len(norms) == 1 else torch.tensor(norms).norm()
    for of_one in by_mesh.values():
        clip_grads_with_norm_(of_one, max_norm, norm)
    return float(norm)


@torch.no_grad()
def step_and_compare(
    optimizers: Sequence[Optimizer], anywhere: Callable[[bool], bool] = bool
) -> bool:
    """Make the optimizer step; True if it changed any bit of any parameter.

    Parameters are stepped one at a time, smallest first, each compared with a
    copy, until one changes; all others then step together. So the usual price is
    the copy of one norm, and an unchanged model is known for certain.

    Args:
        optimizers: Of one model.
        anywhere: Whether it is true on any of the ranks that have the parameters' parts.
    """
    gradients = {
        parameter: parameter.grad
        for parameter in sorted(_parameters(optimizers), key=Tensor.numel)
        if parameter.grad is not None
    }
    for parameter in gradients:
        parameter.grad = None
    waiting = iter(gradients.items())
    changed = False
    while not changed and (entry := next(waiting, None)) is not None:
        parameter, gradient = entry
        before = parameter.clone()
        parameter.grad = gradient
        for optimizer in optimizers:
            optimizer.step()
        parameter.grad = None
        changed = anywhere(not torch.equal(local(before), local(parameter)))
    for parameter, gradient in waiting:
        parameter.grad = gradient
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return changed


def _parameters(optimizers: Sequence[Optimizer]) -> Iterator[Parameter]:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            yield from group["params"]
