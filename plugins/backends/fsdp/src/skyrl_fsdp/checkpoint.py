"""A trainer's state as files: safetensors for tensors, json for numbers, no pickle.

weights.safetensors     Hugging Face name → tensor
optimizer.safetensors   Hugging Face name | state key → tensor
trainer.json            update counts, and what must agree to continue

Of several ranks each writes its own part, ``weights-00002-of-00004.safetensors``; the file's
metadata says which rows of each tensor it has. Any number of ranks reads what any
number wrote: each takes the rows that it needs, from the files that have them.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.optim import Optimizer

from skyrl_fsdp.sharding import first_row, keeps_a_copy, like, local
from skyrl_kernel.errors import CheckpointError

WEIGHTS = "weights"
OPTIMIZER = "optimizer"
NUMBERS = "trainer.json"
_SEPARATOR = "|"
_ROWS = "rows"
"""Key of a file's metadata: json of name → [first row here, rows of the whole tensor]."""


def write_part(
    folder: Path, name: str, tensors: Mapping[str, Tensor], *, rank: int = 0, world: int = 1
) -> None:
    """Write this rank's part of the tensors.

    Args:
        folder: It is there.
        name: ``weights`` or ``optimizer``.
        tensors: By name; the same names on all ranks.
        rank: This one.
        world: How many write.
    """
    mine = {key: tensor for key, tensor in tensors.items() if not keeps_a_copy(tensor)}
    rows = {
        key: [first_row(tensor), tensor.shape[0]]
        for key, tensor in mine.items()
        if local(tensor).shape != tensor.shape
    }
    save_file(
        {key: local(tensor).detach().cpu().contiguous() for key, tensor in mine.items()},
        folder / _file(name, rank, world),
        metadata={_ROWS: json.dumps(rows)} if rows else None,
    )


def write_numbers(folder: Path, numbers: object) -> None:
    """Write what `read_numbers` reads."""
    (folder / NUMBERS).write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")


def read_numbers(folder: Path) -> dict[str, object]:
    """The numbers that `write_numbers` wrote.

    Raises:
        CheckpointError: They are missing or damaged.
    """
    path = folder / NUMBERS
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(_damaged(path, error)) from error


@dataclass(frozen=True, kw_only=True, slots=True)
class _Piece:
    """Some rows of a tensor in one file."""

    file: Any
    first: int
    shape: tuple[int, ...]


class Parts(Mapping[str, tuple[int, ...]]):
    """Name → shape of the tensors that all ranks wrote together; `rows` reads them.

    A context: the files are open in it.

    Args:
        folder: A checkpoint.
        name: ``weights`` or ``optimizer``.

    Raises:
        CheckpointError: A file is missing or damaged.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._pieces: dict[str, list[_Piece]] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self.path = folder / _file(name, 0, 1)
        self._open = ExitStack()
        for path in _files(folder, name):
            try:
                self._index(self._open.enter_context(safe_open(path, framework="pt")))
            except (OSError, SafetensorError, ValueError) as error:
                self._open.close()
                raise CheckpointError(_damaged(path, error)) from error

    def _index(self, file: Any) -> None:
        rows: dict[str, list[int]] = json.loads((file.metadata() or {}).get(_ROWS, "{}"))
        for name in file.keys():  # noqa: SIM118
            shape = tuple(file.get_slice(name).get_shape())
            first, whole = rows.get(name, (0, None))
            self._pieces.setdefault(name, []).append(_Piece(file=file, first=first, shape=shape))
            self._shapes[name] = shape if whole is None else (whole, *shape[1:])

    def __enter__(self) -> "Parts":
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def rows(self, name: str, first: int, count: int) -> Tensor:
        """[count, …] of a tensor, from row ``first`` on; a number without dimensions whole."""
        pieces = self._pieces[name]
        if not self._shapes[name]:
            tensor: Tensor = pieces[0].file.get_tensor(name)
            return tensor
        found: list[Tensor] = []
        for piece in sorted(pieces, key=lambda piece: piece.first):
            begin = max(first - piece.first, 0)
            end = min(first + count - piece.first, piece.shape[0])
            if begin < end or not found:
                found.append(piece.file.get_slice(name)[begin : max(begin, end)])
        return torch.cat(found)

    def part_of(self, name: str, target: Tensor) -> Tensor:
        """The rows that this rank has of ``target``, or all that it has none cut of."""
        mine = local(target)
        return self.rows(name, first_row(target), mine.shape[0] if mine.ndim else 0)

    def __getitem__(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


@torch.no_grad()
def put_weights(folder: Path, targets: Mapping[str, Tensor]) -> None:
    """Copy the weights of a checkpoint over the targets, all or none of them.

    Raises:
        CheckpointError: Names or shapes differ, or a file is missing or damaged.
    """
    with Parts(folder, WEIGHTS) as parts:
        if different := sorted(parts.keys() ^ targets.keys()):
            raise CheckpointError(
                f"'{parts.path}' is of another model: {len(different)} tensors are only in one of the two, "
                f"such as '{different[0]}'; resume with the model that the run began with"
            )
        for name, target in targets.items():
            if parts[name] != target.shape:
                raise CheckpointError(
                    f"'{parts.path}' is of another model: '{name}' has shape {parts[name]}, the "
                    f"model's has {tuple(target.shape)}; resume with the model that the run began with"
                )
        for name, target in targets.items():
            local(target).copy_(parts.part_of(name, target))


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
    folder: Path, optimizers: Sequence[Optimizer], names: Mapping[Tensor, str]
) -> None:
    """Give the optimizers the states that `optimizer_tensors` listed.

    Raises:
        CheckpointError: The checkpoint has states of parameters that no optimizer has, or a
            file is missing or damaged.
    """
    with Parts(folder, OPTIMIZER) as parts:
        keys: dict[str, list[str]] = {}
        for name in parts:
            parameter_name, _, key = name.rpartition(_SEPARATOR)
            keys.setdefault(parameter_name, []).append(key)
        for optimizer in optimizers:
            numbered = [p for group in optimizer.param_groups for p in group["params"]]
            mine = {
                number: {
                    key: _state(parts, f"{names[parameter]}{_SEPARATOR}{key}", parameter)
                    for key in keys.pop(names[parameter])
                }
                for number, parameter in enumerate(numbered)
                if names[parameter] in keys
            }
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": mine, "param_groups": groups})
        if keys:
            raise CheckpointError(
                f"'{parts.path}' has the optimizer state of {len(keys)} parameters that are not trained, "
                f"such as '{next(iter(keys))}'; resume with the model that the run began with"
            )


def _state(parts: Parts, name: str, parameter: Tensor) -> Tensor:
    """What is as large as its parameter is cut as it is; all else, the count of steps, is whole."""
    if parts[name] != parameter.shape:
        return parts.rows(name, 0, (*parts[name], 0)[0])
    part = parts.part_of(name, parameter).to(local(parameter).device)
    return like(part, parameter)


def _file(name: str, rank: int, world: int) -> str:
    place = "" if world == 1 else f"-{rank + 1:05d}-of-{world:05d}"
    return f"{name}{place}.safetensors"


def _files(folder: Path, name: str) -> list[Path]:
    """One process's file, or those of all ranks."""
    parts = sorted(folder.glob(f"{name}-*-of-*.safetensors"))
    if not parts:
        return [folder / _file(name, 0, 1)]
    world = int(parts[0].stem.rpartition("-")[2])
    return [folder / _file(name, rank, world) for rank in range(world)]


def _damaged(path: Path, error: Exception) -> str:
    return (
        f"the trainer's checkpoint file '{path}' cannot be read ({type(error).__name__}: {error}); "
        "use an older checkpoint with trainer.resume_mode=from_path and trainer.resume_path"
    )
