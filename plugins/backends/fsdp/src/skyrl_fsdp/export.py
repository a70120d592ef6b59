"""Writes a policy so that anything that reads Hugging Face directories can serve it."""

import copy
import json
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from skyrl_fsdp.adapted import ADAPTER_FOLDER, adapted_layers, merged_tensors, write_adapter
from skyrl_fsdp.ranks import Ranks
from skyrl_fsdp.sharding import whole
from skyrl_transformers.loading import no_progress_bars

TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "vocab.*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
)
"""What makes up a tokenizer in a model directory."""


def export_policy(module: PreTrainedModel, source: Path, folder: Path, ranks: Ranks) -> None:
    """Write config, weights and tokenizer, and adapters by themselves in a folder beside.

    Of several ranks the first writes, a file at a time: no process holds the whole model.

    Args:
        module: The policy, in float32: nothing is rounded. Adapters are added to the weights.
        source: Where its tokenizer is: the directory, or the hub name, that it was
            loaded from. Files of a directory are copied as they are.
        folder: Made if needed.
        ranks: All call this, and return when all is written.
    """
    writes = ranks.rank == 0
    ranks.agree(lambda: folder.mkdir(parents=True, exist_ok=True))
    if ranks.world == 1:
        with no_progress_bars():
            module.save_pretrained(folder, state_dict=dict(merged_tensors(module)))
    else:
        _stream(module, folder, ranks)
    if adapted_layers(module):
        write_adapter(module, source, folder / ADAPTER_FOLDER, whole, writes=writes)
    ranks.agree(lambda: _write_tokenizer(source, folder) if writes else None)


def _stream(module: PreTrainedModel, folder: Path, ranks: Ranks) -> None:
    """Config and weights, with files as `save_pretrained` calls them."""
    files = WeightFiles(folder)
    failure: OSError | SafetensorError | None = None
    for name, tensor in merged_tensors(module, whole):
        if ranks.rank > 0 or failure:  # the others need this rank to gather what is left
            continue
        try:
            files.add(name, tensor)
        except (OSError, SafetensorError) as error:
            failure = error

    def finish() -> None:
        if failure is not None:
            raise failure
        if ranks.rank == 0:
            files.close()
            config = copy.deepcopy(module.config)
            config.dtype = torch.float32
            config.architectures = [type(module).__name__.removeprefix("FSDP")]
            config.save_pretrained(folder)
            if module.generation_config is not None:
                module.generation_config.save_pretrained(folder)

    ranks.agree(finish)


class WeightFiles:
    """Writes safetensors of some size each, and their index if there are several.

    Args:
        folder: It is there.
        max_bytes: Of one file, and what is kept in memory; a larger tensor has one for itself.
    """

    def __init__(self, folder: Path, *, max_bytes: int = 5 * 10**9) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._waiting: dict[str, Tensor] = {}
        self._bytes = 0
        self._written: list[tuple[Path, list[str]]] = []
        self._total_bytes = 0

    def add(self, name: str, tensor: Tensor) -> None:
        """Take one more tensor."""
        if self._waiting and self._bytes + tensor.nbytes > self._max_bytes:
            self._write()
        self._waiting[name] = tensor.detach().cpu().contiguous()
        self._bytes += tensor.nbytes
        self._total_bytes += tensor.nbytes

    def _write(self) -> None:
        path = self._folder / f"model-{len(self._written) + 1:05d}.safetensors"
        save_file(self._waiting, path, metadata={"format": "pt"})
        self._written.append((path, list(self._waiting)))
        self._waiting, self._bytes = {}, 0

    def close(self) -> None:
        """Write what is left. How many files there are, which their names say, is known now."""
        self._write()
        if len(self._written) == 1:
            self._written[0][0].rename(self._folder / SAFE_WEIGHTS_NAME)
            return
        places: dict[str, str] = {}
        for path, names in self._written:
            final = path.with_stem(f"{path.stem}-of-{len(self._written):05d}")
            path.rename(final)
            places |= dict.fromkeys(names, final.name)
        index = {"metadata": {"total_size": self._total_bytes}, "weight_map": places}
        (self._folder / SAFE_WEIGHTS_INDEX_NAME).write_text(
            json.dumps(index, indent=2) + "\n", encoding="utf-8"
        )


def _write_tokenizer(source: Path, folder: Path) -> None:
    if not source.is_dir():
        AutoTokenizer.from_pretrained(str(source)).save_pretrained(folder)
        return
    for pattern in TOKENIZER_FILES:
        for file in source.glob(pattern):
            if file.is_file():
                shutil.copyfile(file, folder / file.name)
