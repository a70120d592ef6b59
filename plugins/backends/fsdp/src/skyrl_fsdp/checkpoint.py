"""A trainer's state as files: safetensors for tensors, json for numbers, no pickle.

weights.safetensors     Hugging Face name → tensor
optimizer.safetensors   Hugging Face name | state key → tensor
trainer.json            update counts, and what must agree to continue
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer

from skyrl_kernel.errors import CheckpointError

WEIGHTS = "weights.safetensors"
OPTIMIZER = "optimizer.safetensors"
NUMBERS = "trainer.json"
_SEPARATOR = "|"


def write(
    folder: Path, weights: Mapping[str, Tensor], optimizer: Mapping[str, Tensor], numbers: object
) -> None:
    """Write the three files into ``folder``, which is made if needed."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, tensors in ((WEIGHTS, weights), (OPTIMIZER, optimizer)):
        save_file({key: t.detach().cpu().contiguous() for key, t in tensors.items()}, folder / name)
    (folder / NUMBERS).write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file that `write` wrote, on the CPU.

    Raises:
        CheckpointError: It is missing or damaged.
    """
    try:
        return dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(_damaged(path, error)) from error


def read_numbers(folder: Path) -> dict[str, object]:
    """The numbers that `write` wrote.

    Raises:
        CheckpointError: They are missing or damaged.
    """
    path = folder / NUMBERS
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(_damaged(path, error)) from error


@torch.no_grad()
def put_weights(path: Path, targets: Mapping[str, Tensor]) -> None:
    """Copy the tensors of a weights file over the targets, all or none of them.

    Raises:
        CheckpointError: Names or shapes differ.
    """
    found = read_tensors(path)
    if different := sorted(found.keys() ^ targets.keys()):
        raise CheckpointError(
            f"'{path}' is of another model: {len(different)} tensors are only in one of the two, "
            f"such as '{different[0]}'; resume with the model that the run began with"
        )
    for name, target in targets.items():
        if found[name].shape != target.shape:
            raise CheckpointError(
                f"'{path}' is of another model: '{name}' has shape {tuple(found[name].shape)}, the "
                f"model's has {tuple(target.shape)}; resume with the model that the run began with"
            )
    for name, target in targets.items():
        target.copy_(found[name])


def optimizer_tensors(
    optimizers: Sequence[Optimizer], names: Mapping[Tensor, str]
) -> dict[str, Tensor]:
    """Every state tensor under ``name|key``, such as ``lm_head.weight|exp_avg``."""
    return {
        f"{names[parameter]}{_SEPARATOR}{key}": value
        for optimizer in optimizers
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def put_optimizer_tensors(
    path: Path, optimizers: Sequence[Optimizer], names: Mapping[Tensor, str]
) -> None:
    """Give the optimizers the states that `optimizer_tensors` listed.

    Raises:
        CheckpointError: The file has states of parameters that no optimizer has.
    """
    states: dict[str, dict[str, Tensor]] = {}
    for name, value in read_tensors(path).items():
        parameter, _, key = name.rpartition(_SEPARATOR)
        states.setdefault(parameter, {})[key] = value
    for optimizer in optimizers:
        numbered = [p for group in optimizer.param_groups for p in group["params"]]
        mine = {
            number: states.pop(names[parameter])
            for number, parameter in enumerate(numbered)
            if names[parameter] in states
        }
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": mine, "param_groups": groups})
    if states:
        raise CheckpointError(
            f"'{path}' has the optimizer state of {len(states)} parameters that are not trained, "
            f"such as '{next(iter(states))}'; resume with the model that the run began with"
        )


def _damaged(path: Path, error: Exception) -> str:
    return (
        f"the trainer's checkpoint file '{path}' cannot be read ({type(error).__name__}: {error}); "
        "use an older checkpoint with trainer.resume_mode=from_path and trainer.resume_path"
    )
