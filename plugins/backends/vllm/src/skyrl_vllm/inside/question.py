"""The question whether an update has arrived: vLLM has no call for it."""

from typing import Any

from vllm.v1.worker.worker_base import WorkerBase

from skyrl_vllm.inside import HAS_ARRIVED


def let_workers_answer() -> None:
    """Give vLLM's workers a method for `HAS_ARRIVED`, which ``/collective_rpc`` calls by its name.

    vLLM's own way, ``--worker-extension-cls``, would have to be named wherever a server is started.
    """

    def has_arrived(worker: Any, update: str, number: int) -> dict[str, bool]:
        return {HAS_ARRIVED: worker.weight_transfer_engine.has_arrived(update, number)}

    setattr(WorkerBase, HAS_ARRIVED, has_arrived)
