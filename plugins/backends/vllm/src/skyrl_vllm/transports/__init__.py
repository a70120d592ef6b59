"""How weights get from the trainer's process into vLLM's.

A transport has two halves. This package has the trainer's; vLLM's is a class of
its own weight-transfer API, which is found by the name that the server was
started with (`server_flags`): ours are in `skyrl_vllm.inside`, a third
party's is registered by an entry point in the group ``vllm.general_plugins``.

A transport of your own is a plugin in the slot
``generator.inference_engine.weight_sync_backend`` whose hook ``sync_weights``
returns ``Through(MyTransport)``; vLLM's half is registered under the plugin's name.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from skyrl_kernel.defaults.push import push
from skyrl_kernel.errors import CapabilityError
from skyrl_kernel.protocols import Engine, Trainer
from skyrl_kernel.slots import BACKENDS, PLUGINS
from skyrl_vllm.fleet import Fleet
from skyrl_vllm.inside import OWN

if TYPE_CHECKING:
    import torch

VLLM_PLUGINS = "vllm.general_plugins"
_VLLMS_OWN = ("nccl", "ipc")
_OWN_NAMES = ("auto", "push", "safetensors", "gloo", "adapters")


def server_backend(name: str, *, colocated: bool) -> str:
    """Which of vLLM's halves a server must be started with, for the transport of that name.

    ``nccl`` means what it means to SkyRL: on a GPU that trainer and engine share there is
    no group of two, and the memory itself is shared. A third party's half is called as
    its plugin.
    """
    if name == "cuda_ipc" or (name == "nccl" and colocated):
        return "ipc"
    return OWN if name in _OWN_NAMES else name


def missing_half(name: str) -> list[str]:
    """What a server that starts in this environment lacks for the transport of that name: a sentence.

    vLLM learns of a third party's half by an entry point of the transport's name, or one of
    its distribution.
    """
    if server_backend(name, colocated=False) in (OWN, *_VLLMS_OWN):
        return []
    owners = {
        one.dist.name
        for group in (PLUGINS, BACKENDS)
        for one in entry_points(group=group, name=name)
        if one.dist is not None
    }
    for half in entry_points(group=VLLM_PLUGINS):
        if half.name == name or (half.dist is not None and half.dist.name in owners):
            return []
    return [
        f"generator.inference_engine.weight_sync_backend={name}: vLLM has no half of that transport, since "
        f"no entry point in the group {VLLM_PLUGINS} is called so or comes from its distribution; vLLM "
        f"takes {', '.join((*_OWN_NAMES[1:], 'nccl', 'cuda_ipc'))}"
    ]


def server_flags(name: str, *, colocated: bool) -> list[str]:
    """The same in words of vLLM's command line."""
    backend = server_backend(name, colocated=colocated)
    return ["--weight-transfer-config", json.dumps({"backend": backend})]


def server_variables(name: str, *, colocated: bool) -> dict[str, str]:
    """The environment likewise: handles of GPU memory come pickled, and a server here listens on loopback."""
    is_pickled = server_backend(name, colocated=colocated) == "ipc"
    return {"VLLM_ALLOW_INSECURE_SERIALIZATION": "1"} if is_pickled else {}


class Transport(Protocol):
    """The trainer's half. An update is `begin`, one or more `move`, `arrive`, `load`; or `forget`.

    Until `load` an error (``Refused`` by a server, ``TimeoutError``, ``OSError``)
    leaves the old weights where they are; one in `load` means that nobody knows.
    """

    async def open(self, fleet: Fleet) -> None:
        """Agree with the servers; once, before the first update."""
        ...

    async def begin(self) -> None:
        """Get ready for new weights."""
        ...

    async def move(self, weights: "Iterable[tuple[str, torch.Tensor]]") -> None:
        """Bring some or all tensors on their way; generation goes on.

        ``weights`` is iterated once, in any thread, and may raise: then the update is
        given up.
        """
        ...

    async def arrive(self) -> None:
        """Return when every server has all tensors, whole; generation goes on."""
        ...

    async def load(self, version: int) -> None:
        """Let every server put them into its model; nothing is computed meanwhile.

        Every server tags the tokens that it samples from then on with ``version``.
        """
        ...

    async def forget(self) -> None:
        """Nothing is under way any more, whatever was before. Never raises."""
        ...

    def close(self) -> None:
        """Release everything, servers that are gone included. Never raises."""
        ...


@runtime_checkable
class _TakesTransport(Protocol):
    def use_transport(self, make: "Callable[[], Transport]") -> None: ...


@dataclass(frozen=True)
class Through:
    """The stage `sync_weights`: the kernel's transaction through one transport."""

    make: Callable[[], Transport]

    async def __call__(self, trainer: Trainer, engine: Engine, version: int) -> None:
        """See `skyrl_kernel.defaults.push.push`.

        Raises:
            CapabilityError: The engine is not vLLM.
            WeightSyncError: The engine refused; it says which weights it has.
        """
        if not isinstance(engine, _TakesTransport):
            raise CapabilityError(
                "generator.inference_engine.weight_sync_backend names a transport into vLLM, and the "
                f"engine is a {type(engine).__name__}; use generator.inference_engine.backend=vllm, or "
                "weight_sync_backend=auto"
            )
        engine.use_transport(self.make)
        await push(trainer, engine, version)
