"""How tensors lie in one stretch of bytes: the same words in the trainer's process and in vLLM's.

The words are those of the header of a safetensors file.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeAlias

if TYPE_CHECKING:
    import torch

Weights: TypeAlias = "list[tuple[str, torch.Tensor]]"
"""Tensors by their Hugging Face names."""

ALIGNMENT = 64
"""Bytes; the data of a file begins at a multiple of it."""
_STEP = 1 << 20
"""Bytes that are copied and then added to the checksum, while they are still in the processor's cache."""
_DTYPES = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}
"""The word of safetensors → that of torch."""


class Checksum(Protocol):
    """What `xxhash.xxh3_64` makes."""

    def update(self, data: Any, /) -> None:
        """Add bytes."""

    def digest(self) -> bytes:
        """Of all of them."""


def dtype_name(dtype: "torch.dtype") -> str | None:
    """The word of safetensors; None for what weights are not sent in."""
    word = str(dtype).removeprefix("torch.")
    return next((name for name, known in _DTYPES.items() if known == word), None)


@dataclass(frozen=True, slots=True)
class Place:
    """One tensor."""

    name: str
    dtype: str
    """As safetensors has it."""
    shape: tuple[int, ...]
    start: int
    """Bytes before it."""
    stop: int


@dataclass(frozen=True, slots=True)
class Layout:
    """Tensors one after the other, without gaps."""

    places: tuple[Place, ...]

    @classmethod
    def of(cls, tensors: "Iterable[tuple[str, torch.Tensor]]") -> Self:
        """In the given order; `in_order` keeps each aligned.

        Raises:
            ValueError: Weights are not sent in such a dtype.
        """
        places: list[Place] = []
        start = 0
        for name, tensor in tensors:
            dtype = dtype_name(tensor.dtype)
            if dtype is None:
                raise ValueError(f"'{name}' holds {tensor.dtype}; known: {', '.join(_DTYPES)}")
            stop = start + tensor.numel() * tensor.element_size()
            places.append(Place(name, dtype, tuple(tensor.shape), start, stop))
            start = stop
        return cls(tuple(places))

    @classmethod
    def of_header(cls, header: Mapping[str, Any]) -> Self:
        """What `header` gave.

        Raises:
            ValueError: It does not describe tensors without gaps.
        """
        try:
            places = sorted(
                (
                    Place(name, one["dtype"], tuple(one["shape"]), *one["data_offsets"])
                    for name, one in header.items()
                    if name != "__metadata__"
                ),
                key=lambda place: (place.start, place.stop),
            )
            ends = [0, *(place.stop for place in places)]
            if any(place.start != end for place, end in zip(places, ends, strict=False)):
                raise ValueError("there are gaps")
        except (LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error
        return cls(tuple(places))

    @property
    def size(self) -> int:
        """Bytes of all."""
        return self.places[-1].stop if self.places else 0

    def header(self) -> dict[str, Any]:
        """Name → dtype, shape and offsets, JSON-able."""
        return {
            one.name: {
                "dtype": one.dtype,
                "shape": list(one.shape),
                "data_offsets": [one.start, one.stop],
            }
            for one in self.places
        }

    def head(self) -> bytes:
        """What stands before the data in a safetensors file; padded with blanks, as the format allows."""
        text = json.dumps(self.header(), separators=(",", ":")).encode()
        text += b" " * (-(8 + len(text)) % ALIGNMENT)
        return len(text).to_bytes(8, "little") + text

    def views(self, data: "torch.Tensor") -> "list[tuple[str, torch.Tensor]]":
        """The tensors in ``data`` [`size`] uint8, nothing copied.

        Raises:
            ValueError: A dtype is not known, or a shape has another number of elements.
        """
        import torch

        found: list[tuple[str, torch.Tensor]] = []
        for one in self.places:
            if one.dtype not in _DTYPES:
                raise ValueError(f"'{one.name}' holds {one.dtype}; known: {', '.join(_DTYPES)}")
            part = data[one.start : one.stop].view(getattr(torch, _DTYPES[one.dtype]))
            try:
                found.append((one.name, part.view(one.shape)))
            except RuntimeError as error:
                raise ValueError(f"'{one.name}': {error}") from error
        return found


def in_order(
    tensors: "Iterable[tuple[str, torch.Tensor]]",
) -> "list[tuple[str, torch.Tensor]]":
    """Those of wide numbers first, so that each begins at a multiple of its own width."""
    return sorted(tensors, key=lambda one: -one[1].element_size())


def copy_bytes(source: "torch.Tensor", target: "torch.Tensor", checksum: Checksum) -> None:
    """Copy all bytes of a tensor to ``target`` uint8 on the host, and add them to the checksum.

    One copy from any device. A pinned target would be faster from a GPU; not measured.
    """
    octets = as_bytes(source)
    step = _STEP if octets.device.type == "cpu" else max(len(octets), 1)
    for start in range(0, len(octets), step):
        part = target[start : start + step]
        part.copy_(octets[start : start + step])
        checksum.update(part.numpy())


def as_bytes(tensor: "torch.Tensor") -> "torch.Tensor":
    """Its bytes, uint8; NumPy has no bfloat16."""
    import torch

    return tensor.detach().contiguous().view(-1).view(torch.uint8)
