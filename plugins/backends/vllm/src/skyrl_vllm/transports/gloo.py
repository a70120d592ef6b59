"""Weights over TCP, in broadcasts to all workers of all servers: also for those on other machines."""

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.place import host_of, is_here
from skyrl_kernel.protocols import SyncWeights
from skyrl_vllm.client import Client
from skyrl_vllm.gloo import BUCKET, Group, listen
from skyrl_vllm.layout import Layout, as_bytes, copy_bytes
from skyrl_vllm.network import LOOPBACK, own_address
from skyrl_vllm.transports import Through
from skyrl_vllm.transports.numbering import numbering
from skyrl_vllm.transports.parcels import Parcels

if TYPE_CHECKING:
    import torch


@hookimpl
def sync_weights(name: str) -> SyncWeights | None:
    """For engines on other machines; and for any."""
    return Through(Gloo) if name == "gloo" else None


class Gloo(Parcels):
    """Broadcasts each parcel; `skyrl_vllm.inside.gloo` receives it.

    The group stays from update to update. It is given up where a parcel was not sent
    whole, and the next update makes another one: so also does the next trainer of a
    server whose last one has died.
    """

    _group: Group | None = None
    _bucket: "torch.Tensor | None" = None

    async def begin(self) -> None:
        """Meet the servers, if they have not met, and begin an update.

        Raises:
            OSError: Not all came in time.
        """
        if self._group is None:
            self._group = await self._met()
        await super().begin()

    async def _met(self) -> Group:
        clients = self._fleet.clients
        deadline_s = self._fleet.deadlines.update_s
        away = [one.url for one in clients if not is_here(one.url)]
        host = own_address(host_of(away[0])) if away else LOOPBACK
        store, port = listen(host, deadline_s)
        here = await numbering(self._fleet)

        def join() -> Group:
            try:
                return Group(store, 0, here.size, host=host, deadline_s=deadline_s)
            except RuntimeError as error:
                raise ConnectionError(
                    f"not all of {here.size - 1} workers came to {host}:{port}, within {deadline_s:g} s: {error}"
                ) from error

        calls = [
            self._invite(
                one, host=host, port=port, first=first, size=here.size, deadline_s=deadline_s
            )
            for one, first in zip(clients, here.firsts, strict=True)
        ]
        # Servers answer at once, and come in a thread of their own.
        await asyncio.gather(*calls)
        group: Group = await self.in_thread(join)
        return group

    async def _invite(self, client: Client, **about: object) -> None:
        await client.ask(
            "POST",
            "/init_weight_transfer_engine",
            {"init_info": {"about": about}},
            timeout_s=self._fleet.deadlines.update_s,
        )

    async def send(self, tensors: "Sequence[tuple[str, torch.Tensor]]") -> None:
        """Announce the names, and broadcast the bytes."""
        group, self._group = self._group, None
        assert group is not None, "begin() first"
        await self.announce({"header": Layout.of(tensors).header(), "bucket": BUCKET})
        await self.in_thread(self._broadcast, group, tensors)
        self._group = group

    def _broadcast(self, group: Group, tensors: "Sequence[tuple[str, torch.Tensor]]") -> None:
        import torch
        import xxhash

        if self._bucket is None:
            self._bucket = torch.empty(BUCKET, dtype=torch.uint8)
        checksum, filled = xxhash.xxh3_64(), 0
        try:
            for _, tensor in tensors:
                rest = as_bytes(tensor)
                while len(rest):
                    part, rest = rest[: BUCKET - filled], rest[BUCKET - filled :]
                    copy_bytes(part, self._bucket[filled : filled + len(part)], checksum)
                    filled += len(part)
                    if filled == BUCKET:
                        group.broadcast(self._bucket)
                        filled = 0
            if filled:
                group.broadcast(self._bucket[:filled])
            group.broadcast(torch.tensor(list(checksum.digest()), dtype=torch.uint8))
        except RuntimeError as error:
            raise ConnectionError(f"a broadcast of weights failed: {error}") from error

    def close(self) -> None:
        """Leave the group."""
        super().close()
        self._group = None
