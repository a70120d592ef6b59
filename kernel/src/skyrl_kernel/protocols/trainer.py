"""What a trainer is, and what some can do besides."""

from collections.abc import (
    Iterator,
    Sequence,
)
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from skyrl_kernel.records import (
    FloatArray,
    IntArray,
    TrainingSample,
    UpdateResult,
)

if TYPE_CHECKING:
    import torch

    from skyrl_kernel.protocols.stages import Loss


@runtime_checkable
class Trainer(Protocol):
    """Owns models by role (``policy``, ``reference``, …) and the optimizers of those it trains.

    The role ``value`` is a critic: a model with a head of one number in place of
    the vocabulary. Policy and critic are trained, all other roles are frozen.
    """

    def score(self, role: str, rows: Sequence[IntArray], *, temperature: float) -> list[FloatArray]:
        """[T] log-prob in nats of each row's tokens given those before; 0 at index 0.

        Of the role ``value``: what the critic expects before each token, that is at
        the token before it, in task units; ``temperature`` does not matter.
        """
        ...

    def update(
        self, batch: Sequence[TrainingSample], loss: "Loss", *, temperature: float
    ) -> UpdateResult:
        """One optimizer step of each trained role on one mini-batch.

        The critic takes part if ``loss`` has something for it. Micro-batches and
        ranks must not change the result. What `make_trainer` was told to be elsewhere
        is left out: that trainer's result has its metrics.
        """
        ...

    def weights(self, role: str = "policy") -> Iterator[tuple[str, "torch.Tensor"]]:
        """Every tensor by Hugging Face name, tied ones once."""
        ...

    def save(self, folder: Path) -> None:
        """Write all that `load` needs to continue bit for bit. No pickle."""
        ...

    def load(self, folder: Path) -> None:
        """Continue from what `save` wrote."""
        ...

    def export(self, folder: Path) -> None:
        """Write the policy as a Hugging Face directory, tokenizer included."""
        ...

    def offload(self) -> None:
        """Give the accelerator's memory back; a no-op without one.

        `save`, `load` and `export` work on what was moved away, and leave it there.
        """
        ...

    def onload(self) -> None:
        """Undo `offload`."""
        ...


@runtime_checkable
class LendsAdapter(Protocol):
    """What a trainer adds to `Trainer` that offers ``lends_adapter``: the part that LoRA trains."""

    def adapter(self) -> Iterator[tuple[str, "torch.Tensor"]]:
        """The policy's adapter by PEFT's names, ``base_model.model.PATH.lora_A.weight`` and ``…lora_B.weight``.

        A is [rank, in]; B is [out, rank] times alpha / rank: the layer adds B(Ax) to what it
        computes without. With several ranks as `Trainer.weights`.
        """
        ...


@runtime_checkable
class Ranked(Protocol):
    """What a trainer adds to `Trainer` where several processes make up one: offers ``several_ranks``.

    The runtime has set torchrun's environment variables (``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK``,
    ``LOCAL_WORLD_SIZE``, ``MASTER_ADDR``, ``MASTER_PORT``) before `make_trainer` is called in each
    process; the plugin makes its process group from them and ends it in `close`. Every method of
    `Trainer` is called on every rank, in the same order:

    - `score` with the rank's own rows, maybe none; ranks of equal `share` get the same.
    - `update` with the rank's own part of one mini-batch, maybe nothing, never part of an atom of
      the loss. Loss weights are of the whole mini-batch, so gradients add up over shares. The
      result is that of the whole mini-batch, equal on all ranks.
    - `weights`: iterated to its end on all ranks, in step; full tensors on each.
    - `save`, `load`, `export`: with one folder for all; they return when all ranks are done.

    What one rank finds wrong is raised on all, naming the rank, within a deadline.
    """

    share: int
    """Which part of the data this rank computes, from 0."""
    shares: int
    """Number of parts."""

    def close(self) -> None:
        """Leave the process group."""
        ...
