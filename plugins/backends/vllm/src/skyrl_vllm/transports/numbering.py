"""Who is who in a group of the trainer, rank 0, and every worker of every server."""

import asyncio
from dataclasses import dataclass

from skyrl_vllm.client import Client
from skyrl_vllm.fleet import Fleet


@dataclass(frozen=True, slots=True)
class Numbering:
    """Counts all tensor, pipeline and data parallel workers."""

    firsts: tuple[int, ...]
    """Rank of each server's first worker."""
    size: int
    """All of them and the trainer."""


async def numbering(fleet: Fleet) -> Numbering:
    """What the servers say of themselves."""
    workers = await asyncio.gather(*(_workers(one, fleet) for one in fleet.clients))
    firsts = tuple(1 + sum(workers[:place]) for place in range(len(workers)))
    return Numbering(firsts, 1 + sum(workers))


async def _workers(client: Client, fleet: Fleet) -> int:
    answer = await client.ask(
        "GET", "/get_world_size?include_dp=true", timeout_s=fleet.deadlines.control_s
    )
    return int(answer["world_size"])
