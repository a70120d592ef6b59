"""One model that is trained: weights, optimizers, schedule, and its part of a checkpoint.

The trainer has one of these per trained role and treats them alike.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from skyrl_fsdp import checkpoint
from skyrl_fsdp.adapted import dropout_drawn_from, kept_tensors, settings_of
from skyrl_fsdp.critic import Critic
from skyrl_fsdp.models import Model
from skyrl_fsdp.optimizer import (
    clip_gradients,
    make_optimizers,
    rate_factor,
    set_rates,
    step_and_compare,
)
from skyrl_fsdp.ranks import Ranks
from skyrl_fsdp.sharding import abandon_pass, sum_whole
from skyrl_kernel.config.roles import OptimizerConfig
from skyrl_kernel.errors import ResumeError
from skyrl_transformers.loading import distinct_tensors


class TrainedModel:
    """A model and its optimizers.

    Args:
        module: Its weights; those are trained that have a gradient.
        config: Optimizer and schedule.
        key: Where ``config`` stands in the tree, for messages.
        checkpointing: Recompute activations in the backward pass.
        seed: Of the dropout of adapters.
        ranks: Those that have the other parts of its weights.
    """

    def __init__(
        self,
        module: Model,
        config: OptimizerConfig,
        *,
        key: str,
        checkpointing: bool,
        seed: int,
        ranks: Ranks,
    ) -> None:
        self.module = module
        self.updates = 0
        """Optimizer steps so far."""
        self.total_updates: int | None = None
        """Of the whole run; the scheduler ``linear`` needs it."""
        self._config = config
        self._key = key
        self._seed = seed
        self._ranks = ranks
        if checkpointing:
            _enable_checkpointing(module.body if isinstance(module, Critic) else module)
        self._parameters = [p for p in module.parameters() if p.requires_grad]
        self.optimizers = make_optimizers(module, config)

    @property
    def rate(self) -> float:
        """AdamW's learning rate of the next update."""
        return self._config.lr * self._factor()

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """Gradients are collected in here, and gone afterwards."""
        try:
            self.module.train()
            with dropout_drawn_from(self.module, self._seed, self.updates, self._ranks.rank):
                yield
        except BaseException:
            abandon_pass(self.module)
            raise
        finally:
            for parameter in self._parameters:
                parameter.grad = None
            self.module.eval()

    def clip(self) -> float:
        """Scale the gradient down to ``max_grad_norm``; returns its norm before, over all ranks."""
        if self._ranks.world > 1:
            sum_whole(self._parameters)
        return clip_gradients(self._parameters, self._config.max_grad_norm)

    def step(self) -> bool:
        """Make the optimizer step; True if it changed any bit of any parameter, on any rank."""
        set_rates(self.optimizers, self._factor())
        changed = step_and_compare(self.optimizers, lambda here: bool(self._ranks.most(here)))
        self.updates += 1
        return changed

    def save(self, folder: Path) -> None:
        """Write what is trained, optimizer state and counts; see `skyrl_fsdp.checkpoint`.

        Every rank writes its part, and returns once all have.
        """
        numbers: dict[str, object] = {
            "updates": self.updates,
            "total_updates": self.total_updates,
            "optimizer": self._config.name,
        }
        if lora := settings_of(self.module):
            numbers["lora"] = lora
        kept = kept_tensors(self.module)
        state = checkpoint.optimizer_tensors(self.optimizers, self._names())
        rank, world = self._ranks.rank, self._ranks.world

        def write() -> None:
            folder.mkdir(parents=True, exist_ok=True)
            for name, tensors in ((checkpoint.WEIGHTS, kept), (checkpoint.OPTIMIZER, state)):
                checkpoint.write_part(folder, name, tensors, rank=rank, world=world)
            if rank == 0:
                checkpoint.write_numbers(folder, numbers)

        self._ranks.agree(write)

    def load(self, folder: Path) -> None:
        """Continue from what `save` wrote: on as many ranks bit for bit, on others up to rounding.

        Raises:
            CheckpointError: A file is missing, damaged or of another model.
            ResumeError: It was written with another optimizer or with other adapters.
        """
        numbers = checkpoint.read_numbers(folder)
        name = self._config.name
        if numbers.get("optimizer") != name:
            raise ResumeError(
                f"{self._key}.name={name}, but the checkpoint '{folder}' was "
                f"written with {numbers.get('optimizer')}, whose state {name} cannot use; set it "
                "back, or start anew with another trainer.run_name"
            )
        if (lora := settings_of(self.module)) != (written := numbers.get("lora")):
            raise ResumeError(
                f"the checkpoint '{folder}' was written with {_described(written)}, and this run "
                f"trains {_described(lora)}; set {self._key.rpartition('.')[0]}.model.lora as it was, "
                "or start anew with another trainer.run_name"
            )
        checkpoint.put_weights(folder, kept_tensors(self.module))
        checkpoint.put_optimizer_tensors(folder, self.optimizers, self._names())
        self.updates = int(str(numbers["updates"]))
        if self.total_updates is None and numbers.get("total_updates") is not None:
            self.total_updates = int(str(numbers["total_updates"]))

    def move_optimizers(self, device: torch.device) -> None:
        """Move the optimizers' state; the weights are moved with the trainer's other models.

        What FSDP keeps in the machine's memory (``fsdp_config.cpu_offload``) stays there, and all with
        ``offload_after_step=false``.
        """
        if not self._config.offload_after_step:
            return
        for optimizer in self.optimizers:
            for parameter, state in optimizer.state.items():
                there = device if parameter.device == self._ranks.device else parameter.device
                state.update({key: value.to(there) for key, value in state.items()})

    def _factor(self) -> float:
        return rate_factor(self.updates, self._config, self.total_updates, key=self._key)

    def _names(self) -> dict[Tensor, str]:
        return {parameter: name for name, parameter in distinct_tensors(self.module).items()}


def _described(lora: object) -> str:
    """Settings of adapters in words."""
    if not isinstance(lora, dict):
        return "all weights"
    return f"adapters of {', '.join(f'{name}={value}' for name, value in lora.items())}"


def _enable_checkpointing(module: PreTrainedModel) -> None:
    # transformers 5.23 renamed the method and warns about the old name; drop it when 5.23 is the
    # oldest version that pyproject.toml allows.
    enable = getattr(
        module, "activation_checkpointing_enable", module.gradient_checkpointing_enable
    )
    enable({"use_reentrant": False})
