"""One batch through our stages and through TRL's trainers, for tests/test_against_trl*.py.

What TRL computes is TRL's own code: its trainers judge, score, credit and take the loss. Only the
sampling is replaced, by recorded completions. The old policy is made as in a run: both sides score
with it, and then its weights become the current ones.
"""

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import trl
from datasets import Dataset
from torch import Tensor
from transformers import AutoTokenizer

from skyrl_fsdp.trainer import FsdpTrainer
from skyrl_kernel.batch import Scorer, credit, training_samples
from skyrl_kernel.plan import Plan, make_plan
from skyrl_kernel.protocols import Reduction
from skyrl_kernel.records import Group, Prompt, Reward, Segment, StopReason, Trajectory, Turn
from skyrl_kernel.torch import row_logprobs
from skyrl_transformers.loading import load_causal_lm, no_progress_bars
from skyrl_transformers.testing import write_random_model
from skyrl_transformers.tokenizer import HuggingFaceTokenizer


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one side says of a batch."""

    loss: float
    gradients: Mapping[str, Tensor]
    """By Hugging Face name."""
    metrics: Mapping[str, float]
    advantages: list[float] = field(default_factory=list)
    """Of each trajectory."""


def outcome_of(
    loss: Tensor, model: torch.nn.Module, metrics: Mapping[str, Sequence[float]] | None = None
) -> Outcome:
    """Of a loss that carries its gradient."""
    loss.backward()
    return Outcome(
        loss=loss.item(),
        gradients={name: p.grad for name, p in model.named_parameters() if p.grad is not None},
        metrics={name: values[-1] for name, values in (metrics or {}).items()},
    )


# --- models -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Models:
    """Folders of random models with one tokenizer."""

    old: Path
    """The policy before its update."""
    new: Path
    """The policy whose loss is taken, some tenths of a nat away."""
    reference: Path


def make_models(folder: Path) -> Models:
    """Write them."""
    made = Models(old=folder / "old", new=folder / "new", reference=folder / "reference")
    for seed, path in enumerate((made.old, made.new, made.reference)):
        write_random_model(
            path, seed=seed, initializer_range=0.1, tie_word_embeddings=True, pad_token_id=0
        )
    old, new = load_causal_lm(made.old), load_causal_lm(made.new)
    with torch.no_grad():
        for moved, start in zip(new.parameters(), old.parameters(), strict=True):
            if moved.ndim == 2:
                moved.mul_(0.4).add_(start)
    with no_progress_bars():
        new.save_pretrained(made.new)
    return made


# --- the batch --------------------------------------------------------------------------------

REWARDS = ((1.0, 0.0, 0.25, 0.0), (0.0, 0.5, 0.5, 1.0), (1.0, 1.0, 1.0, 1.0))
"""Three groups of four, of which the last has nothing to tell."""
_PROMPT_TOKENS = (3, 5, 4)


def record(
    models: Models,
    rewards: Sequence[Sequence[float]] = REWARDS,
    *,
    num_tokens: int | None = None,
    holes: bool = True,
) -> list[Group]:
    """Judged groups of random tokens, sampled by a policy some tenths of a nat from the old one.

    Args:
        models: The old policy.
        rewards: Of each trajectory.
        num_tokens: Of each completion; default: 2 to 9.
        holes: An env spoke in the middle of the longer ones.
    """
    rng = np.random.default_rng(3)
    module = load_causal_lm(models.old)
    groups = []
    for index, (totals, start) in enumerate(zip(rewards, _PROMPT_TOKENS, strict=False)):
        prompt = Prompt(uid=f"0:{index}", messages=[], env_class="none")
        asked = rng.integers(1, 256, start)
        trajectories = []
        for sample, total in enumerate(totals):
            stop = start + (num_tokens or int(rng.integers(2, 10)))
            tokens = np.concatenate([asked, rng.integers(1, 256, stop - start)]).astype(np.int32)
            mask = np.arange(stop) >= start
            if holes and stop > start + 5:
                mask[start + 2 : start + 4] = False
            (old,) = row_logprobs(
                lambda ids: module(input_ids=ids).logits, [tokens], temperature=1.0, max_rows=1
            )
            sampled = np.minimum(old + rng.normal(0, 0.3, stop), 0) * mask
            segment = Segment(
                tokens=tokens,
                num_prompt_tokens=start,
                loss_mask=mask,
                logprobs=sampled.astype(np.float32),
                versions=np.where(mask, 0, -1).astype(np.int32),
            )
            trajectories.append(
                Trajectory(
                    prompt=prompt,
                    sample=sample,
                    segments=(segment,),
                    turns=(Turn(segment=0, start=start, stop=stop, reward=total, action=""),),
                    stop_reason=StopReason.STOP,
                    reward=Reward(turns=(total,)),
                )
            )
        groups.append(Group(index=index, prompt=prompt, trajectories=tuple(trajectories)))
    return groups


# --- our side ---------------------------------------------------------------------------------

_BASE = {
    "data.val_data": [],
    "trainer.bf16": False,
    "trainer.gradient_checkpointing": False,
    "trainer.micro_train_batch_size_per_gpu": 5,
    "trainer.micro_forward_batch_size_per_gpu": 5,
    "trainer.fsdp.device": "cpu",
    "trainer.algorithm.use_kl_loss": False,
}


def ours(
    models: Models,
    groups: Sequence[Group],
    plugins: Sequence[str] = ("grpo",),
    *,
    reduction: Reduction | None = None,
    **changes: Any,
) -> Outcome:
    """The stages that a run resolves: score, credit, weigh, and the update's loss and gradient.

    Args:
        models: Scored by `Models.old`, updated from `Models.new`; the teacher is the reference.
        groups: One mini-batch.
        plugins: As on the command line.
        reduction: Instead of the one that the config names.
        changes: Keys of ``trainer.algorithm``.
    """
    plan = _plan(models, plugins, {f"trainer.algorithm.{key}": v for key, v in changes.items()})
    advantage, loss = plan.stages["advantage"].value, plan.stages["loss"].value
    needs = frozenset(advantage.needs | loss.needs)
    name = plan.tree.trainer.algorithm.loss_reduction
    reduction = reduction or plan.manager.make(
        "make_reduction", name, name=name, settings=plan.config
    )
    roles = {"policy": models.old}
    if "ref_logprobs" in needs:
        roles["reference"] = models.reference
    if "teacher_logprobs" in needs:
        roles["teacher"] = models.reference
    trainer = FsdpTrainer(roles, plan.tree.trainer, device="cpu")
    scorer = Scorer(trainer=trainer, needs=needs, recompute_old=True, temperature=1.0)
    credited = credit(advantage, scorer(groups), masked=())
    samples = training_samples(credited, reduction, loss.coefficients)
    module = trainer.module()
    module.load_state_dict(load_causal_lm(models.new).state_dict())
    gradients: dict[str, Tensor] = {}
    for key, parameter in module.named_parameters():
        parameter.register_post_accumulate_grad_hook(partial(_keep, gradients, key))
    result = trainer.update(samples, loss, temperature=1.0)
    return Outcome(
        loss=result.metrics["final_loss"],
        gradients=gradients,
        metrics=result.metrics,
        advantages=[
            float(entry.advantages[segment.loss_mask][-1])
            for group in credited
            for one, (entry,) in group
            for segment in one.trajectory.segments
        ],
    )


def read_rows(
    models: Models,
    plugins: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
    *,
    chat_template: str | None = None,
    **changes: Any,
) -> list[Group]:
    """What the stage `generate` makes of a data set's rows.

    Args:
        models: Whose tokenizer.
        plugins: As on the command line.
        rows: Columns by name; ``prompt`` is the messages.
        chat_template: Of the tokenizer, instead of the model's.
        changes: Config keys.
    """
    plan = _plan(models, plugins, changes)
    generate, judge = plan.stages["generate"].value, plan.stages["reward"].value
    tokenizer = HuggingFaceTokenizer(models.old, chat_template=chat_template)
    samples = plan.tree.generator.n_samples_per_prompt

    async def read(index: int, row: Mapping[str, Any]) -> Group:
        extras = {name: value for name, value in row.items() if name != "prompt"}
        messages = row.get("prompt", [])
        prompt = Prompt(uid=f"0:{index}", messages=messages, env_class="none", extras=extras)
        read = [
            await generate(prompt, SimpleNamespace(tokenizer=tokenizer, sample=sample))
            for sample in range(samples)
        ]
        rewards = judge(read)
        judged = [one.judged(reward) for one, reward in zip(read, rewards, strict=True)]
        return Group(index=index, prompt=prompt, trajectories=tuple(judged))

    return [asyncio.run(read(index, row)) for index, row in enumerate(rows)]


def _plan(models: Models, plugins: Sequence[str], changes: Mapping[str, Any]) -> Plan:
    paths = dict.fromkeys(
        ("trainer.policy.model.path", "trainer.teacher.model.path"), str(models.old)
    )
    values = _BASE | paths | changes
    return make_plan(
        [*plugins, "fsdp"],
        overrides=[f"{key}={json.dumps(value)}" for key, value in values.items()],
    )


def _keep(gradients: dict[str, Tensor], name: str, parameter: Tensor) -> None:
    """After each micro-batch: the sum so far; the update clips and forgets it."""
    assert parameter.grad is not None
    gradients[name] = parameter.grad.clone()


# --- TRL's side -------------------------------------------------------------------------------


class Rollouts:
    """A `GRPOTrainer` or `RLOOTrainer` that is given completions.

    Args:
        kind: ``grpo`` or ``rloo``.
        models: As in `ours`.
        groups: The batch; groups of one size.
        folder: For what the trainer would write.
        corrected: The sampler's log-probs are used, as they are where vLLM samples.
        options: Of the trainer's config.
    """

    def __init__(
        self,
        kind: str,
        models: Models,
        groups: Sequence[Group],
        folder: Path,
        *,
        corrected: bool = False,
        **options: Any,
    ) -> None:
        make, config = {
            "grpo": (trl.GRPOTrainer, trl.GRPOConfig),
            "rloo": (trl.RLOOTrainer, trl.RLOOConfig),
        }[kind]
        rows = [one for group in groups for one in group.trajectories]
        segments = [one.segments[0] for one in rows]
        split = [(one, one.num_prompt_tokens) for one in segments]
        prompts = [one.tokens[:n].tolist() for one, n in split]
        ids = [one.tokens[n:].tolist() for one, n in split]
        texts = ["" for _ in rows]
        masks = [one.loss_mask[n:].astype(int).tolist() for one, n in split]
        sampled = [one.logprobs[n:].tolist() for one, n in split if one.logprobs is not None]
        generated = {
            "grpo": (prompts, ids, masks, texts, sampled, {}, None, None),
            "rloo": (prompts, ids, texts),
        }[kind]
        policy = load_causal_lm(models.old)
        policy.config._name_or_path = str(models.reference)  # where TRL loads the reference from
        self._questions = [{"prompt": str(number)} for number in range(len(rows))]
        self._new = load_causal_lm(models.new).state_dict()
        self.trainer = make(
            model=policy,
            reward_funcs=lambda **_: [one.total_reward for one in rows],
            processing_class=AutoTokenizer.from_pretrained(models.old),
            train_dataset=Dataset.from_list(self._questions),
            args=config(
                output_dir=str(folder),
                report_to="none",
                use_cpu=True,
                bf16=False,
                gradient_checkpointing=False,
                per_device_train_batch_size=len(rows),
                num_generations=len(groups[0].trajectories),
                num_iterations=2,  # so that the old log-probs are kept
                **options,
            ),
        )
        self.trainer._generate = lambda questions: generated
        self.trainer.use_vllm = corrected
        self.trainer.current_gradient_accumulation_steps = 1
        self.trainer.model.train()

    def step(self, advantages: Sequence[float] | None = None) -> Outcome:
        """Judge, score, credit, and the loss and gradient; ``advantages`` stand in for its own."""
        inputs = self.trainer._generate_and_score_completions(self._questions)
        own = inputs["advantages"].tolist()
        if advantages is not None:
            inputs["advantages"] = torch.tensor(advantages)
        model = self.trainer.model
        model.load_state_dict(self._new)
        loss = self.trainer._compute_loss(model, inputs)
        return replace(outcome_of(loss, model, self.trainer._metrics["train"]), advantages=own)


class Supervised:
    """An `SFTTrainer` or `DPOTrainer` on all rows of a dataset at once.

    Args:
        kind: ``sft`` or ``dpo``.
        models: The policy is `Models.new`.
        rows: What TRL's dataset holds.
        folder: For what the trainer would write.
        chat_template: Of the tokenizer, instead of the model's.
        options: Of the trainer's config.
    """

    def __init__(
        self,
        kind: str,
        models: Models,
        rows: Sequence[Mapping[str, Any]],
        folder: Path,
        *,
        chat_template: str | None = None,
        **options: Any,
    ) -> None:
        make, config, roles = {
            "sft": (trl.SFTTrainer, trl.SFTConfig, {}),
            "dpo": (
                trl.DPOTrainer,
                trl.DPOConfig,
                {"ref_model": load_causal_lm(models.reference)},
            ),
        }[kind]
        tokenizer = AutoTokenizer.from_pretrained(models.new)
        if chat_template is not None:
            tokenizer.chat_template = chat_template
        self.trainer = make(
            model=load_causal_lm(models.new),
            processing_class=tokenizer,
            train_dataset=Dataset.from_list([dict(row) for row in rows]),
            args=config(
                output_dir=str(folder),
                report_to="none",
                use_cpu=True,
                bf16=False,
                gradient_checkpointing=False,
                **options,
            ),
            **roles,
        )
        self.trainer.model.train()

    @property
    def rows(self) -> list[dict[str, list[int]]]:
        """What TRL made of each row."""
        return list(self.trainer.train_dataset)

    def step(self) -> Outcome:
        """The loss and gradient of all rows."""
        model = self.trainer.model
        loss = self.trainer.compute_loss(model, self.trainer.data_collator(self.rows))
        return outcome_of(loss, model, self.trainer._metrics["train"])


LOSS, GRADIENT = 1e-6, 1e-5


def assert_agree(mine: Outcome, theirs: Outcome) -> None:
    """Losses to 1e-6, gradients to 1e-5 of their largest entry."""
    assert mine.loss == pytest.approx(theirs.loss, rel=1e-5, abs=LOSS)
    assert mine.gradients.keys() == theirs.gradients.keys()
    largest = max(gradient.abs().max().item() for gradient in theirs.gradients.values())
    assert largest > 1e-3  # the comparison is of something
    for name, gradient in theirs.gradients.items():
        worst = (mine.gradients[name] - gradient).abs().max().item()
        assert worst <= GRADIENT * largest, f"gradient of {name}: {worst} of {largest}"
