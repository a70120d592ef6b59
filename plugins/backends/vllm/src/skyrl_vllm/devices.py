"""Which GPUs each server computes on."""

import os
from collections.abc import Sequence

from skyrl_kernel.errors import CapabilityError
from skyrl_kernel.place import VISIBLE


def visible() -> list[str]:
    """The GPUs of this process, as `VISIBLE` names them; empty without any."""
    if (named := os.environ.get(VISIBLE)) is not None:
        return [one.strip() for one in named.split(",") if one.strip() not in ("", "-1")]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def shares(gpus: Sequence[str], engines: int, size: int, *, apart: bool) -> list[dict[str, str]]:
    """The environment of each engine that gives it its GPUs; empty ones without a GPU.

    Args:
        gpus: All of them; the trainer computes on the first.
        engines: How many there are.
        size: GPUs of each.
        apart: Whether the trainer's is left to the trainer.

    Raises:
        CapabilityError: There are too few.

    Example:
        >>> shares(["4", "5", "6"], 2, 1, apart=True)
        [{'CUDA_VISIBLE_DEVICES': '5'}, {'CUDA_VISIBLE_DEVICES': '6'}]
    """
    if not gpus:
        return [{}] * engines
    free = list(gpus[1:] if apart else gpus)
    if len(free) < engines * size:
        beside = " and the trainer one of its own" if apart else ""
        raise CapabilityError(
            f"generator.inference_engine.num_engines={engines} engines need {size} GPUs each{beside}, and "
            f"{len(gpus)} are here ({VISIBLE} may hide some); use fewer engines, or lower "
            "generator.inference_engine.tensor_parallel_size"
        )
    return [{VISIBLE: ",".join(free[i * size : (i + 1) * size])} for i in range(engines)]
