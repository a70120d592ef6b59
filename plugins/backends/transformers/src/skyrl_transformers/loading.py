"""Reads a Hugging Face model directory, and says in one line why one cannot be read."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file
from transformers.utils import logging as transformers_logging

from skyrl_kernel.errors import ModelError

MAY_BE_MISSING: dict[str, Any] = {
    "_raise_exceptions_for_missing_entries": False,
    "_raise_exceptions_for_gated_repo": False,
    "_raise_exceptions_for_connection_errors": False,
}
"""For `transformers.utils.cached_file`: None in place of an error."""


def load_causal_lm(path: Path, device: torch.device | str = "cpu") -> PreTrainedModel:
    """A causal language model in float32 and eval mode, dropout off.

    Without dropout the log-probs of one set of weights are one function of the
    tokens, whether the model samples, scores or trains.

    Args:
        path: A directory with ``config.json`` and safetensors (pickled weights are
            not read), or the name of a model on the Hugging Face hub.
        device: Where the weights go.

    Raises:
        ModelError: It is no such model, or lacks weights of its architecture.
    """
    return _load(AutoModelForCausalLM, path, device, "trainer.policy.model.path")


def load_body(path: Path, device: torch.device | str, key: str) -> PreTrainedModel:
    """The same model without its output head: ids in, hidden states out.

    Args:
        path: As in `load_causal_lm`.
        device: Where the weights go.
        key: The config key that names the model, for messages.

    Raises:
        ModelError: It is no such model, or lacks weights of its architecture.
    """
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # that the output head is not used is no news
    try:
        return _load(AutoModel, path, device, key)
    finally:
        transformers_logging.set_verbosity(level)


def stored_tensor(path: Path, name: str) -> torch.Tensor | None:
    """One tensor of a model's safetensors by its name there, on the CPU; None if there is none."""
    index = cached_file(str(path), SAFE_WEIGHTS_INDEX_NAME, **MAY_BE_MISSING)
    file = SAFE_WEIGHTS_NAME
    if index is not None:
        file = read_json(Path(index))["weight_map"].get(name)
    found = cached_file(str(path), file, **MAY_BE_MISSING) if file else None
    if found is None:
        return None
    with safe_open(found, framework="pt") as tensors:
        return tensors.get_tensor(name) if name in tensors.keys() else None  # noqa: SIM118


def _load(
    architecture: type[AutoModel] | type[AutoModelForCausalLM],
    path: Path,
    device: torch.device | str,
    key: str,
) -> PreTrainedModel:
    if path.is_dir() and not (path / "config.json").is_file():
        raise ModelError(_unusable(path, "the directory has no config.json", key))
    if path.is_file():
        raise ModelError(_unusable(path, "it is a file, not a directory", key))
    try:
        with no_progress_bars():
            model, info = architecture.from_pretrained(
                str(path), dtype=torch.float32, use_safetensors=True, output_loading_info=True
            )
    except Exception as error:  # transformers raises many types for a bad directory
        raise ModelError(_unusable(path, _first_line(error), key)) from error
    if missing := sorted(info["missing_keys"]):
        names = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
        found = f"{len(missing)} of its tensors are missing: {names}"
        raise ModelError(_unusable(path, found, key))
    turn_off_dropout(model)
    model.eval().to(device)
    return model


def distinct_tensors(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Every tensor of the state dict by its name, tied ones once, under their first name."""
    seen: set[int] = set()
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            tensors[name] = tensor
    return tensors


def read_json(path: Path) -> dict[str, Any]:
    """The object in a json file; empty if there is no such file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def default_device() -> torch.device:
    """The first CUDA device, or the CPU where there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _unusable(path: Path, found: str, key: str) -> str:
    return (
        f"'{path}' cannot be loaded as a causal language model: {found}. A model is a directory "
        "with config.json and *.safetensors as save_pretrained writes it; "
        f"set {key} to one"
    )


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0].rstrip('.') if lines else 'no message'}"


def turn_off_dropout(model: PreTrainedModel) -> None:
    """So that sampling, scoring and training see one model."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0


@contextlib.contextmanager
def no_progress_bars() -> Iterator[None]:
    """The kernel shows progress; a second bar would tear its display."""
    were_shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if were_shown:
            transformers_logging.enable_progress_bar()
