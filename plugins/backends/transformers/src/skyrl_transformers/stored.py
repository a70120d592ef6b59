"""A model's files without the model: its tensors one at a time, and its modules without any.

So a model that is larger than one process's memory can be filled a layer at a time.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedModel,
)
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from skyrl_transformers.loading import (
    MAY_BE_MISSING,
    distinct_tensors,
    read_json,
    turn_off_dropout,
)


class StoredTensors(Mapping[str, Tensor]):
    """Name → tensor of a model's safetensors, read when asked for, on the CPU.

    Args:
        path: A directory or hub name; one without safetensors has no names.
    """

    def __init__(self, path: Path) -> None:
        self._files: dict[str, Path] = {}
        index = cached_file(str(path), SAFE_WEIGHTS_INDEX_NAME, **MAY_BE_MISSING)
        single = cached_file(str(path), SAFE_WEIGHTS_NAME, **MAY_BE_MISSING)
        if index is not None:
            by_name: dict[str, str] = read_json(Path(index))["weight_map"]
            files = {file: cached_file(str(path), file) for file in sorted(set(by_name.values()))}
            self._files = {name: Path(str(files[file])) for name, file in by_name.items()}
        elif single is not None:
            with safe_open(single, framework="pt") as tensors:
                self._files = dict.fromkeys(tensors.keys(), Path(single))

    def __getitem__(self, name: str) -> Tensor:
        with safe_open(self._files[name], framework="pt") as tensors:
            tensor: Tensor = tensors.get_tensor(name)
        return tensor

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of all tensors; none is read."""
        found = {}
        with ExitStack() as stack:
            opened = {
                file: stack.enter_context(safe_open(file, framework="pt"))
                for file in set(self._files.values())
            }
            for name, file in self._files.items():
                found[name] = tuple(opened[file].get_slice(name).get_shape())
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def __contains__(self, name: object) -> bool:
        return name in self._files


def empty_causal_lm(path: Path) -> PreTrainedModel:
    """A causal language model as `skyrl_transformers.loading.load_causal_lm` makes it, without weights.

    Args:
        path: A directory or hub name.

    Returns:
        On the device ``meta``, tied weights tied.
    """
    model = _empty(AutoModelForCausalLM, path)
    with suppress(OSError):  # it has none, and what its config says was taken
        model.generation_config = GenerationConfig.from_pretrained(str(path))
    return model


def empty_body(path: Path) -> PreTrainedModel:
    """The same without its output head, as `skyrl_transformers.loading.load_body`."""
    return _empty(AutoModel, path)


def fills(module: torch.nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether the files have every tensor of a module under its own name and in its shape.

    Models whose files are laid out otherwise than the module is, and those that lack
    something, are left to transformers.
    """
    return all(
        shapes.get(name) == tuple(tensor.shape) for name, tensor in distinct_tensors(module).items()
    )


def _empty(architecture: Any, path: Path) -> PreTrainedModel:
    config = AutoConfig.from_pretrained(str(path))
    with torch.device("meta"):
        model: PreTrainedModel = architecture.from_config(config, dtype=torch.float32)
    turn_off_dropout(model)
    return model.eval()
