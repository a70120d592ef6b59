"""Engines over several GPUs that ranks of the trainer are on too.

Each of these GPUs is a bundle of its own (see `skyrl_kernel.ray.placement`), and Ray gives a process
a part of one bundle. So such an engine sits on its first GPU, and is told the names of all.
"""

import os
from collections.abc import Sequence

import ray
from ray.exceptions import RayError

from skyrl_kernel.errors import CapabilityError
from skyrl_kernel.place import VISIBLE
from skyrl_kernel.ray.placement import Seat


def seats_of_engines(
    devices: Sequence[Seat], number: int, timeout_s: float
) -> tuple[list[Seat], list[dict[str, str]]]:
    """Divide devices among engines.

    Args:
        devices: A seat on each, those of one node behind each other.
        number: Of engines; each has as many devices as any other.
        timeout_s: For a process on each device to say what it is called.

    Returns:
        The seat of each engine, and its environment, over what Ray sets: the GPUs that it computes on,
        where Ray names one of several.

    Raises:
        CapabilityError: An engine would be on two nodes, or a device does not answer.
    """
    size = len(devices) // number
    parts = [devices[first : first + size] for first in range(0, number * size, size)]
    seats = [part[0] for part in parts]
    if size == 1 or not devices[0].gpus:
        return seats, [seat.environment for seat in seats]
    for place, part in enumerate(parts):
        _refuse_two_nodes(place, part)
    names = iter(_names([device for part in parts for device in part], timeout_s))
    return seats, [{VISIBLE: ",".join(next(names) for _ in part)} for part in parts]


def _refuse_two_nodes(place: int, part: Sequence[Seat]) -> None:
    if len({device.node for device in part}) > 1:
        raise CapabilityError(
            f"engine {place} would have {len(part)} GPUs of two nodes, and with "
            "trainer.placement.colocate_all=true an engine is on one: make "
            "trainer.placement.policy_num_gpus_per_node a multiple of the GPUs of an engine "
            "(generator.inference_engine.tensor_parallel_size × pipeline × data parallel size), on nodes "
            "that have so many free, or give engines GPUs of their own with "
            "trainer.placement.colocate_all=false"
        )


def _names(devices: Sequence[Seat], timeout_s: float) -> list[str]:
    """Of each device, what Ray calls it to a process that has a part of it."""
    asked = [ray.remote(_own).options(**device.options).remote() for device in devices]
    try:
        names: list[str] = ray.get(asked, timeout=timeout_s)
    except RayError as error:
        raise CapabilityError(
            f"the GPUs that an engine shares with the trainer were not found out in {timeout_s:g} s "
            f"(trainer.ray.start_timeout_s): {error}"
        ) from error
    return names


def _own() -> str:
    return os.environ[VISIBLE]
