"""vLLM's own transports between GPUs, driven by vLLM's own trainer-side classes.

They load what arrives as it arrives, and check nothing: everything happens in `load`,
while no server computes, and what fails there leaves servers whose weights nobody knows.
"""

import asyncio
import contextlib
import importlib.util
import socket
import threading
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from skyrl_kernel.config.generator import GeneratorConfig
from skyrl_kernel.errors import CapabilityError, WeightSyncError
from skyrl_kernel.place import host_of, is_here
from skyrl_vllm.client import Refused
from skyrl_vllm.fleet import Fleet
from skyrl_vllm.network import LOOPBACK, own_address
from skyrl_vllm.transports.numbering import Numbering, numbering
from skyrl_vllm.transports.sync_client import SyncClient, source

if TYPE_CHECKING:
    import torch

Backend = Literal["nccl", "ipc"]
"""``--weight-transfer-config`` of the servers."""
NAMES = ("nccl", "cuda_ipc", "ipc")
"""Of weight syncs whose half in the trainer is vLLM's code, which sends what is on a GPU."""


def missing(name: str) -> list[str]:
    """What a weight sync of that name lacks in this process, where its half is vLLM's code: a sentence.

    Args:
        name: ``generator.inference_engine.weight_sync_backend``, or a `Backend`.
    """
    if name not in NAMES or importlib.util.find_spec("vllm") is not None:
        return []
    return [
        f"weight sync through {name} uses vLLM's own code in the trainer's process, and vLLM is not "
        "installed here; pip install 'skyrl-vllm[gpu]', or use "
        "generator.inference_engine.weight_sync_backend=auto"
    ]


def through_ipc(config: GeneratorConfig) -> "Callable[[], Native]":
    """Makes `Native` for a GPU that trainer and engine share."""
    gib = config.inference_engine.weight_transfer_threshold_cuda_ipc_GB
    return partial(Native, "ipc", chunk_bytes=int(gib * 2**30))


class Native:
    """Sends all tensors with ``vllm.distributed.weight_transfer``.

    Args:
        backend: Of vLLM.
        chunk_bytes: Of GPU memory that ``ipc`` copies weights into, again and again; more where
            one tensor is larger, less where all of them are smaller.
    """

    _fleet: Fleet

    def __init__(self, backend: Backend, chunk_bytes: int = 2**30) -> None:
        self.backend = backend
        self._chunk_bytes = chunk_bytes
        self._weights: list[tuple[str, torch.Tensor]] = []
        self._engine: Any = None
        self._client: SyncClient | None = None

    async def open(self, fleet: Fleet) -> None:
        """Nothing yet: vLLM's halves meet when there are weights to describe."""
        self._fleet = fleet

    async def begin(self) -> None:
        """Forget what was collected."""
        self._weights = []

    async def move(self, weights: "Iterable[tuple[str, torch.Tensor]]") -> None:
        """Collect them; they stay on their GPU.

        Raises:
            WeightSyncError: One is not on a GPU.
        """
        found = [(name, tensor.detach()) for name, tensor in weights]
        for name, tensor in found:
            if not tensor.is_cuda:
                raise WeightSyncError(
                    f"nothing was sent: the tensor '{name}' is on {tensor.device}, and vLLM's backend "
                    f"{self.backend} sends from GPUs; set "
                    "generator.inference_engine.weight_sync_backend=safetensors, or gloo"
                )
        self._weights += found

    async def arrive(self) -> None:
        """Meet the servers, if they have not met: the last moment at which that can fail without harm."""
        if self._engine is None:
            if not self._fleet.own:  # another trainer may have left them without a word
                await self._part()
            self._client = SyncClient(self._fleet, await numbering(self._fleet))
            self._engine = await self._in_thread(self._met, self._client)

    async def _part(self) -> None:
        """Have servers leave the trainer before; with an update of its own open they refuse, until it ends."""
        with contextlib.suppress(Refused):
            path = "/shutdown_weight_transfer_engine"
            await self._fleet.ask(path, timeout_s=self._fleet.deadlines.control_s)

    async def load(self, version: int) -> None:
        """Send and load."""
        assert self._client is not None, "arrive() first"
        self._client.version = version
        try:
            await self._in_thread(self._engine.send_weights)
        finally:
            self._weights = []

    async def forget(self) -> None:
        """Nothing was sent."""
        self._weights = []

    def close(self) -> None:
        """Leave the servers."""
        self._weights, self._engine = [], None

    def _met(self, client: "SyncClient") -> Any:
        if lacking := missing(self.backend):
            raise CapabilityError(lacking[0])
        from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory

        return WeightTransferTrainerFactory.trainer_init(
            self._about(client.numbering), client=client, source=source(lambda: self._weights)
        )

    def _about(self, numbering: Numbering) -> Any:
        if self.backend == "ipc":
            from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

            return IPCTrainerInitInfo(
                rank=0, packed=True, packed_buffer_size_bytes=self._buffer_bytes()
            )
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

        away = [one.url for one in self._fleet.clients if not is_here(one.url)]
        host = own_address(host_of(away[0])) if away else LOOPBACK
        with socket.create_server((host, 0)) as free:
            port = free.getsockname()[1]
        return NCCLTrainerInitInfo(
            rank=0, master_address=host, master_port=port, world_size=numbering.size
        )

    def _buffer_bytes(self) -> int:
        """VLLM refuses a tensor that is larger than the buffer, when the ones before it are loaded."""
        sizes = [tensor.numel() * tensor.element_size() for _, tensor in self._weights]
        return max(*sizes, min(self._chunk_bytes, sum(sizes)))

    async def _in_thread(self, call: Callable[..., Any], *args: Any) -> Any:
        """Call it, and wait no longer than for one call of an update.

        NCCL cannot be told to stop waiting, so the thread may outlive this; it does not
        keep the process from ending.
        """
        loop = asyncio.get_running_loop()
        done = loop.create_future()

        def settle(set_it: Callable[[Any], None], value: Any) -> None:
            if not done.done():
                set_it(value)

        device = self._weights[0][1].device

        def run() -> None:
            import torch

            try:
                # vLLM takes the current one, which is another thread's first until it is set.
                with torch.cuda.device(device):
                    found = call(*args)
            except BaseException as error:
                loop.call_soon_threadsafe(settle, done.set_exception, error)
            else:
                loop.call_soon_threadsafe(settle, done.set_result, found)

        threading.Thread(target=run, name="skyrl-weights", daemon=True).start()
        return await asyncio.wait_for(done, self._fleet.deadlines.update_s)
