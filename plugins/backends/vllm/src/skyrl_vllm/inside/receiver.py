"""What every transport of ours does inside vLLM: receive beside generation, check, load all or nothing.

One update is these calls, the question through ``/collective_rpc``, the others by vLLM's own
weight-transfer routes:

| call | does |
|---|---|
| `start_weight_update` | forgets what an update before has left |
| `update_weights` {…} | begins to receive, in a thread |
| `HAS_ARRIVED` | says whether that thread is done; asked until it is |
| `update_weights` {"wait": true} | raises if anything is wrong |
| `finish_weight_update` | loads |

vLLM makes each of them between two steps of the engine, which computes nothing meanwhile. So
all but the last are short, and `update_weights` is not asked before the answer is yes. It has
no way to answer "not yet": vLLM closes the update where it raises, for which {"cancel": true} is
one more way. Of several data-parallel copies vLLM hears the first one's answer alone; on the others
{"wait": true} does wait.

An error in all but the last has changed nothing.
"""

import time
from abc import abstractmethod
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

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

from skyrl_vllm.inside import adapters, question
from skyrl_vllm.layout import Weights

if TYPE_CHECKING:
    from vllm.lora.lora_model import LoRAModel

T = TypeVar("T")


@dataclass
class Hello(WeightTransferInitInfo):  # type: ignore[misc]
    """What `Receiver.open` agrees on."""

    about: dict[str, Any] = field(default_factory=dict)


@dataclass
class Announcement(WeightTransferUpdateInfo):  # type: ignore[misc]
    """One call of ``update_weights``."""

    parcel: dict[str, Any] | None = None
    """What comes, in the words of the transport."""
    update: str = ""
    """Which update it is of: the same word in all calls of one."""
    number: int = 0
    """How many parcels came before."""
    wait: bool = False
    """Everything was sent, and has arrived as far as is known."""
    cancel: bool = False
    """Nothing more will come."""
    deadline_s: float = 600.0
    """Longest wait."""


class Receiver(WeightTransferEngine):  # type: ignore[misc]
    """Override `receive`, and `open` and `shutdown` where something stays open between updates.

    Parcels come in order, each once, all of one update: whatever does not is refused here.
    """

    init_info_cls = Hello
    update_info_cls = Announcement
    supports_draft_weight_update = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        adapters.give_held_ones()
        question.let_workers_answer()
        self.restart_thread()
        self._coming: list[Future[Weights]] = []
        self._whole: Future[tuple[Weights, LoRAModel | None]] | None = None
        self._received: Weights = []
        self._adapter: LoRAModel | None = None
        self._update_id = ""

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
        self.forget()

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """No device is waited for, as the base class would: the CPU is none."""
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: Announcement) -> None:
        """Begin, wait or cancel.

        Raises:
            ValueError: What came is not what was announced; the model is as it was.
            TimeoutError: It did not come in time.
        """
        try:
            if update_info.cancel:
                raise ValueError("the update was cancelled")
            self._refuse_disorder(update_info)
            if update_info.parcel is not None:
                self._coming.append(self.in_thread(self.receive, update_info.parcel))
            if update_info.wait:
                self._received, self._adapter = self._arrived(update_info.deadline_s)
        except BaseException:
            self.forget()
            raise

    def _refuse_disorder(self, info: Announcement) -> None:
        """A parcel that is late, early, lost or doubled is none of this update's."""
        self._update_id = self._update_id or info.update
        if info.update != self._update_id:
            raise ValueError("parcels of two updates came in one")
        if info.number != len(self._coming):
            what = "everything" if info.wait else f"parcel {info.number}"
            raise ValueError(
                f"{what} was said to come after {info.number} parcels, and {len(self._coming)} came"
            )

    def has_arrived(self, update: str, number: int) -> bool:
        """Whether there is nothing to wait for: all ``number`` parcels are here, or something is wrong.

        The answer to `HAS_ARRIVED`. It never raises: of several workers that do vLLM hears one.
        """
        if update != self._update_id or number != len(self._coming):
            return True
        return self._put_together().done() or any(map(_has_failed, self._coming))

    def _arrived(self, deadline_s: float) -> "tuple[Weights, LoRAModel | None]":
        until = time.monotonic() + deadline_s
        whole = self._put_together()
        waited: list[Future[Any]] = [*self._coming, whole]
        for number, one in enumerate(waited):
            try:
                one.result(max(0.0, until - time.monotonic()))
            except TimeoutError as error:
                raise TimeoutError(
                    f"{number} of {len(self._coming)} parcels had come in time: {error}"
                ) from error
        self._coming, self._whole = [], None
        return whole.result()

    def _put_together(self) -> "Future[tuple[Weights, LoRAModel | None]]":
        """What all parcels are, made once, in the thread: it comes to that after the last of them."""
        if self._whole is None:
            self._whole = self.in_thread(self._made_of, [*self._coming])
        return self._whole

    def _made_of(self, coming: list[Future[Weights]]) -> "tuple[Weights, LoRAModel | None]":
        found = [tensor for parcel in coming for tensor in parcel.result()]
        names = [name for name, _ in found]
        if len(set(names)) != len(names):
            raise ValueError("a tensor came twice")
        is_adapter = adapters.are_adapter(found)
        return found, adapters.made(self.model, found) if is_adapter else None

    def finish_weight_update(self) -> None:
        """Load.

        Raises:
            ValueError: Nothing came, or nobody waited for it.
        """
        received, adapter = self._received, self._adapter
        is_complete = received and not self._coming
        self.forget()
        if not is_complete:
            raise ValueError("no weights were waited for since start_weight_update")
        if adapter is not None:
            adapters.put(adapter)
            return
        with torch.device(self.device):
            initialize_layerwise_reload(self.model)
            self.model.load_weights(iter(received))
            finalize_layerwise_reload(self.model, self.model_config)
        repack(self.model)

    def shutdown(self) -> None:
        """Nothing is open."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def in_thread(self, call: Callable[..., T], *args: Any) -> Future[T]:
        """Call it beside generation; such calls run one after the other."""
        return self._thread.submit(call, *args)

    def restart_thread(self) -> None:
        """Have a thread in which nothing waits; what runs in the old one comes to its end."""
        if old := getattr(self, "_thread", None):
            old.shutdown(wait=False, cancel_futures=True)
        self._thread = ThreadPoolExecutor(1, "skyrl-weights")

    def forget(self) -> None:
        """Nothing is under way any more; extend it where more than tensors is kept."""
        self._coming, self._received, self._update_id = [], [], ""
        self._whole = self._adapter = None


def _has_failed(one: Future[Weights]) -> bool:
    return one.done() and (one.cancelled() or one.exception() is not None)


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
