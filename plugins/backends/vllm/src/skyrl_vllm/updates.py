"""New weights as a transaction: what may come, in which order, and which weights there are afterwards."""

import json
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skyrl_kernel.errors import WeightSyncError
from skyrl_vllm import adapters
from skyrl_vllm.client import Refused, ServerError
from skyrl_vllm.fleet import Fleet
from skyrl_vllm.layout import dtype_name
from skyrl_vllm.transports import Transport

if TYPE_CHECKING:
    import torch

Shapes = Mapping[str, tuple[int, ...]]


class Updates:
    """Begins, checks and commits updates of one engine, through one transport.

    Args:
        fleet: The servers.
        transport: Not opened yet.
        expected: Name → shape of the model's tensors; None if they are not known.
        version: Policy version of the weights that the servers have.
        takes_adapters: Whether each update is an adapter on the model rather than a model.
    """

    def __init__(
        self,
        fleet: Fleet,
        transport: Transport,
        expected: Shapes | None,
        *,
        version: int = 0,
        takes_adapters: bool = False,
    ) -> None:
        self.version = version
        self.takes_adapters = takes_adapters
        self.has_adapter = False
        """Whether the servers compute with an adapter, for requests that name it."""
        self._adapter: frozenset[str] = frozenset()
        self._fleet = fleet
        self._transport = transport
        self._expected = expected
        self._begun: int | None = None
        self._names: set[str] = set()
        self._is_open = False
        self._broken: str | None = None

    async def begin(self, version: int) -> None:
        """Get ready; an update begun before is forgotten.

        Raises:
            WeightSyncError: The servers have newer weights, or refused.
        """
        if self._broken:
            raise WeightSyncError(self._broken)
        if version < self.version:
            await self.forget()
            raise WeightSyncError(
                f"an update to policy version {version} was begun, and {self._fleet} has version "
                f"{self.version} already; versions never go back"
            )
        if not self._is_open:
            await self._call(version, self._transport.open(self._fleet))
            self._is_open = True
        self._begun, self._names = version, set()
        await self._call(version, self._transport.begin())

    def change(self, transport: Transport) -> None:
        """Bring weights through another transport from the next update on."""
        self.close()
        self._transport, self._is_open, self._begun = transport, False, None

    async def apply(self, weights: "Iterable[tuple[str, torch.Tensor]]") -> None:
        """Bring some or all tensors on their way.

        Raises:
            WeightSyncError: No update was begun, a tensor does not fit, or the servers
                refused. The update is over; the old weights stay.
        """
        version = self._begun
        if version is None:
            raise WeightSyncError(
                "weights arrived before an update was begun, or after one was refused; "
                "call begin_update first"
            )
        await self._call(version, self._transport.move(self._checked(weights)))

    async def arrive(self, version: int) -> None:
        """Return when the servers have everything, and nothing is wrong with it.

        Raises:
            WeightSyncError: Tensors are missing, ``version`` is not the one begun, or the
                servers refused. The update is over; the old weights stay.
        """
        begun = self._begun
        if begun != version:
            await self.forget()
            found = "none was begun" if begun is None else f"version {begun} was begun"
            raise WeightSyncError(
                f"an update to policy version {version} was finished, but {found}. The engine "
                f"stays at version {self.version}; begin and finish with the same version"
            )
        missing = self._missing()
        if missing or not self._names:
            await self.forget()
            of = (
                f" of its {len(self._expected)}"
                if self._expected and not self.takes_adapters
                else ""
            )
            shown = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
            raise self._refusal(
                version, f"{len(missing)}{of} tensors are missing: {shown or 'all'}"
            )
        await self._call(version, self._transport.arrive())

    async def load(self) -> None:
        """Commit what has arrived; nothing computes meanwhile.

        Raises:
            WeightSyncError: It failed, and the servers have neither the old weights nor
                the new ones, or are gone.
        """
        version, self._begun = self._begun, None
        assert version is not None, "arrive() first"
        try:
            await self._transport.load(version)
        except BaseException as error:
            found = str(error) or type(error).__name__
            if not isinstance(error, ServerError):  # which names the server itself
                found = f"{self._fleet} gave {found}"
            self._broken = (
                f"the update to policy version {version} failed: {found}. It has neither the old weights nor "
                "the new ones for certain; start it again"
            )
            if isinstance(error, (Refused, ServerError, TimeoutError, OSError, RuntimeError)):
                raise WeightSyncError(self._broken) from error
            raise
        self.version = version
        if self.takes_adapters:
            self._adapter = frozenset(self._names)
            self.has_adapter = True

    def adopt(self, version: int) -> None:
        """Somebody else has brought the servers all of ``version``."""
        self.version = version
        self.has_adapter = self.takes_adapters

    @property
    def is_broken(self) -> bool:
        """Whether nobody knows which weights the servers have."""
        return self._broken is not None

    async def forget(self) -> None:
        """End an update that was not committed."""
        self._begun = None
        if self._is_open:
            await self._transport.forget()

    def close(self) -> None:
        """Release what the transport holds."""
        if self._is_open:
            self._transport.close()

    def _missing(self) -> list[str]:
        if self.takes_adapters:
            return adapters.missing(self._names, self._adapter)
        return sorted(set(self._expected or {}) - self._names)

    async def _call(self, version: int, call: Any) -> None:
        """One call of the transport that changes no weights; where it fails the update is over."""
        try:
            await call
        except BaseException as error:
            await self.forget()
            if isinstance(error, ServerError):
                raise self._lost(version, error) from error
            if isinstance(error, (Refused, TimeoutError, OSError)):
                found = f"{self._fleet} gave {error}" if isinstance(error, Refused) else error
                raise WeightSyncError(
                    f"the update to policy version {version} failed: {found}. The engine keeps the "
                    f"weights of version {self.version}"
                ) from error
            raise

    def _checked(
        self, weights: "Iterable[tuple[str, torch.Tensor]]"
    ) -> "Iterator[tuple[str, torch.Tensor]]":
        assert self._begun is not None
        for name, tensor in weights:
            self._check(self._begun, name, tensor)
            self._names.add(name)
            yield name, tensor

    def _check(self, version: int, name: str, tensor: "torch.Tensor") -> None:
        shape = tuple(tensor.shape)
        if dtype_name(tensor.dtype) is None:
            raise self._refusal(version, f"the tensor '{name}' holds {tensor.dtype}, no weights")
        if not _is_finite(tensor):
            raise self._refusal(version, f"the tensor '{name}' holds NaN or infinity")
        if name in self._names:
            raise self._refusal(version, f"the tensor '{name}' came twice")
        if self._expected is None:
            return
        if self.takes_adapters:
            if found := adapters.problem(name, shape, self._expected):
                raise self._refusal(version, f"the tensor '{name}' {found}")
            return
        if name not in self._expected:
            first = ", ".join(list(self._expected)[:3])
            raise self._refusal(
                version, f"the tensor '{name}' is not in the engine's model, which has {first}, …"
            )
        if shape != self._expected[name]:
            raise self._refusal(
                version,
                f"the tensor '{name}' has shape {shape}, the engine's has {self._expected[name]}",
            )

    def _refusal(self, version: int, found: str) -> WeightSyncError:
        sender = "adapter()" if self.takes_adapters else "weights()"
        return WeightSyncError(
            f"the update to policy version {version} was refused: {found}. The engine keeps "
            f"its old weights; send every tensor once, as the trainer's {sender} names them"
        )

    def _lost(self, version: int, error: ServerError) -> WeightSyncError:
        return WeightSyncError(f"policy version {version} was lost: {error}")


def _is_finite(tensor: "torch.Tensor") -> bool:
    """Whether no number is NaN or infinite.

    With such weights vLLM reports log-probs of -9999, and its cache of keys and
    values holds NaN also after the next, good weights.
    """
    tensor = tensor.detach()
    # One pass, no copy, about 5 % of an update; a finite sum has finite terms. Finite terms may have
    # another one, above all in float16.
    return bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())


def stored_shapes(model: Path) -> dict[str, tuple[int, ...]] | None:
    """Name → shape of the tensors in a model directory; None if it is none with safetensors.

    Only headers are read. A head tied to the embedding is left out, as by a
    trainer's ``weights()``, also where the directory has a copy of it.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for path in sorted(model.glob("*.safetensors")) if model.is_dir() else ():
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        shapes |= {k: tuple(v["shape"]) for k, v in header.items() if k != "__metadata__"}
    if shapes and json.loads((model / "config.json").read_text()).get("tie_word_embeddings"):
        shapes.pop("lm_head.weight", None)
    return shapes or None
