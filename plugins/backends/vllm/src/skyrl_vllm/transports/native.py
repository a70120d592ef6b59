"""vLLM's own transports between GPUs, driven by vLLM's own trainer-side classes.

They load what arrives as it arrives, and check nothing: everything happens in `load`,
while no server computes, and what fails there leaves servers whose weights nobody knows.
"""

import asyncio
import base64
import importlib.util
import pickle
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

from skyrl_kernel.errors import CapabilityError, WeightSyncError
from skyrl_kernel.place import host_of, is_here
from skyrl_vllm.fleet import Fleet
from skyrl_vllm.network import LOOPBACK, own_address
from skyrl_vllm.transports.ranks import Ranks, ranks

if TYPE_CHECKING:
    import torch

Backend = Literal["nccl", "ipc"]
"""``--weight-transfer-config`` of the servers."""


def refuse_without_vllm(name: str) -> None:
    """The trainer's half is vLLM's code.

    Raises:
        CapabilityError: It is not installed.
    """
    if importlib.util.find_spec("vllm") is None:
        raise CapabilityError(
            f"generator.inference_engine.weight_sync_backend={name} uses vLLM's own code in the trainer's "
            "process, and vLLM is not installed here; pip install 'skyrl-vllm[gpu]', or use "
            "weight_sync_backend=auto"
        )


class Native:
    """Sends all tensors with ``vllm.distributed.weight_transfer``.

    Args:
        backend: Of vLLM.
    """

    _fleet: Fleet

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
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
            self._client = SyncClient(self._fleet, await ranks(self._fleet))
            self._engine = await self._in_thread(self._met, self._client)

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
        from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory

        return WeightTransferTrainerFactory.trainer_init(
            self._about(client.ranks), client=client, source=source(lambda: self._weights)
        )

    def _about(self, ranks: Ranks) -> Any:
        if self.backend == "ipc":
            from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

            return IPCTrainerInitInfo(rank=0, packed=True)
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

        away = [one.url for one in self._fleet.clients if not is_here(one.url)]
        host = own_address(host_of(away[0])) if away else LOOPBACK
        with socket.create_server((host, 0)) as free:
            port = free.getsockname()[1]
        return NCCLTrainerInitInfo(
            rank=0, master_address=host, master_port=port, world_size=ranks.size
        )

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

        def run() -> None:
            try:
                found = call(*args)
            except BaseException as error:
                loop.call_soon_threadsafe(settle, done.set_exception, error)
            else:
                loop.call_soon_threadsafe(settle, done.set_result, found)

        threading.Thread(target=run, name="skyrl-weights", daemon=True).start()
        return await asyncio.wait_for(done, self._fleet.deadlines.update_s)


class SyncClient:
    """vLLM's ``VLLMWeightSyncClient``: its calls come from other threads, and go to every server.

    Args:
        fleet: The servers; the running event loop asks them.
        ranks: Of their workers.
    """

    def __init__(self, fleet: Fleet, ranks: Ranks) -> None:
        self.ranks = ranks
        self.version = 0
        """Told to the servers with the next weights."""
        self._fleet = fleet
        self._loop = asyncio.get_running_loop()

    def init_weight_transfer_engine(self, init_info: Mapping[str, Any]) -> None:
        """Each server's workers have ranks of their own; vLLM knows of one server only."""

        async def all_of_them() -> None:
            await asyncio.gather(
                *(
                    one.ask(
                        "POST",
                        "/init_weight_transfer_engine",
                        {"init_info": _at(init_info, first)},
                        timeout_s=self._fleet.deadlines.update_s,
                    )
                    for one, first in zip(self._fleet.clients, self.ranks.firsts, strict=True)
                )
            )

        asyncio.run_coroutine_threadsafe(all_of_them(), self._loop).result()

    def start_weight_update(self) -> None:
        """See vLLM."""
        self._tell("/start_weight_update", None)

    def update_weights(self, update_info: Mapping[str, Any]) -> None:
        """Handles of GPU memory are pickled: the servers must be started to accept that."""
        info = dict(update_info)
        handles = info.pop("ipc_handles", None)
        if handles is not None:
            info["ipc_handles_pickled"] = base64.b64encode(pickle.dumps(handles)).decode()
        self._tell("/update_weights", {"update_info": info})

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Tokens are tagged with `version`."""
        self._tell("/finish_weight_update", {"weight_version": weight_version or str(self.version)})

    def _tell(self, path: str, body: Mapping[str, Any] | None) -> None:
        asked = self._fleet.ask(path, body, timeout_s=self._fleet.deadlines.update_s)
        asyncio.run_coroutine_threadsafe(asked, self._loop).result()


def _at(init_info: Mapping[str, Any], first: int) -> dict[str, Any]:
    return {**init_info, **({"rank_offset": first} if "rank_offset" in init_info else {})}


def source(weights: "Callable[[], list[tuple[str, torch.Tensor]]]") -> Any:
    """The ``WeightSource`` of vLLM: the tensors that there are when it is read."""
    from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource

    class Source(WeightSource):  # type: ignore[misc]
        def metadata(self) -> list[Any]:
            return [ParamMeta(name, one.dtype, tuple(one.shape)) for name, one in weights()]

        def __iter__(self) -> "Iterator[tuple[str, torch.Tensor]]":
            yield from weights()

    return Source()
