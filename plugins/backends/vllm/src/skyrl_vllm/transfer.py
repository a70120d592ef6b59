"""Runs inside vLLM: loads weights from safetensors files, all at once or not at all.

`update_weights` only reads and checks; `finish_weight_update` loads, in one
call between two steps of the engine. So a refused update has changed nothing,
and no step sees half of one.
"""

import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.model_loader.reload.layerwise import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)

Weights = list[tuple[str, torch.Tensor]]


@dataclass
class FileInit(WeightTransferInitInfo):  # type: ignore[misc]
    """Nothing has to be agreed on."""


@dataclass
class FileUpdate(WeightTransferUpdateInfo):  # type: ignore[misc]
    """What `skyrl_vllm.staging` wrote."""

    files: list[dict[str, Any]] = field(default_factory=list)
    """``path``, ``size`` in bytes, and ``crc32`` of the content."""
    count: int = 0
    """Tensors in all of them."""


class FileTransfer(WeightTransferEngine):  # type: ignore[misc]
    """Weights in files that trainer and engine can both read."""

    init_info_cls = FileInit
    update_info_cls = FileUpdate
    supports_draft_weight_update = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._received: Weights | None = None

    def init_transfer_engine(self, init_info: FileInit) -> None:
        """Nothing to open."""

    def start_weight_update(self) -> None:
        """Forget what an update before has left."""
        self._received = None

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Read and check; no device is waited for, as the CPU is none."""
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: FileUpdate) -> None:
        """Keep the tensors of all files.

        Raises:
            ValueError: A file is not what was announced; the model is as it was.
        """
        received: Weights = []
        for file in update_info.files:
            received += read(Path(file["path"]), int(file["size"]), int(file["crc32"]))
        if len(received) != update_info.count:
            raise ValueError(f"{len(received)} tensors came, {update_info.count} were announced")
        self._received = received

    def finish_weight_update(self) -> None:
        """Load.

        Raises:
            ValueError: Nothing came.
        """
        received, self._received = self._received, None
        if not received:
            raise ValueError("no weights came since start_weight_update")
        with torch.device(self.device):
            initialize_layerwise_reload(self.model)
            self.model.load_weights(iter(received))
            finalize_layerwise_reload(self.model, self.model_config)
        repack(self.model)

    def shutdown(self) -> None:
        """Nothing is open."""


def read(path: Path, size: int, crc32: int) -> Weights:
    """The tensors of one file.

    Raises:
        ValueError: Its length or its checksum is another one.
    """
    content = path.read_bytes()
    if len(content) != size:
        raise ValueError(f"{path.name} has {len(content)} bytes, {size} were announced")
    if zlib.crc32(content) != crc32:
        raise ValueError(f"{path.name} has other content than was announced: its checksum differs")
    return list(load_file(path).items())


def repack(model: torch.nn.Module) -> None:
    """Give modules that compute with a packed copy of their weight the new one.

    On CPUs vLLM packs linear weights. A reload packs again what it loads; but a
    head that is tied to the embedding is loaded with the embedding, and would go
    on with its old copy, without a word.
    """
    for module in model.modules():
        weight = getattr(module, "weight", None)
        method: Any = getattr(module, "quant_method", None)
        is_packed = hasattr(module, "cpu_linear") and weight is not None and weight.numel() > 0
        if is_packed and hasattr(method, "process_weights_after_loading"):
            method.process_weights_after_loading(module)
