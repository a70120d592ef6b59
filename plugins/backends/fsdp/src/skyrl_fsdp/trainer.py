"""The trainer: models by role, and the policy's optimizer, in one process.

One update, in the order of the code:

    rows with a trained token → micro-batches → (prepare pass: columns, joined)
    → per micro-batch: forward → loss → objective → backward
    → clip → step → compare

The weight of every token was computed from the whole mini-batch beforehand, so
gradients simply add up over micro-batches.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from transformers import PreTrainedModel

from skyrl_fsdp import checkpoint
from skyrl_fsdp.export import export_policy
from skyrl_fsdp.finite import require_finite, require_finite_gradient
from skyrl_fsdp.microbatch import forward, split, trained
from skyrl_fsdp.optimizer import make_optimizers, rate_factor, set_rates, step_and_compare
from skyrl_kernel.config.tree import TrainerConfig
from skyrl_kernel.errors import ConfigError, ResumeError
from skyrl_kernel.protocols import Loss
from skyrl_kernel.records import FloatArray, IntArray, TrainingSample, UpdateResult
from skyrl_kernel.torch import MetricSums, objective, pack, row_logprobs
from skyrl_transformers.loading import default_device, distinct_tensors, load_causal_lm

POLICY = "policy"


class FsdpTrainer:
    """Keeps the `skyrl_kernel.protocols.Trainer` protocol.

    Args:
        models: Role → Hugging Face directory. The role ``policy`` is trained, all
            others are frozen.
        config: ``trainer``.
        device: ``auto``, ``cpu`` or ``cuda``.

    Raises:
        ModelError: A directory holds no causal language model.
        ConfigError: ``cuda`` where there is none.
    """

    def __init__(
        self, models: Mapping[str, Path], config: TrainerConfig, *, device: str = "auto"
    ) -> None:
        self._config = config
        self._device = _device(device)
        self._paths = dict(models)
        self._modules = {role: load_causal_lm(path, self._device) for role, path in models.items()}
        for role, module in self._modules.items():
            module.requires_grad_(role == POLICY)
        if config.gradient_checkpointing and POLICY in self._modules:
            _enable_checkpointing(self._modules[POLICY])
        self._optimizers = (
            make_optimizers(self._modules[POLICY], config.policy.optimizer_config)
            if POLICY in self._modules
            else []
        )
        self._updates = 0
        self._total_updates: int | None = None

    def module(self, role: str = POLICY) -> PreTrainedModel:
        """The live module of a role, for an engine that shares it.

        Raises:
            ValueError: No model has the role; names those that there are.
        """
        try:
            return self._modules[role]
        except KeyError:
            raise ValueError(
                f"the trainer has no model for the role '{role}'; it has {', '.join(self._modules)}"
            ) from None

    def set_total_updates(self, total: int) -> None:
        """Say how many updates the whole run makes; the scheduler ``linear`` needs it."""
        self._total_updates = total

    def score(self, role: str, rows: Sequence[IntArray], *, temperature: float) -> list[FloatArray]:
        """[T] log-prob in nats of each row's tokens given those before; 0 at index 0."""
        module = self.module(role)

        def logits(ids: Tensor) -> Tensor:
            out: Tensor = module(input_ids=ids, use_cache=False).logits
            return out

        with self._precision():
            return row_logprobs(
                logits,
                rows,
                temperature=temperature,
                device=self._device,
                max_rows=self._config.micro_forward_batch_size_per_gpu,
            )

    def update(
        self, batch: Sequence[TrainingSample], loss: Loss, *, temperature: float
    ) -> UpdateResult:
        """One optimizer step on one mini-batch; the split into micro-batches does not change it.

        Metrics: ``final_loss`` (the objective), ``policy_loss`` and one ``…_loss``
        per term, ``policy_entropy``, ``grad_norm`` (before clipping),
        ``policy_lr``, ``trained_tokens``, and the loss's own. Without a trained
        token nothing is computed and nothing changes: ``trained_tokens`` is 0.

        Raises:
            NonFiniteError: NaN or infinity in log-probs, loss or gradient; the
                weights are as before.
            ValueError: A sample trains on its first token, or lacks a score.
        """
        module = self.module(POLICY)
        samples = trained(batch)
        optimizer_config = self._config.policy.optimizer_config
        factor = rate_factor(self._updates, optimizer_config, self._total_updates)
        metrics = {"final_loss": 0.0, "grad_norm": 0.0, "policy_lr": optimizer_config.lr * factor}
        metrics["trained_tokens"] = float(sum(int(s.loss_mask.sum()) for s in samples))
        if not samples:
            return UpdateResult(metrics=metrics, weights_changed=False)
        try:
            module.train()
            total, sums = self._backward(module, samples, loss, temperature)
            limit = optimizer_config.max_grad_norm
            metrics["grad_norm"] = float(clip_grad_norm_(module.parameters(), limit))
            require_finite_gradient(metrics["grad_norm"], samples)
            set_rates(self._optimizers, factor)
            changed = step_and_compare(self._optimizers)
        finally:
            module.zero_grad(set_to_none=True)
            module.eval()
        self._updates += 1
        metrics["final_loss"] = total
        return UpdateResult(metrics=metrics | sums.result(), weights_changed=changed)

    def _backward(
        self,
        module: PreTrainedModel,
        samples: Sequence[TrainingSample],
        loss: Loss,
        temperature: float,
    ) -> tuple[float, MetricSums]:
        """Gradients of the whole mini-batch; returns the objective and the metrics."""
        micro_batches = split(samples, loss.atom, self._config.micro_train_batch_size_per_gpu)
        seed = self._loss_seed()
        columns = self._prepare(module, micro_batches, loss, temperature, seed)
        total, sums = 0.0, MetricSums()
        for rows in micro_batches:
            with self._precision():
                logprobs, entropy = forward(
                    module, rows, temperature, entropy_has_gradient="entropy" in loss.coefficients
                )
            require_finite({"log-probs": logprobs}, rows)
            inputs, weights = pack(
                rows, logprobs, entropy, needs=loss.needs, minibatch=columns, seed=seed
            )
            scalar, out = objective(loss, inputs, weights)
            require_finite({f"the loss terms '{name}'": t for name, t in out.terms.items()}, rows)
            scalar.backward()  # type: ignore[no-untyped-call]
            sums.add(inputs, out, weights)
            total += float(scalar.detach())
        return total, sums

    @torch.no_grad()
    def _prepare(
        self,
        module: PreTrainedModel,
        micro_batches: Sequence[Sequence[TrainingSample]],
        loss: Loss,
        temperature: float,
        seed: int,
    ) -> dict[str, Tensor]:
        """What ``loss.prepare`` returns, joined over the mini-batch; empty without one."""
        columns: dict[str, list[Tensor]] = {}
        if loss.prepare is None:
            return {}
        for rows in micro_batches:
            with self._precision():
                logprobs, entropy = forward(module, rows, temperature, entropy_has_gradient=False)
            require_finite({"log-probs": logprobs}, rows)
            inputs, _ = pack(rows, logprobs, entropy, needs=loss.needs, seed=seed)
            for name, column in loss.prepare(inputs).items():
                columns.setdefault(name, []).append(column)
        return {name: torch.cat(parts) for name, parts in columns.items()}

    def weights(self, role: str = POLICY) -> Iterator[tuple[str, Tensor]]:
        """Every tensor by Hugging Face name, tied ones once, under the first of their names."""
        for name, tensor in distinct_tensors(self.module(role)).items():
            yield name, tensor.detach()

    def save(self, folder: Path) -> None:
        """Write the policy, its optimizer and the update counts; see `skyrl_fsdp.checkpoint`."""
        numbers = {
            "updates": self._updates,
            "total_updates": self._total_updates,
            "optimizer": self._config.policy.optimizer_config.name,
        }
        state = checkpoint.optimizer_tensors(self._optimizers, self._names())
        checkpoint.write(folder, dict(self.weights()), state, numbers)

    def load(self, folder: Path) -> None:
        """Continue from what `save` wrote, bit for bit.

        Raises:
            CheckpointError: A file is missing, damaged or of another model.
            ResumeError: It was written with another optimizer.
        """
        numbers = checkpoint.read_numbers(folder)
        name = self._config.policy.optimizer_config.name
        if numbers.get("optimizer") != name:
            raise ResumeError(
                f"trainer.policy.optimizer_config.name={name}, but the checkpoint '{folder}' was "
                f"written with {numbers.get('optimizer')}, whose state {name} cannot use; set it "
                "back, or start anew with another trainer.run_name"
            )
        checkpoint.put_weights(folder / checkpoint.WEIGHTS, distinct_tensors(self.module(POLICY)))
        checkpoint.put_optimizer_tensors(
            folder / checkpoint.OPTIMIZER, self._optimizers, self._names()
        )
        self._updates = int(str(numbers["updates"]))
        if self._total_updates is None and numbers.get("total_updates") is not None:
            self._total_updates = int(str(numbers["total_updates"]))

    def export(self, folder: Path) -> None:
        """Write the policy as a Hugging Face directory in float32, tokenizer included."""
        export_policy(self.module(POLICY), self._paths[POLICY], folder)

    def offload(self) -> None:
        """Move weights and optimizer state to the CPU; a no-op there."""
        self._move(torch.device("cpu"))

    def onload(self) -> None:
        """Undo `offload`."""
        self._move(self._device)

    def _move(self, device: torch.device) -> None:
        if self._device.type == "cpu":
            return
        for module in self._modules.values():
            module.to(device)
        for optimizer in self._optimizers:
            for state in optimizer.state.values():
                state.update({key: value.to(device) for key, value in state.items()})
        torch.cuda.empty_cache()

    def _names(self) -> dict[Tensor, str]:
        return {p: name for name, p in distinct_tensors(self.module(POLICY)).items()}

    def _loss_seed(self) -> int:
        """Key of this update's random choices."""
        return int(np.random.SeedSequence([self._config.seed, self._updates]).generate_state(1)[0])

    def _precision(self) -> contextlib.AbstractContextManager[object]:
        if not self._config.bf16:
            return contextlib.nullcontext()
        return torch.autocast(self._device.type, torch.bfloat16)


def _enable_checkpointing(module: PreTrainedModel) -> None:
    # transformers 5.23 renamed the method and warns about the old name; drop it when 5.23 is the
    # oldest version that pyproject.toml allows.
    enable = getattr(
        module, "activation_checkpointing_enable", module.gradient_checkpointing_enable
    )
    enable({"use_reentrant": False})


def _device(name: str) -> torch.device:
    if name == "auto":
        return default_device()
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "trainer.fsdp.device=cuda, but torch finds no CUDA device here; "
            "use trainer.fsdp.device=auto or cpu"
        )
    return torch.device(name)
