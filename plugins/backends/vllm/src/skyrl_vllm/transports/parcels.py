"""The calls to vLLM that our own transports share; `skyrl_vllm.inside.receiver` answers them."""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from skyrl_kernel.errors import RunError
from skyrl_vllm.client import Refused
from skyrl_vllm.fleet import Fleet

if TYPE_CHECKING:
    import torch


class Parcels(ABC):
    """A transport whose servers are told what comes, parcel by parcel. Override `move`."""

    _fleet: Fleet

    def __init__(self) -> None:
        self._is_under_way = False

    async def open(self, fleet: Fleet) -> None:
        """Nothing has to be agreed on."""
        self._fleet = fleet

    async def begin(self) -> None:
        """Begin an update at every server."""
        await self.forget()
        self._is_under_way = True
        await self._tell("/start_weight_update")

    @abstractmethod
    async def move(self, weights: "Iterable[tuple[str, torch.Tensor]]") -> None:
        """See `Transport`."""

    async def announce(self, parcel: Mapping[str, Any]) -> None:
        """Tell every server what comes; it receives beside generation."""
        await self._update(parcel=dict(parcel))

    async def arrive(self) -> None:
        """Wait for every server's checks."""
        await self._update(wait=True, deadline_s=self._fleet.deadlines.update_s)

    async def load(self, version: int) -> None:
        """Load, and tag later tokens with the version."""
        self._is_under_way = False
        await self._tell("/finish_weight_update", {"weight_version": str(version)})

    async def forget(self) -> None:
        """Close the update where one is open."""
        if self._is_under_way:
            self._is_under_way = False
            # A server says yes by raising; one that has closed it already, or is gone, says no.
            with contextlib.suppress(Refused, RunError, TimeoutError):
                await self._update(cancel=True)

    @abstractmethod
    def close(self) -> None:
        """See `Transport`."""

    async def _update(self, **info: Any) -> None:
        await self._tell("/update_weights", {"update_info": info})

    async def _tell(self, path: str, body: Mapping[str, Any] | None = None) -> None:
        await self._fleet.ask(path, body, timeout_s=self._fleet.deadlines.update_s)
