"""The trainer: models by role, those that are trained with their optimizers, in one process.

One update, in the order of the code:

    rows with a trained token → micro-batches → (prepare pass: columns, joined)
    → per micro-batch: forward → (the critic's forward) → loss → objective → backward
    → clip → step → compare, of each trained model

The weight of every token was computed from the whole mini-batch beforehand, so
gradients simply add up over micro-batches. Policy and critic share no weight: one
backward pass gives each its own gradient.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer
from transformers import PreTrainedModel

from skyrl_fsdp.adapted import adapters_off, merged_tensors
from skyrl_fsdp.critic import Critic, load_critic
from skyrl_fsdp.export import export_policy
from skyrl_fsdp.finite import require_finite, require_finite_gradient
from skyrl_fsdp.lora import add_adapters
from skyrl_fsdp.microbatch import forward, forward_values, split, trained
from skyrl_fsdp.packing import keeps_rows_apart
from skyrl_fsdp.trained import Model, TrainedModel
from skyrl_kernel.config.trainer import TrainerConfig
from skyrl_kernel.errors import CheckpointError, ConfigError, ResumeError
from skyrl_kernel.protocols import Loss
from skyrl_kernel.records import FloatArray, IntArray, TrainingSample, UpdateResult
from skyrl_kernel.torch import MetricSums, objective, pack, row_logprobs, row_values
from skyrl_transformers.loading import default_device, load_causal_lm

POLICY, VALUE = "policy", "value"

METRICS = {POLICY: ("policy_lr", "grad_norm"), VALUE: ("critic/critic_lr", "critic/grad_norm")}
"""Trained role → the names of its learning rate and its gradient's norm, SkyRL's."""


class FsdpTrainer:
    """Keeps the `skyrl_kernel.protocols.Trainer` protocol.

    Args:
        models: Role → Hugging Face directory. ``policy`` is trained, and so is the
            critic ``value``; all others are frozen. With adapters on the policy, others
            of the same directory are the policy without them.
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
        self._modules: dict[str, Model] = {}
        self._trained: dict[str, TrainedModel] = {}
        self._unadapted = _unadapted(models, config)
        for role, path in models.items():
            if role in self._unadapted:
                continue
            module = self._load(role, path).requires_grad_(False)
            self._modules[role] = module
            if role in (POLICY, VALUE):
                self._trained[role] = self._train(role, module)
        self._modules |= dict.fromkeys(self._unadapted, self._modules[POLICY])
        self._packs = config.remove_microbatch_padding and all(
            _keeps_rows_apart(model.module) for model in self._trained.values()
        )

    def _load(self, role: str, path: Path) -> Model:
        if role == VALUE:
            return load_critic(path, self._device, self._config.algorithm.value_head_prefix)
        return load_causal_lm(path, self._device)

    def _train(self, role: str, module: Model) -> TrainedModel:
        """Choose what is trained: all weights, or new adapters and a critic's head."""
        config = self._config
        key = {POLICY: "trainer.policy", VALUE: "trainer.critic"}[role]
        of_role = config.policy if role == POLICY else config.critic
        lora = of_role.model.lora
        module.requires_grad_(True)
        if lora.rank:
            add_adapters(module, lora, key=f"{key}.model.lora", seed=config.seed)
        return TrainedModel(
            module,
            of_role.optimizer_config,
            key=f"{key}.optimizer_config",
            checkpointing=config.gradient_checkpointing,
            seed=config.seed,
        )

    def module(self, role: str = POLICY) -> PreTrainedModel:
        """The live language model of a role, for an engine that shares it.

        Raises:
            ValueError: No model has the role, it is a critic, or the policy without adapters.
        """
        model = self._model(role)
        if role in self._unadapted:
            raise ValueError(
                f"the role '{role}' is the policy without adapters, no model of its own"
            )
        if isinstance(model, Critic):
            raise ValueError(f"the role '{role}' is a critic, which is no language model")
        return model

    def _model(self, role: str) -> Model:
        try:
            return self._modules[role]
        except KeyError:
            raise ValueError(
                f"the trainer has no model for the role '{role}'; it has {', '.join(self._modules)}"
            ) from None

    @property
    def _optimizers(self) -> list[Optimizer]:
        """The policy's, for tests that look at their state."""
        return self._trained[POLICY].optimizers

    def set_total_updates(self, total: int) -> None:
        """Say how many updates the whole run makes; the scheduler ``linear`` needs it."""
        for model in self._trained.values():
            model.total_updates = total

    def score(self, role: str, rows: Sequence[IntArray], *, temperature: float) -> list[FloatArray]:
        """[T] log-prob in nats of each row's tokens given those before; 0 at index 0.

        Of the role ``value``: the value before each token.
        """
        model, budget = self._model(role), self._config.tokens_per_pass
        max_rows = len(rows) if budget else self._config.micro_forward_batch_size_per_gpu

        def logits(ids: Tensor) -> Tensor:
            out: Tensor = model(input_ids=ids, use_cache=False).logits
            return out

        with self._precision(), self._as(role):
            if isinstance(model, Critic):
                return row_values(
                    model, rows, device=self._device, max_rows=max_rows, max_tokens=budget
                )
            return row_logprobs(
                logits,
                rows,
                temperature=temperature,
                device=self._device,
                max_rows=max_rows,
                max_tokens=budget,
            )

    def update(
        self, batch: Sequence[TrainingSample], loss: Loss, *, temperature: float
    ) -> UpdateResult:
        """One optimizer step on one mini-batch; the split into micro-batches does not change it.

        The critic takes its step too if the loss has the term ``value``.

        Metrics: ``final_loss`` (the objective), ``policy_loss`` and one ``…_loss``
        per term, ``policy_entropy``, ``grad_norm`` (before clipping),
        ``policy_lr``, ``trained_tokens``, and the loss's own; of a critic
        ``critic/critic_loss``, ``critic/grad_norm``, ``critic/critic_lr`` and
        ``critic/weights_changed`` (0 if its every parameter kept its bits). Without a
        trained token nothing is computed and nothing changes: ``trained_tokens`` is 0.

        Raises:
            NonFiniteError: NaN or infinity in log-probs, values, loss or a gradient;
                all weights are as before.
            ValueError: A sample trains on its first token, or lacks a score; or the
                loss trains a critic and there is none.
        """
        models = self._trained_by(loss)
        samples = trained(batch)
        metrics = {"final_loss": 0.0}
        for role, model in models.items():
            rate, norm = METRICS[role]
            metrics |= {norm: 0.0, rate: model.rate}
        metrics["trained_tokens"] = float(sum(int(s.loss_mask.sum()) for s in samples))
        if not samples:
            return UpdateResult(metrics=metrics, weights_changed=False)
        with contextlib.ExitStack() as stack:
            for model in models.values():
                stack.enter_context(model.training())
            metrics["final_loss"], sums = self._backward(samples, loss, temperature)
            norms = {role: model.clip() for role, model in models.items()}
            for norm_of_one in norms.values():
                require_finite_gradient(norm_of_one, samples)
            changed = {role: model.step() for role, model in models.items()}
        metrics |= {METRICS[role][1]: norm for role, norm in norms.items()}
        if VALUE in models:
            metrics["critic/weights_changed"] = float(changed[VALUE])
        return UpdateResult(metrics=metrics | sums.result(), weights_changed=changed[POLICY])

    def _trained_by(self, loss: Loss) -> dict[str, TrainedModel]:
        """Role → model, of those whose weights the loss moves."""
        self._model(POLICY)
        if VALUE not in loss.coefficients:
            return {POLICY: self._trained[POLICY]}
        self._model(VALUE)
        return {role: self._trained[role] for role in (POLICY, VALUE)}

    def _backward(
        self, samples: Sequence[TrainingSample], loss: Loss, temperature: float
    ) -> tuple[float, MetricSums]:
        """Gradients of the whole mini-batch; returns the objective and the metrics."""
        module = self.module(POLICY)
        micro_batches = split(
            samples,
            loss.atom,
            max_rows=self._config.micro_train_batch_size_per_gpu,
            max_tokens=self._config.tokens_per_pass,
            packs=self._packs,
        )
        seed = self._loss_seed()
        columns = self._prepare(module, micro_batches, loss, temperature, seed)
        total, sums = 0.0, MetricSums()
        for rows in micro_batches:
            with self._precision():
                logprobs, entropy = forward(
                    module,
                    rows,
                    temperature,
                    entropy_has_gradient="entropy" in loss.coefficients,
                    packs=self._packs,
                )
                values = self._values(rows) if VALUE in loss.coefficients else None
            require_finite({"log-probs": logprobs}, rows)
            if values is not None:
                require_finite({"values": values}, rows)
            inputs, weights = pack(
                rows,
                logprobs,
                entropy,
                needs=loss.needs,
                values=values,
                minibatch=columns,
                seed=seed,
            )
            scalar, out = objective(loss, inputs, weights)
            require_finite({f"the loss terms '{name}'": t for name, t in out.terms.items()}, rows)
            scalar.backward()  # type: ignore[no-untyped-call]
            sums.add(inputs, out, weights)
            total += float(scalar.detach())
        return total, sums

    def _values(self, rows: Sequence[TrainingSample]) -> Tensor:
        critic = self._model(VALUE)
        assert isinstance(critic, Critic)
        return forward_values(critic, rows, packs=self._packs)

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
                logprobs, entropy = forward(
                    module, rows, temperature, entropy_has_gradient=False, packs=self._packs
                )
            require_finite({"log-probs": logprobs}, rows)
            inputs, _ = pack(rows, logprobs, entropy, needs=loss.needs, seed=seed)
            for name, column in loss.prepare(inputs).items():
                columns.setdefault(name, []).append(column)
        return {name: torch.cat(parts) for name, parts in columns.items()}

    def weights(self, role: str = POLICY) -> Iterator[tuple[str, Tensor]]:
        """Every tensor by Hugging Face name, tied ones once, under the first of their names.

        Adapters are added to the weights that they stand on.
        """
        yield from merged_tensors(self._model(role), adapted=role not in self._unadapted)

    def save(self, folder: Path) -> None:
        """Write what is trained: the policy into ``folder``, the critic into ``value`` in it."""
        for role, model in self._trained.items():
            model.save(_folder_of(role, folder))

    def load(self, folder: Path) -> None:
        """Continue from what `save` wrote, bit for bit.

        Raises:
            CheckpointError: A file is missing, damaged or of another model.
            ResumeError: It was written with another optimizer, or with a critic that
                this run does not have.
        """
        critic = _folder_of(VALUE, folder)
        if VALUE in self._trained and not critic.is_dir():
            raise CheckpointError(
                f"this run trains a critic, and the checkpoint '{folder}' has none: there is no "
                f"folder '{critic.name}' in it; resume with the algorithm that the run began with, "
                "or start anew with another trainer.run_name"
            )
        if VALUE not in self._trained and critic.exists():
            raise ResumeError(
                f"the checkpoint '{folder}' has a critic (in '{critic.name}'), and this run trains "
                "none; resume with the algorithm that the run began with, or start anew with another "
                "trainer.run_name and the run's export as trainer.policy.model.path"
            )
        for role, model in self._trained.items():
            model.load(_folder_of(role, folder))

    def export(self, folder: Path) -> None:
        """Write the policy as a Hugging Face directory in float32, tokenizer included.

        The critic, which nobody serves, is in checkpoints only.
        """
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
        for model in self._trained.values():
            model.move_optimizers(device)
        torch.cuda.empty_cache()

    def _loss_seed(self) -> int:
        """Key of this update's random choices."""
        key = [self._config.seed, self._trained[POLICY].updates]
        return int(np.random.SeedSequence(key).generate_state(1)[0])

    def _as(self, role: str) -> contextlib.AbstractContextManager[object]:
        """The model of a role computes in here as that role."""
        return (
            adapters_off(self._model(role)) if role in self._unadapted else contextlib.nullcontext()
        )

    def _precision(self) -> contextlib.AbstractContextManager[object]:
        if not self._config.bf16:
            return contextlib.nullcontext()
        return torch.autocast(self._device.type, torch.bfloat16)


def _unadapted(models: Mapping[str, Path], config: TrainerConfig) -> set[str]:
    """Frozen roles that are the policy without adapters, and so need no weights of their own."""
    if not config.policy.model.lora.rank:
        return set()
    return {role for role in models.keys() - {POLICY, VALUE} if models[role] == models[POLICY]}


def _folder_of(role: str, folder: Path) -> Path:
    """Where a checkpoint keeps a trained model."""
    return folder if role == POLICY else folder / role


def _keeps_rows_apart(model: Model) -> bool:
    body = model.body if isinstance(model, Critic) else model
    return keeps_rows_apart(body, body.config.get_text_config().vocab_size)


def _device(name: str) -> torch.device:
    if name == "auto":
        return default_device()
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "trainer.fsdp.device=cuda, but torch finds no CUDA device here; "
            "use trainer.fsdp.device=auto or cpu"
        )
    return torch.device(name)
