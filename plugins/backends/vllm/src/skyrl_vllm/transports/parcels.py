"""The calls to vLLM that our own transports share; `skyrl_vllm.inside.receiver` answers them."""

import asyncio
import contextlib
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from skyrl_kernel.errors import RunError, WeightSyncError
from skyrl_kernel.rollout.deadline import CallTimeout
from skyrl_kernel.rollout.workers import Workers
from skyrl_vllm.client import Refused
from skyrl_vllm.fleet import Fleet
from skyrl_vllm.inside import HAS_ARRIVED
from skyrl_vllm.layout import in_order

if TYPE_CHECKING:
    import torch


_UPDATE = "/update_weights"
_ASK = "/collective_rpc"
"""Calls a method of every worker of a server."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.001, 0.02
"""Between two questions to a server; each takes it a moment between two of its steps."""
PARCEL_BYTES = 2**30
"""Of one parcel, unless a single tensor has more. A trainer of several ranks makes each tensor whole when
it is read: no more of them than this exist, and moving 1 GiB takes so long that the calls around it
do not count."""


class Parcels(ABC):
    """A transport whose servers are told what comes, parcel by parcel. Override `send`."""

    _fleet: Fleet

    def __init__(self) -> None:
        # One: what an update that was given up still writes ends before the next one writes.
        self._thread = Workers(1, "skyrl-weights")
        self._update_id: str | None = None
        self._sent = 0

    async def open(self, fleet: Fleet) -> None:
        """Nothing has to be agreed on."""
        self._fleet = fleet

    async def begin(self) -> None:
        """Begin an update at every server."""
        await self.forget()
        self._update_id, self._sent = uuid.uuid4().hex, 0
        try:
            await self._tell("/start_weight_update")
        except Refused:  # a trainer that was killed has left one open
            await self._cancel()
            await self._tell("/start_weight_update")

    async def move(self, weights: "Iterable[tuple[str, torch.Tensor]]") -> None:
        """Send one parcel after the other. Its tensors are held until it is on its way."""
        rest = iter(weights)
        while tensors := await self.in_thread(_taken, rest):
            await self.send(tensors)
            self._sent += 1

    @abstractmethod
    async def send(self, tensors: "Sequence[tuple[str, torch.Tensor]]") -> None:
        """Announce them, and bring them on their way."""

    async def announce(self, parcel: Mapping[str, Any]) -> None:
        """Tell every server what comes next; it receives beside generation."""
        await self._update(parcel=dict(parcel), update=self._update_id, number=self._sent)

    async def arrive(self) -> None:
        """Ask every server until it has everything, and hear its checks."""
        about = {"update": self._update_id, "number": self._sent}
        until = time.monotonic() + self._fleet.deadlines.update_s
        pause_s = _FIRST_PAUSE_S
        while late := await self._late(about):
            if time.monotonic() > until:
                raise TimeoutError(
                    f"no sign in {self._fleet.deadlines.update_s:g} s that all of {self._sent} parcels came "
                    f"to {', '.join(late)}"
                )
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        await self._update(wait=True, **about, deadline_s=max(0.0, until - time.monotonic()))

    async def _late(self, about: Mapping[str, Any]) -> list[str]:
        """Addresses of the servers that still receive.

        Raises:
            WeightSyncError: One cannot be asked.
        """
        try:
            answers = await self._tell(_ASK, {"method": HAS_ARRIVED, "kwargs": about})
        except Refused as error:
            if HAS_ARRIVED not in error.text:  # a method that its workers do not have
                raise
            raise WeightSyncError(
                f"nothing was loaded: the vLLM server at {error.url} has another skyrl-vllm beside it than "
                f"this run, which does not know {HAS_ARRIVED}; install the run's there, and start it again"
            ) from error
        return [
            client.url
            for client, answer in zip(self._fleet.clients, answers, strict=True)
            if not all(worker[HAS_ARRIVED] for worker in (answer or {}).get("results", ()))
        ]

    async def load(self, version: int) -> None:
        """Load, and tag later tokens with the version."""
        self._update_id = None
        await self._tell("/finish_weight_update", {"weight_version": str(version)})

    async def forget(self) -> None:
        """Close the update where one is open."""
        if self._update_id is not None:
            self._update_id = None
            await self._cancel()

    def close(self) -> None:
        """End the thread; whatever it does comes to its end."""
        self._thread.close()

    async def in_thread(self, call: Callable[..., Any], *args: Any) -> Any:
        """Call it where it disturbs nobody; such calls run one after the other.

        Raises:
            TimeoutError: It was not done within `Deadlines.update_s`; its thread is left behind.
        """
        timeout_s = self._fleet.deadlines.update_s
        try:
            return await self._thread.call(partial(call, *args), timeout_s)
        except CallTimeout as error:
            raise TimeoutError(f"what sends the weights was not done in {timeout_s:g} s") from error

    async def _cancel(self) -> None:
        """A server says yes by raising; one that has closed it already, or is gone, says no.

        Only where an update is open: of several workers that raise, vLLM 0.32 hears the first,
        and takes the answers of the others for those to its next call.
        """
        with contextlib.suppress(Refused, RunError, TimeoutError):
            await self._fleet.ask(
                _UPDATE,
                {"update_info": {"cancel": True}},
                timeout_s=self._fleet.deadlines.cancel_s,
            )

    async def _update(self, **info: Any) -> None:
        await self._tell(_UPDATE, {"update_info": info})

    async def _tell(self, path: str, body: Mapping[str, Any] | None = None) -> list[Any]:
        return await self._fleet.ask(path, body, timeout_s=self._fleet.deadlines.update_s)


def _taken(rest: "Iterator[tuple[str, torch.Tensor]]") -> "list[tuple[str, torch.Tensor]]":
    """The tensors of the next parcel, in the order in which it has them; empty after the last."""
    tensors, size = [], 0
    for name, tensor in rest:
        tensors.append((name, tensor))
        size += tensor.numel() * tensor.element_size()
        if size >= PARCEL_BYTES:
            break
    return in_order(tensors)
