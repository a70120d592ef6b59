"""The trainer: models by role, those that are trained with their optimizers, on one rank or many.

One update, in the order of the code:

    rows with a trained token → micro-batches → (prepare pass: columns, joined)
    → per micro-batch: forward → (the critic's forward) → loss → objective → backward
    → clip → step → compare, of each trained model

The weight of every token was computed from the whole mini-batch beforehand, so
gradients simply add up over micro-batches and ranks. Policy and critic share no weight:
one backward pass gives each its own gradient.

Every rank runs this same code on its own rows; what it must know of the others, it asks
`skyrl_fsdp.ranks.Ranks`, of which one process is the simplest.
"""

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer
from transformers import PreTrainedModel

from skyrl_fsdp.adapted import adapter_tensors, adapters_off, merged_tensors
from skyrl_fsdp.backward import Backward
from skyrl_fsdp.critic import Critic
from skyrl_fsdp.export import export_policy
from skyrl_fsdp.finite import require_finite_gradient
from skyrl_fsdp.microbatch import split, trained
from skyrl_fsdp.models import POLICY, VALUE, Model, load_model, settings_of_role
from skyrl_fsdp.packing import keeps_rows_apart
from skyrl_fsdp.ranks import join
from skyrl_fsdp.scoring import row_scores
from skyrl_fsdp.sharding import reshard, whole
from skyrl_fsdp.trained import TrainedModel
from skyrl_fsdp.ulysses import Partners
from skyrl_kernel.config.trainer import TrainerConfig
from skyrl_kernel.errors import CheckpointError, ConfigError, ResumeError
from skyrl_kernel.protocols import Loss
from skyrl_kernel.records import FloatArray, IntArray, TrainingSample, UpdateResult
from skyrl_kernel.torch import MetricSums, count_passes
from skyrl_transformers.loading import default_device

METRICS = {POLICY: ("policy_lr", "grad_norm"), VALUE: ("critic/critic_lr", "critic/grad_norm")}
"""Trained role → the names of its learning rate and its gradient's norm, SkyRL's."""


_IDLE_ROW = np.zeros(2, np.int32)
"""What a rank scores along with the others when it has no rows of its own left."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Share:
    """What one share has of a mini-batch."""

    tokens: int
    """Those that are trained."""
    passes: int
    trajectory_ids: list[str]


class FsdpTrainer:
    """Keeps the `skyrl_kernel.protocols.Trainer` protocol, and with several ranks `Ranked`.

    The environment says whether there are others: torchrun's ``RANK``, ``WORLD_SIZE``,
    ``LOCAL_RANK``, ``MASTER_ADDR`` and ``MASTER_PORT``.

    Args:
        models: Role → Hugging Face directory. ``policy`` is trained, and so is the
            critic ``value``; all others are frozen. With adapters on the policy, others
            of the same directory are the policy without them. A reference may be alone,
            and so may a critic.
        config: ``trainer``.
        device: ``auto``, ``cpu`` or ``cuda``.
        timeout_s: Longest wait for another rank.
        elsewhere: Roles that other processes have: what a loss has for them is left out.

    Raises:
        ModelError: A directory holds no causal language model.
        ConfigError: ``cuda`` where there is none, or settings that contradict each other.
        RankError: Another rank did not come.
    """

    def __init__(
        self,
        models: Mapping[str, Path],
        config: TrainerConfig,
        *,
        device: str = "auto",
        timeout_s: float = 600.0,
        elsewhere: Collection[str] = (),
    ) -> None:
        self._config = config
        self._elsewhere = frozenset(elsewhere)
        first = POLICY if POLICY in models else next(iter(models))
        self._ranks = join(
            _device(device),
            timeout_s=timeout_s,
            sequence=settings_of_role(first, config).sequence,
        )
        self._device = self._ranks.device
        self._paths = dict(models)
        self._modules: dict[str, Model] = {}
        self._trained: dict[str, TrainedModel] = {}
        self._partners: dict[str, Partners] = {}
        self._unadapted = _unadapted(models, config)
        with self._ranks.together():
            for role, path in models.items():
                if role in self._unadapted:
                    continue
                self._modules[role] = load_model(role, path, config, self._ranks)
                settings = settings_of_role(role, config)
                if settings.optimizer is not None:
                    self._trained[role] = TrainedModel(
                        self._modules[role],
                        settings.optimizer,
                        key=f"{settings.key}.optimizer_config",
                        checkpointing=config.gradient_checkpointing,
                        seed=config.seed,
                        ranks=self._ranks,
                    )
            self._modules |= {role: self._modules[POLICY] for role in self._unadapted}
            with self._precision():
                self._packs = config.remove_microbatch_padding and all(
                    _keeps_rows_apart(model.module, self._device)
                    for model in self._trained.values()
                )
                for role in [one for one in self._modules if one not in self._unadapted]:
                    self._partners[role] = self._divide(role)
            self._partners |= {role: self._partners[POLICY] for role in self._unadapted}

    def _divide(self, role: str) -> Partners:
        """Meet those that compute parts of the same rows with a model."""
        settings = settings_of_role(role, self._config)
        partners = Partners(
            self._ranks.partners(settings.sequence),
            key=f"{settings.key}.sequence_parallel_size",
            copies=self._ranks.sequence // settings.sequence,
        )
        partners.divide(self._modules[role], self._device, packs=self._packs)
        return partners

    @property
    def share(self) -> int:
        """Which part of the data this rank computes, 0 ≤ share < shares."""
        return self._ranks.share

    @property
    def shares(self) -> int:
        """Number of parts."""
        return self._ranks.shares

    def close(self) -> None:
        """Leave the other ranks."""
        self._partners.clear()
        self._ranks.close()

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

        Raises:
            ValueError: A row has an id that the model's vocabulary has not; or no model
                has the role.
        """
        model, budget = self._model(role), self._config.tokens_per_pass
        bounds: dict[str, Any] = {
            "max_rows": max(1, len(rows))
            if budget
            else self._config.micro_forward_batch_size_per_gpu,
            "max_tokens": budget,
        }

        def scores_of(some: Sequence[IntArray]) -> list[FloatArray]:
            return row_scores(
                model,
                some,
                self._partners[role],
                temperature=temperature,
                device=self._device,
                **bounds,
            )

        with self._ranks.together(), self._precision(), self._as(role):
            self._ranks.agree(lambda: _require_known_ids(rows, model))
            passes = count_passes(rows, **bounds)
            idle = self._ranks.most(passes) - passes
            scores = scores_of(rows)
            for _ in range(idle):
                scores_of([_IDLE_ROW])
            reshard(model)
        return scores

    def update(
        self, batch: Sequence[TrainingSample], loss: Loss, *, temperature: float
    ) -> UpdateResult:
        """One optimizer step on one mini-batch; the split into micro-batches does not change it.

        The critic takes its step too if the loss trains one; what is elsewhere takes none here.

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
        with self._ranks.together(), contextlib.ExitStack() as stack:
            samples = self._ranks.agree(lambda: trained(batch))
            micro_batches = self._split(samples, loss)
            shares = self._ranks.of_shares(
                _Share(
                    tokens=sum(int(sample.loss_mask.sum()) for sample in samples),
                    passes=len(micro_batches),
                    trajectory_ids=[sample.trajectory_id for sample in samples],
                )
            )
            metrics = {"final_loss": 0.0}
            for role, model in models.items():
                rate, norm = METRICS[role]
                metrics |= {norm: 0.0, rate: model.rate}
            metrics["trained_tokens"] = float(sum(share.tokens for share in shares))
            passes = max(share.passes for share in shares)
            if not passes:
                return UpdateResult(metrics=metrics, weights_changed=False)
            for model in models.values():
                stack.enter_context(model.training())
            metrics["final_loss"], sums = self._backward(
                [*micro_batches, *[[]] * (passes - len(micro_batches))], models, loss, temperature
            )
            norms = {role: model.clip() for role, model in models.items()}
            for norm_of_one in norms.values():
                require_finite_gradient(
                    norm_of_one, [name for share in shares for name in share.trajectory_ids]
                )
            changed = {role: model.step() for role, model in models.items()}
        metrics |= {METRICS[role][1]: norm for role, norm in norms.items()}
        if VALUE in models:
            metrics["critic/weights_changed"] = float(changed[VALUE])
        return UpdateResult(
            metrics=metrics | sums.result(), weights_changed=changed.get(POLICY, False)
        )

    def _backward(
        self,
        micro_batches: Sequence[Sequence[TrainingSample]],
        models: Collection[str],
        loss: Loss,
        temperature: float,
    ) -> tuple[float, MetricSums]:
        """The gradient of the mini-batch; returns the objective and what is told of its tokens."""
        critic = self._model(VALUE) if VALUE in models else None
        assert critic is None or isinstance(critic, Critic)
        return Backward(
            policy=self.module(POLICY) if POLICY in models else None,
            critic=critic,
            loss=loss,
            temperature=temperature,
            seed=self._loss_seed(),
            packs=self._packs,
            precision=self._precision,
            ranks=self._ranks,
            partners=self._partners.get(POLICY) or Partners(),
            critic_partners=self._partners.get(VALUE) or Partners(),
        ).run(micro_batches)

    def _split(self, samples: Sequence[TrainingSample], loss: Loss) -> list[list[TrainingSample]]:
        return split(
            samples,
            loss.atom,
            max_rows=self._config.micro_train_batch_size_per_gpu,
            max_tokens=self._config.tokens_per_pass,
            packs=self._packs,
        )

    def _trained_by(self, loss: Loss) -> dict[str, TrainedModel]:
        """Role → model, of those here whose weights the loss moves."""
        moved = [POLICY] if loss.critic is None else [POLICY, VALUE]
        here = [role for role in moved if role not in self._elsewhere]
        for role in here:
            self._model(role)
        return {role: self._trained[role] for role in here}

    def weights(self, role: str = POLICY) -> Iterator[tuple[str, Tensor]]:
        """Every tensor by Hugging Face name, tied ones once, under the first of their names.

        Adapters are added to the weights that they stand on. One tensor at a time is
        whole; every rank must go on to the end.
        """
        with self._ranks.together():
            yield from merged_tensors(self._model(role), whole, adapted=role not in self._unadapted)

    def adapter(self) -> Iterator[tuple[str, Tensor]]:
        """The policy's adapter alone, by PEFT's names, B times alpha / rank; else as `weights`."""
        with self._ranks.together():
            yield from adapter_tensors(self._model(POLICY), whole, scaled=True)

    def save(self, folder: Path) -> None:
        """Write what is trained: the policy into ``folder``, the critic into ``value`` in it."""
        with self._ranks.together():
            for role, model in self._trained.items():
                model.save(_folder_of(role, folder))

    def load(self, folder: Path) -> None:
        """Continue from what `save` wrote: on as many ranks bit for bit, on others up to rounding.

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
        if VALUE not in self._trained and VALUE not in self._elsewhere and critic.exists():
            raise ResumeError(
                f"the checkpoint '{folder}' has a critic (in '{critic.name}'), and this run trains "
                "none; resume with the algorithm that the run began with, or start anew with another "
                "trainer.run_name and the run's export as trainer.policy.model.path"
            )
        with self._ranks.together():
            for role, model in self._trained.items():
                self._ranks.agree(lambda: model.load(_folder_of(role, folder)))  # noqa: B023

    def export(self, folder: Path) -> None:
        """Write the policy as a Hugging Face directory in float32, tokenizer included.

        The critic, which nobody serves, is in checkpoints only.
        """
        with self._ranks.together():
            export_policy(self.module(POLICY), self._paths[POLICY], folder, self._ranks)

    def offload(self) -> None:
        """Move weights and optimizer state to the CPU; a no-op there."""
        self._move(torch.device("cpu"))

    def onload(self) -> None:
        """Undo `offload`."""
        self._move(self._device)

    def _move(self, device: torch.device) -> None:
        if self._device.type == "cpu":
            return
        for role, module in self._modules.items():
            # What FSDP keeps in the machine's memory it moves itself, and refuses to see moved.
            if not settings_of_role(role, self._config).sharding.cpu_offload:
                module.to(device)
        for model in self._trained.values():
            model.move_optimizers(device)
        torch.cuda.empty_cache()

    def _loss_seed(self) -> int:
        """Key of this update's random choices, which are the policy's."""
        updates = self._trained[POLICY].updates if POLICY in self._trained else 0
        key = [self._config.seed, updates]
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
    if POLICY not in models or not config.policy.model.lora.rank:
        return set()
    return {role for role in models.keys() - {POLICY, VALUE} if models[role] == models[POLICY]}


def _folder_of(role: str, folder: Path) -> Path:
    """Where a checkpoint keeps a trained model."""
    return folder if role == POLICY else folder / role


def _keeps_rows_apart(model: Model, device: torch.device) -> bool:
    return keeps_rows_apart(model, _vocabulary(model), device)


def _vocabulary(model: Model) -> int:
    body = model.body if isinstance(model, Critic) else model
    size: int = body.config.get_text_config().vocab_size
    return size


def _require_known_ids(rows: Sequence[IntArray], model: Model) -> None:
    size = _vocabulary(model)
    for number, row in enumerate(rows):
        if len(row) and not 0 <= int(row.min()) <= int(row.max()) < size:
            raise ValueError(
                f"row {number} has ids from {row.min()} to {row.max()}, and the model's vocabulary has "
                f"0 to {size - 1}; rows are made with the tokenizer of the model"
            )


def _device(name: str) -> torch.device:
    if name == "auto":
        return default_device()
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "trainer.fsdp.device=cuda, but torch finds no CUDA device here; "
            "use trainer.fsdp.device=auto or cpu"
        )
    return torch.device(name)
