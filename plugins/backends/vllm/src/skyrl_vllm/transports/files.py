"""Weights as safetensors files in shared memory: for servers on the trainer's machine."""

import contextlib
import errno
import fcntl
import mmap
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skyrl_kernel.errors import CapabilityError, WeightSyncError
from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.logs import get_logger
from skyrl_kernel.place import is_here
from skyrl_kernel.protocols import SyncWeights
from skyrl_vllm.fleet import Fleet
from skyrl_vllm.layout import Layout, copy_bytes
from skyrl_vllm.transports import Through
from skyrl_vllm.transports.parcels import Parcels

if TYPE_CHECKING:
    import torch

SHARED_MEMORY = Path("/dev/shm")
_PREFIX = "skyrl-weights-"
"""Begins the names of folders. A run holds a lock on its own, which ends with it."""
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOMEM)


@hookimpl
def sync_weights(name: str) -> SyncWeights | None:
    """For engines on the trainer's machine."""
    return Through(Files) if name == "safetensors" else None


class Files(Parcels):
    """Writes a file per `move`; `skyrl_vllm.inside.files` reads it.

    Files stay from update to update, and are written over: fresh pages of shared
    memory cost several times the copy. Nobody reads one while it is written: it is
    written before it is announced, and announced again only after every server has
    loaded it, or has been told that it will not be. What a server still checks of an
    update that was given up does not have that update's checksum.

    Args:
        root: Where a folder for the files is made; default: shared memory, or, where
            that has no room for them, where temporary files go.
    """

    def __init__(self, root: Path | None = None) -> None:
        super().__init__()
        here = [SHARED_MEMORY] if SHARED_MEMORY.is_dir() else []
        self._roots = [root] if root else [*here, Path(tempfile.gettempdir())]
        self._folder: _Folder | None = None
        self._files: list[_Mapped] = []

    async def open(self, fleet: Fleet) -> None:
        """Find out whether the servers can read files of this machine.

        Raises:
            CapabilityError: One is on another.
        """
        for client in fleet.clients:
            if not is_here(client.url):
                raise CapabilityError(
                    f"the vLLM server at {client.url} is on another machine, and weights are passed on "
                    "in files; use generator.inference_engine.weight_sync_backend=gloo, or a server on "
                    "this machine"
                )
        for root in self._roots:
            _remove_leftovers(root)
        await super().open(fleet)

    async def send(self, tensors: "Sequence[tuple[str, torch.Tensor]]") -> None:
        """Write one file, and announce it."""
        await self.announce(await self.in_thread(self._write, self._sent, tensors))

    def _write(self, number: int, tensors: "Sequence[tuple[str, torch.Tensor]]") -> dict[str, Any]:
        import xxhash

        layout = Layout.of(tensors)
        head = layout.head()
        size = len(head) + layout.size
        file = self._file(number, size)
        file.data[: len(head)].numpy()[:] = bytearray(head)
        checksum = xxhash.xxh3_64(head)
        for place, (_, tensor) in zip(layout.places, tensors, strict=True):
            start, stop = len(head) + place.start, len(head) + place.stop
            copy_bytes(tensor, file.data[start:stop], checksum)
        return {
            "path": str(file.path),
            "size": size,
            "xxh3": checksum.hexdigest(),
            "count": len(tensors),
        }

    def _file(self, number: int, size: int) -> "_Mapped":
        """The file of one parcel: the one of the update before, if it has that size."""
        if number < len(self._files) and self._files[number].is_whole(size):
            return self._files[number]
        for file in self._files[number:]:
            file.remove()
        del self._files[number:]
        self._files.append(self._new(size))
        return self._files[-1]

    def _new(self, size: int) -> "_Mapped":
        tried: list[str] = []
        for root in self._roots:
            free = shutil.disk_usage(root).free
            try:
                if self._folder is None or self._folder.path.parent != root:
                    self._folder = _Folder(root)
                made = _Mapped(self._folder.next_path(), size)
            except OSError as error:
                if error.errno not in _NO_ROOM:
                    raise
                tried.append(f"{root} ({free / 2**20:.0f} MiB free)")
                continue
            if tried:
                get_logger(__name__).warning(
                    f"{size / 2**20:.0f} MiB of weights do not fit into {tried[0]}; they go through "
                    f"{root} instead, which may be slower"
                )
                self._roots = self._roots[len(tried) :]
            return made
        raise WeightSyncError(
            f"nothing was sent: {size / 2**20:.0f} MiB of weights do not fit into {' or '.join(tried)}. "
            "The engine keeps its old weights; make room, or set "
            "generator.inference_engine.weight_sync_backend=gloo, which needs no files"
        )

    def close(self) -> None:
        """Delete the files."""
        super().close()
        files, self._files = self._files, []
        for file in files:
            file.remove()
        folder, self._folder = self._folder, None
        if folder is not None:
            folder.remove()


class _Folder:
    """Holds files of one run."""

    def __init__(self, root: Path) -> None:
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=root))
        self._lock = os.open(self.path, os.O_RDONLY)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._made = 0

    def next_path(self) -> Path:
        """A name that no file had."""
        self._made += 1
        return self.path / f"{self._made}.safetensors"

    def remove(self) -> None:
        """Delete it."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


class _Mapped:
    """A file of fixed size that is written through memory.

    Raises:
        OSError: There is no room: found out now, for a page that cannot be had later ends
            the process.
    """

    def __init__(self, path: Path, size: int) -> None:
        import torch

        self.path, self.size = path, size
        with path.open("x+b") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError:
                path.unlink()
                raise
            self._memory = mmap.mmap(file.fileno(), size)
        self.data = torch.frombuffer(self._memory, dtype=torch.uint8)
        """[size] uint8."""

    def is_whole(self, size: int) -> bool:
        """Whether it is there, and can hold ``size`` bytes; nobody else should touch it."""
        with contextlib.suppress(OSError):
            return size == self.size == self.path.stat().st_size
        return False

    def remove(self) -> None:
        """Delete it, and give its memory back."""
        _give_back(self._memory)
        self.path.unlink(missing_ok=True)


def _give_back(memory: mmap.mmap) -> None:
    """Empty the file behind a mapping, also where a server still has it mapped: that would keep a model."""
    with contextlib.suppress(OSError, AttributeError):  # only in shared memory, only on Linux
        memory.madvise(mmap.MADV_REMOVE)


def _remove_leftovers(root: Path) -> None:
    """Delete what runs that were killed have left: a model each."""
    for folder in root.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # somebody else's, or it is being removed
            # Everybody may make folders here, so that one may lead to somebody's files.
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if os.fstat(lock).st_uid != os.getuid():
                    continue
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                for path in folder.glob("*.safetensors"):
                    file = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
                    try:
                        with mmap.mmap(file, 0) as memory:
                            _give_back(memory)
                    finally:
                        os.close(file)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)
