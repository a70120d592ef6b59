"""Weights on their way between processes, a bounded number of bytes at a time.

Ray moves the memory of an array as it is: a tensor crosses once, unpickled, and whoever
receives it reads it where it lies, for as long as the parcel lives.
"""

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

PARCEL_BYTES = 64 * 2**20
"""Bytes of a parcel, unless one tensor alone has more. Few enough that some fit into any object
store, many enough that the call that brings one (a millisecond) does not count."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One tensor."""

    name: str
    dtype: str
    """Of torch, without ``torch.``; empty for a numpy array."""
    shape: tuple[int, ...]
    array: NDArray[Any]
    """Its bytes, [bytes] uint8; or the numpy array itself."""


Parcel = list[Item]


def parcels(weights: Iterable[tuple[str, "torch.Tensor"]]) -> Iterator[Parcel]:
    """Pack tensors as they come; where a parcel ends depends on their names and sizes alone."""
    parcel: Parcel = []
    size = 0
    for name, tensor in weights:
        item = _packed(name, tensor)
        if parcel and size + item.array.nbytes > PARCEL_BYTES:
            yield parcel
            parcel, size = [], 0
        parcel.append(item)
        size += item.array.nbytes
    if parcel:
        yield parcel


def tensors(parcel: Parcel) -> Iterator[tuple[str, "torch.Tensor"]]:
    """What was packed, to be read only and not kept: it is the parcel's memory."""
    for item in parcel:
        yield item.name, _unpacked(item)


def _packed(name: str, tensor: Any) -> Item:
    if isinstance(tensor, np.ndarray):  # fakes have no torch
        return Item(name=name, dtype="", shape=tensor.shape, array=tensor)
    import torch

    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return Item(
        name=name,
        dtype=str(tensor.dtype).removeprefix("torch."),
        shape=tuple(tensor.shape),
        array=flat.view(torch.uint8).numpy(),  # numpy has no bfloat16
    )


def _unpacked(item: Item) -> Any:
    if not item.dtype:
        return item.array
    import torch

    dtype = getattr(torch, item.dtype)
    if not item.array.size:  # of which torch makes no view
        return torch.empty(item.shape, dtype=dtype)
    with warnings.catch_warnings():  # that it may not be written to, which nobody does
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        found = torch.from_numpy(item.array)
    return found.view(dtype).reshape(item.shape)
