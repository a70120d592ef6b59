"""What vLLM's trainer side asks of its servers, asked of all of ours."""

import asyncio
import base64
import contextlib
import pickle
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from skyrl_vllm.client import Refused
from skyrl_vllm.fleet import Fleet
from skyrl_vllm.transports.numbering import Numbering

if TYPE_CHECKING:
    import torch


class SyncClient:
    """vLLM's ``VLLMWeightSyncClient``: its calls come from other threads, and go to every server.

    Args:
        fleet: The servers; the running event loop asks them.
        numbering: Of their workers.
    """

    def __init__(self, fleet: Fleet, numbering: Numbering) -> None:
        self.numbering = numbering
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
                    for one, first in zip(self._fleet.clients, self.numbering.firsts, strict=True)
                )
            )

        asyncio.run_coroutine_threadsafe(all_of_them(), self._loop).result()

    def start_weight_update(self) -> None:
        """Begin an update, where a trainer that was killed has left one open too."""
        try:
            self._tell("/start_weight_update", None)
        except Refused:
            self._end_open_update()
            self._tell("/start_weight_update", None)

    def _end_open_update(self) -> None:
        """Have servers forget what has come of it.

        They load weights as they come: a layer that has half of its own would take the next
        update's first half for the rest (0.32), so what is there is finished, as it is, first.
        Nothing samples meanwhile, and all of it is overwritten.
        """
        with contextlib.suppress(Refused):  # vLLM closes an update that it cannot read
            self._tell("/update_weights", {"update_info": {"cancel": True}})
        self._tell("/start_weight_update", None)
        self._tell("/finish_weight_update", None)

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
