"""New weights on their way: files that the server can read, checked before it is told of them."""

import json
import os
import shutil
import struct
import tempfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skyrl_kernel.errors import WeightSyncError

if TYPE_CHECKING:
    import torch

SHARED_MEMORY = Path("/dev/shm")
_PREFIX = "skyrl-weights-"
"""Begins the names of folders; the process id of the run and a random part follow."""

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True, slots=True)
class StagedFile:
    """One file, as the server is told of it."""

    path: Path
    size: int
    """Bytes."""
    crc32: int
    """Of the content."""

    def told(self) -> dict[str, Any]:
        """JSON-able."""
        return {"path": str(self.path), "size": self.size, "crc32": self.crc32}


class Staging:
    """The weights of one update.

    Args:
        version: Policy version of the new weights.
        expected: Name → shape of every tensor that the model has; None if unknown.
        folder: Where a folder for the files is made; default: shared memory, or where
            temporary files go.
    """

    def __init__(self, version: int, expected: Shapes | None, folder: Path | None = None) -> None:
        self.version = version
        self.files: list[StagedFile] = []
        self._expected = expected
        self._names: set[str] = set()
        root = folder or (SHARED_MEMORY if SHARED_MEMORY.is_dir() else Path(tempfile.gettempdir()))
        _remove_leftovers(root)
        self._folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=root))

    @property
    def count(self) -> int:
        """Tensors received so far."""
        return len(self._names)

    def add(self, weights: "Iterable[tuple[str, torch.Tensor]]") -> None:
        """Write some of the tensors.

        Raises:
            WeightSyncError: A name is unknown or came twice, or a shape differs.
        """
        from safetensors.torch import save_file

        tensors: dict[str, torch.Tensor] = {}
        for name, tensor in weights:
            self._check(name, tuple(tensor.shape))
            self._names.add(name)
            tensors[name] = tensor.detach().cpu().contiguous()
        if not tensors:
            return
        path = self._folder / f"{len(self.files)}.safetensors"
        save_file(tensors, path)
        crc32, size = _crc32(path)
        self.files.append(StagedFile(path=path, size=size, crc32=crc32))

    def check_complete(self) -> None:
        """Whether every tensor of the model is there.

        Raises:
            WeightSyncError: Some are missing.
        """
        missing = sorted(set(self._expected or {}) - self._names)
        if missing or not self._names:
            of = f" of its {len(self._expected)}" if self._expected else ""
            shown = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
            raise self._refusal(f"{len(missing)}{of} tensors are missing: {shown or 'all'}")

    def remove(self) -> None:
        """Delete the files."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _check(self, name: str, shape: tuple[int, ...]) -> None:
        if name in self._names:
            raise self._refusal(f"the tensor '{name}' came twice")
        if self._expected is None:
            return
        if name not in self._expected:
            first = ", ".join(list(self._expected)[:3])
            raise self._refusal(
                f"the tensor '{name}' is not in the engine's model, which has {first}, …"
            )
        if shape != self._expected[name]:
            raise self._refusal(
                f"the tensor '{name}' has shape {shape}, the engine's has {self._expected[name]}"
            )

    def _refusal(self, found: str) -> WeightSyncError:
        return WeightSyncError(
            f"the update to policy version {self.version} was refused: {found}. The engine keeps "
            "its old weights; send every tensor once, as the trainer's weights() names them"
        )


def _remove_leftovers(root: Path) -> None:
    """Delete what runs that were killed in the middle of an update have left: a model each."""
    for folder in root.glob(f"{_PREFIX}*-*"):
        number = folder.name.removeprefix(_PREFIX).partition("-")[0]
        if number.isdecimal() and not _is_alive(int(number)):
            shutil.rmtree(folder, ignore_errors=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is somebody else's
        return True
    return True


def _crc32(path: Path) -> tuple[int, int]:
    """Checksum and size of a file."""
    crc32 = size = 0
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            crc32, size = zlib.crc32(block, crc32), size + len(block)
    return crc32, size


def stored_shapes(model: Path) -> dict[str, tuple[int, ...]] | None:
    """Name → shape of the tensors in a model directory; None if it is none with safetensors.

    Only headers are read. A head tied to the embedding is left out, as by a
    trainer's ``weights()``, also where the directory has a copy of it.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for path in sorted(model.glob("*.safetensors")) if model.is_dir() else ():
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        shapes |= {k: tuple(v["shape"]) for k, v in header.items() if k != "__metadata__"}
    if shapes and json.loads((model / "config.json").read_text()).get("tie_word_embeddings"):
        shapes.pop("lm_head.weight", None)
    return shapes or None
