"""The one backend of vLLM's weight transfer that our own transports share."""

from concurrent.futures import Future
from typing import Any

from skyrl_vllm.gloo import Group
from skyrl_vllm.inside import gloo
from skyrl_vllm.inside.files import FileReader
from skyrl_vllm.inside.receiver import Receiver
from skyrl_vllm.layout import Weights


class OwnReceiver(Receiver):
    """Takes parcels in files, and broadcast ones from a trainer that it has met.

    So a server takes whatever the run that attaches to it brings, and the next one may
    bring weights another way.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._files = FileReader()
        self._group: Future[Group] | None = None

    def open(self, about: dict[str, Any]) -> None:
        """Meet a trainer, in the thread; another one before is left."""
        config = self.parallel_config
        worker = config.data_parallel_index * config.world_size + config.rank
        self._group = None
        self.restart_thread()
        self._group = self.in_thread(gloo.join, about, worker)

    def receive(self, parcel: dict[str, Any]) -> Weights:
        """The tensors of one parcel, checked.

        Raises:
            ValueError: They are not what was announced.
            RuntimeError: The trainer is gone, or was too late.
        """
        if "path" in parcel:
            return self._files.read(parcel)
        if self._group is None:
            raise ValueError("a broadcast was announced, and nobody has invited this server to one")
        return gloo.receive(self._group.result(), parcel)

    def forget(self) -> None:
        """Keep what the next update needs."""
        super().forget()
        self._files.forget()
