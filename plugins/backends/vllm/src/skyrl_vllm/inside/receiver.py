"""What every transport of ours does inside vLLM: receive beside generation, check, load all or nothing.

One update is four calls of vLLM's own weight-transfer routes:

| call | does |
|---|---|
| `start_weight_update` | forgets what an update before has left |
| `update_weights` {…} | begins to receive, in a thread; generation goes on |
| `update_weights` {"wait": true} | waits for that thread; raises if anything is wrong |
| `finish_weight_update` | loads, in one call between two steps of the engine |

An error in the first three has changed nothing: vLLM closes the update where
`update_weights` raises, so {"cancel": true} is one more way to say no.
"""

from abc import abstractmethod
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.model_loader.reload.layerwise import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)

Weights = list[tuple[str, torch.Tensor]]


@dataclass
class Hello(WeightTransferInitInfo):  # type: ignore[misc]
    """What `Receiver.open` agrees on."""

    about: dict[str, Any] = field(default_factory=dict)


@dataclass
class Announcement(WeightTransferUpdateInfo):  # type: ignore[misc]
    """One call of ``update_weights``."""

    parcel: dict[str, Any] | None = None
    """What comes, in the words of the transport."""
    wait: bool = False
    """Everything was sent."""
    cancel: bool = False
    """Nothing more will come."""
    deadline_s: float = 600.0
    """Longest wait."""


class Receiver(WeightTransferEngine):  # type: ignore[misc]
    """Override `receive`, and `open` and `shutdown` where something stays open between updates."""

    init_info_cls = Hello
    update_info_cls = Announcement
    supports_draft_weight_update = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._thread = ThreadPoolExecutor(1, "skyrl-weights")
        self._coming: list[Future[Weights]] = []
        self._received: Weights = []

    def open(self, about: dict[str, Any]) -> None:
        """Agree with the trainer once, before the first update."""

    @abstractmethod
    def receive(self, parcel: dict[str, Any]) -> Weights:
        """The tensors of one parcel, checked; runs in a thread.

        Raises:
            ValueError: They are not what was announced.
        """

    # --- vLLM's calls ------------------------------------------------------------------

    def init_transfer_engine(self, init_info: Hello) -> None:
        """See `open`."""
        self.open(init_info.about)

    def start_weight_update(self) -> None:
        """Forget what an update before has left."""
        self._forget()

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """No device is waited for, as the base class would: the CPU is none."""
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: Announcement) -> None:
        """Begin, wait or cancel.

        Raises:
            ValueError: What came is not what was announced; the model is as it was.
            TimeoutError: It did not come in time.
        """
        if update_info.cancel:
            self._forget()
            raise ValueError("the update was cancelled")
        if update_info.parcel is not None:
            self._coming.append(self._thread.submit(self.receive, update_info.parcel))
        if update_info.wait:
            try:
                for one in self._coming:
                    self._received += one.result(update_info.deadline_s)
            except BaseException:
                self._forget()
                raise
            self._coming = []

    def finish_weight_update(self) -> None:
        """Load.

        Raises:
            ValueError: Nothing came, or nobody waited for it.
        """
        received, self._received = self._received, []
        if not received or self._coming:
            self._forget()
            raise ValueError("no weights were waited for since start_weight_update")
        with torch.device(self.device):
            initialize_layerwise_reload(self.model)
            self.model.load_weights(iter(received))
            finalize_layerwise_reload(self.model, self.model_config)
        repack(self.model)

    def shutdown(self) -> None:
        """Nothing is open."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _forget(self) -> None:
        self._coming, self._received = [], []


def repack(model: torch.nn.Module) -> None:
    """Give modules that compute with a packed copy of their weight the new one.

    On CPUs vLLM packs linear weights. A reload packs again what it loads; but a
    head that is tied to the embedding is loaded with the embedding, and would go
    on with its old copy, without a word.
    """
    for module in model.modules():
        weight = getattr(module, "weight", None)
        method: Any = getattr(module, "quant_method", None)
        is_packed = hasattr(module, "cpu_linear") and weight is not None and weight.numel() > 0
        if is_packed and hasattr(method, "process_weights_after_loading"):
            method.process_weights_after_loading(module)
