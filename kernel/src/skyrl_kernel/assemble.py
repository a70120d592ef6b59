"""From a plan to a session: models, data, trainer, engine, producer, in that order.

Nothing is written before everything that can be refused was looked at.
"""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skyrl_kernel.admission import Admission
from skyrl_kernel.batch import Scorer
from skyrl_kernel.config import GeneratorConfig, SamplingConfig
from skyrl_kernel.data import Dataset, PromptOrder, filter_long, load_prompts
from skyrl_kernel.errors import DataError, HookError, ModelError, ResumeError, UsageError
from skyrl_kernel.models import locate_model
from skyrl_kernel.plan import Plan, adopters
from skyrl_kernel.plugins import Lock, plugin_lock
from skyrl_kernel.plugins.wording import did_you_mean, listed
from skyrl_kernel.probe import MAX_ROWS, MAX_TOKENS
from skyrl_kernel.producer import Producer
from skyrl_kernel.progress import Progress
from skyrl_kernel.protocols import (
    Carries,
    Engine,
    MeasureRow,
    Measures,
    Runtime,
    SyncWeights,
    Tokenizer,
    Trainer,
)
from skyrl_kernel.recipe import EngineRecipe, TrainerRecipe
from skyrl_kernel.records import Group, IntArray, Prompt, Sampling
from skyrl_kernel.resume import Start
from skyrl_kernel.rollout.driver import Rollouts
from skyrl_kernel.rollout.env_host import EnvHost
from skyrl_kernel.rollout.env_process import EnvProcessPool
from skyrl_kernel.rollout.remote_env import RemoteFactory
from skyrl_kernel.run.folder import RunFolder
from skyrl_kernel.sentinels import Sentinels
from skyrl_kernel.session import Session
from skyrl_kernel.slots import ENVS, MODELS

NO_LIMIT = 2**31 - 1
READS_ROWS = "reads_rows"
"""Offered by a stage `generate` that takes its answers from the rows."""

SCORED_BY = {"reference": "ref_logprobs", "teacher": "teacher_logprobs", "value": "values"}
"""Role beside the policy → the score that it is there for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Data:
    """The prompts of a run, those that are too long left out."""

    train: Dataset
    val: Dataset
    notes: tuple[str, ...]
    """What was dropped or will be played in vain, in full sentences."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """A plan with everything that it reads: nothing was written yet, nothing allocated."""

    plan: Plan
    models: dict[str, Path]
    """Role → model directory."""
    tokenizer: Tokenizer
    data: Data
    order: PromptOrder
    """Of the training prompts."""
    lock: Lock
    """Exactly which plugins."""


def prepare(plan: Plan) -> Prepared:
    """Find the models, read and check the data, record the plugins.

    Raises:
        UsageError: A model or a data set is not what it must be; says which and why.
    """
    models = load_models(plan, score_needs(plan) | plan.stages["evaluate"].value.needs)
    tokenizer = make_tokenizer(plan, models["policy"])
    data = load_data(plan, tokenizer)
    if "teacher" in models:
        _refuse_other_tokens(tokenizer, make_tokenizer(plan, models["teacher"]), data)
    config = plan.tree.trainer
    order = PromptOrder(
        data.train,
        batch_size=config.train_batch_size,
        seed=config.seed,
        shuffle=plan.tree.data.shuffle,
        epochs=config.epochs,
        max_steps=config.max_training_steps,
    )
    return Prepared(
        plan=plan,
        models=models,
        tokenizer=tokenizer,
        data=data,
        order=order,
        lock=plugin_lock(plan.entries),
    )


def load_models(plan: Plan, needs: Collection[str]) -> dict[str, Path]:
    """Role → model directory: the policy, and whoever else gives the scores ``needs``."""
    trainer = plan.tree.trainer
    paths = {
        "policy": trainer.policy.model.path,
        "reference": trainer.ref.model.path,
        "teacher": trainer.teacher.model.path,
        "value": trainer.critic.model.path,
    }
    roles = ["policy", *(role for role, score in SCORED_BY.items() if score in needs)]
    models: dict[str, Path] = {}
    for role in roles:
        path = paths[role]
        models[role] = (
            models["policy"]
            if path is None
            else locate_model(path, MODELS[role], plan.manager, plan.config)
        )
    return models


def make_tokenizer(plan: Plan, model: Path) -> Tokenizer:
    """The policy's tokenizer."""
    name = plan.tree.generator.tokenizer
    tokenizer: Tokenizer = plan.manager.make(
        "make_tokenizer", name, name=name, model=model, settings=plan.config
    )
    return tokenizer


_SAMPLE = "The quick brown fox: 0123456789 * 7 = {x}?\n\tÄé→"


def _refuse_other_tokens(policy: Tokenizer, teacher: Tokenizer, data: "Data") -> None:
    """A teacher judges the policy's tokens, so its ids must mean the same.

    Raises:
        ModelError: They do not, in a sample of text.
    """
    texts = [_SAMPLE]
    for prompt in data.train.prompts[:8]:
        texts += [str(message["content"]) for message in prompt.messages]
    for text in texts:
        if policy.encode(text).tolist() != teacher.encode(text).tolist():
            raise ModelError(
                "trainer.teacher.model.path has another tokenizer than trainer.policy.model.path: "
                f"'{text.splitlines()[0][:60]}' has other ids, and a teacher judges the policy's tokens "
                "one by one; use a teacher of the same model family"
            )


def load_data(plan: Plan, tokenizer: Tokenizer, *, training: bool = True) -> Data:
    """Read, check and measure all prompts.

    Raises:
        DataError: Names file, row and column, or the env that is not selected.
    """
    config = plan.tree

    def resolve(source: str) -> Any:
        name = source.partition(":")[0]
        if not any(entry.name == name for entry in plan.entries):
            return None
        return plan.manager.make("load_dataset", name, source=source, settings=plan.config)

    notes = []
    generate = plan.stages["generate"].provider
    measure: MeasureRow | None = None
    if READS_ROWS in generate.manifest.offers:
        name = config.generator.rollout
        measure = plan.manager.make("measure_row", name, name=name, settings=plan.config)

    def load(sources: Sequence[str], key: str) -> Dataset:
        try:
            dataset = load_prompts(
                sources,
                default_env=config.environment.env_class,
                resolve=resolve,
                needs_prompt=measure is None,
            )
        except DataError as error:
            unset = plan.config.origins.get(key) == "default"
            hint = (
                f". {key} was not set: name your data, or --plugin demo for the demo's"
                if unset
                else ""
            )
            raise DataError(f"{key}: {error}{hint}") from error
        if "env" in generate.manifest.needs:
            _refuse_unselected_envs(plan, dataset, key)
            _check_envs(plan, dataset, key)
        try:
            kept, dropped = filter_long(
                dataset, tokenizer, config.trainer.max_prompt_length, measure
            )
        except DataError as error:
            raise DataError(f"{key}: {error}") from error
        if dropped:
            notes.append(
                f"{key}: {dropped} of {len(dataset)} prompts are longer than trainer.max_prompt_length="
                f"{config.trainer.max_prompt_length} tokens and were dropped"
            )
        return kept

    train = load(config.data.train_data if training else [], "data.train_data")
    val = load(config.data.val_data, "data.val_data")
    size = config.generator.eval_n_samples_per_prompt
    plays = measure is None
    if plays and size > 1 and len(val) and config.generator.eval_sampling_params.temperature == 0:
        notes.append(
            f"generator.eval_n_samples_per_prompt={size} with "
            "generator.eval_sampling_params.temperature=0 plays every held-out prompt the same way "
            f"{size} times; set a temperature above 0"
        )
    return Data(train=train, val=val, notes=tuple(notes))


def _refuse_unselected_envs(plan: Plan, dataset: Dataset, key: str) -> None:
    catalog = plan.manager.catalog
    for name, origin in dataset.env_classes().items():
        if plan.selected(name, ENVS) or plan.adopts(name):
            continue
        selected = [entry.name for entry in plan.entries if entry.group == ENVS]
        if catalog.named(name, (ENVS,)):
            problem, remedy = "is not selected", f"Add --plugin {name}"
        else:
            installed = [entry.name for entry in catalog if entry.group == ENVS]
            problem = (
                f"is not installed.{did_you_mean(name, installed)} Installed: {listed(installed)}"
            )
            remedy = f"{adopters(catalog)} If it exists: pip install skyrl-{name}".lstrip()
        raise DataError(
            f"{key}: {origin} names the env '{name}', which {problem}; selected are: "
            f"{listed(selected)}. {remedy}"
        )


def _check_envs(plan: Plan, dataset: Dataset, key: str) -> None:
    """Let plugins refuse an env now rather than trajectory by trajectory."""
    hook = "check_env"
    for name, origin in dataset.env_classes().items():
        for failure in plan.manager.observe(hook, name=name, settings=plan.config):
            error = failure.error
            if isinstance(error, UsageError):
                raise UsageError(f"{key}: {origin} names the env '{name}': {error}") from error
            blamed = plan.manager.attribute(error, hook, step=None, provider=failure.plugin)
            blamed.exit_code = 2
            raise blamed from error


def training_sampling(config: GeneratorConfig) -> Sampling:
    """``generator.sampling_params`` as the engine takes it."""
    return _sampling(config.sampling_params, config.sampling_params.max_generate_length)


def eval_sampling(config: GeneratorConfig) -> Sampling:
    """``generator.eval_sampling_params``, its length from training where it has none."""
    own = config.eval_sampling_params
    return _sampling(own, own.max_generate_length or config.sampling_params.max_generate_length)


def _sampling(config: SamplingConfig, max_tokens: int) -> Sampling:
    extra = dict(config.additional_kwargs or {})
    return Sampling(
        max_tokens=max_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=config.top_k,
        min_p=config.min_p,
        stop=tuple(config.stop or ()),
        stop_token_ids=tuple(extra.pop("stop_token_ids", ())),
        extra=extra,
    )


def make_rollouts(plan: Plan, engine: Engine, tokenizer: Tokenizer, progress: Progress) -> Rollouts:
    """The driver of all rollouts of a run."""
    config = plan.tree
    make_env = plan.manager.maker("make_env", settings=plan.config)
    workers = config.environment.max_env_workers
    envs = EnvHost(
        lambda name, extras, max_turns: make_env(name, extras=extras, max_turns=max_turns),
        EnvProcessPool(RemoteFactory.of(plan), workers),
        timeout_s=config.environment.timeout_s,
        workers=workers,
        max_turns=config.generator.max_turns,
    )
    one_turn = config.generator.max_turns == 1
    return Rollouts(
        generate=plan.stages["generate"].value,
        reward=plan.stages["reward"].value,
        engine=engine,
        tokenizer=tokenizer,
        envs=envs,
        attribute=plan.manager.attribute,
        seed=config.trainer.seed,
        max_prompt_tokens=config.trainer.max_prompt_length,
        max_input_tokens=config.generator.max_input_length
        or (config.trainer.max_prompt_length if one_turn else NO_LIMIT),
        reward_timeout_s=config.generator.reward_timeout_s,
        request_timeout_s=config.generator.request_timeout_s,
        on_progress=progress.advance,
    )


def make_engine(plan: Plan, runtime: Runtime, model: Path) -> Engine:
    """The engine, where the runtime puts it."""
    return runtime.start_engine(EngineRecipe.of(plan, model))


def make_trainer(plan: Plan, runtime: Runtime, models: dict[str, Path], updates: int) -> Trainer:
    """The trainer, where the runtime puts it."""
    return runtime.start_trainer(TrainerRecipe.of(plan, models, updates))


def make_sync(plan: Plan, runtime: Runtime) -> SyncWeights:
    """Stage 6, or what stands here for that of the trainer's processes, which were started."""
    if plan.carried is None:
        stage: SyncWeights = plan.stages["sync_weights"].value
        return stage
    if not isinstance(runtime, Carries):
        raise HookError(
            f"the runtime '{plan.tree.trainer.runtime}' offers 'separate_processes' and has no method "
            "carry; see skyrl_kernel.protocols.Carries"
        )
    return runtime.carry()


def make_session(
    prepared: Prepared, *, folder: RunFolder, progress: Progress, runtime: Runtime, start: Start
) -> Session:
    """Make everything that the loop calls, and bring it to where the run begins."""
    plan, order = prepared.plan, prepared.order
    config = plan.tree
    state, ahead = start.state, config.trainer.fully_async
    first_step = int(state["step"]) + 1 if state else 1
    if state:
        _refuse_other_batch_size(state["producer"], first_step - 1, config.trainer.train_batch_size)
    updates_per_step = (
        config.trainer.update_epochs_per_batch
        * config.trainer.train_batch_size
        // config.trainer.policy_mini_batch_size
    )
    trainer = make_trainer(plan, runtime, prepared.models, order.total_steps * updates_per_step)
    if start.checkpoint is not None:
        trainer.load(start.checkpoint.path)
    if plan.takes_turns:  # an engine takes its memory when it starts
        trainer.offload()
    engine = make_engine(plan, runtime, prepared.models["policy"])
    admission = Admission(
        target=config.trainer.train_batch_size,
        max_staleness=config.trainer.max_staleness,
        most_running=ahead.num_parallel_generation_workers if ahead.enabled else None,
        total=order.total_steps * config.trainer.train_batch_size,
        version=first_step - 1,
        begun=int(state["producer"]["begun"]) if state else 0,
        dropped=int(state["producer"]["dropped"]) if state else 0,
    )
    if start.checkpoint is not None:
        order.load_state_dict(state["producer"]["prompts"])
        for hook, saved in state["stages"].items():
            plan.stages[hook].value.load_state_dict(saved)
    rollouts = make_rollouts(plan, engine, prepared.tokenizer, progress)
    sampling = training_sampling(config.generator)
    size = config.generator.n_samples_per_prompt

    def begin(prompt: Prompt, index: int, step: int) -> "asyncio.Task[Group]":
        return rollouts.start(
            prompt, index=index, step=step, size=size, phase="train", sampling=sampling
        )

    algorithm = config.trainer.algorithm
    sampled_at = config.generator.sampling_params.temperature
    temperature = algorithm.temperature or sampled_at
    same_logprobs = (
        _samples_as_trained(plan) and not config.trainer.bf16 and temperature == sampled_at
    )
    recompute = algorithm.recompute_old_logprobs
    bounds = config.trainer.logprobs_diff
    sentinels = Sentinels(bounds.warn_above, bounds.stop_above)
    if state:
        sentinels.load_state_dict(state["sentinels"])
    name = algorithm.loss_reduction
    return Session(
        plan=plan,
        folder=folder,
        progress=progress,
        trainer=trainer,
        engine=engine,
        rollouts=rollouts,
        producer=Producer(
            prompts=order,
            begin=begin,
            select=plan.stages["select"].value,
            admission=admission,
            seed=config.trainer.seed,
            max_rounds=algorithm.dynamic_sampling.max_sample_batches,
            max_failed_frac=config.trainer.max_failed_frac,
        ),
        admission=admission,
        scorer=Scorer(
            trainer=trainer,
            needs=score_needs(plan),
            recompute_old=not same_logprobs if recompute is None else recompute,
            only_sampled=plan.stages["loss"].value.needs_sampler_logprobs,
            temperature=temperature,
        ),
        advantage=plan.stages["advantage"].value,
        loss=plan.stages["loss"].value,
        eval_scorer=Scorer(
            trainer=trainer,
            needs=plan.stages["evaluate"].value.needs,
            recompute_old=True,
            temperature=algorithm.temperature or 1.0,
        ),
        reduction=plan.manager.make("make_reduction", name, name=name, settings=plan.config),
        sync_weights=make_sync(plan, runtime),
        evaluate=plan.stages["evaluate"].value,
        tokenizer=prepared.tokenizer,
        val_prompts=prepared.data.val.prompts,
        eval_sampling=eval_sampling(config.generator),
        temperature=temperature,
        first_step=first_step,
        total_steps=order.total_steps,
        steps_per_epoch=order.steps_per_epoch,
        probe_rows=_probe_rows(prepared),
        lock=prepared.lock,
        machines=runtime if isinstance(runtime, Measures) else None,
        sentinels=sentinels,
        warnings=list(state["warnings"]) if state else [],
        saved_step=first_step - 1,
        first_eval=dict(state["first_eval"]) if state else {},
    )


def _samples_as_trained(plan: Plan) -> bool:
    """True if the engine samples with the very weights that are trained next, and as the trainer computes.

    It has the trainer's own, or it has all of them after every step, is the trainer's kind of
    engine, and nothing is generated ahead.
    """
    if "same_weights" in plan.stages["sync_weights"].provider.manifest.offers:
        return True
    name = plan.tree.generator.inference_engine.backend
    offers = {offer for one in plan.entries if one.name == name for offer in one.manifest.offers}
    return offers >= {"in_process", "exact_logprobs"} and plan.tree.trainer.max_staleness == 0


def _probe_rows(prepared: Prepared) -> list[IntArray]:
    """The first prompts' beginnings, where the engine says that it can compute log-probs as the trainer does."""
    plan = prepared.plan
    name = plan.tree.generator.inference_engine.backend
    is_able = any(
        entry.name == name and "exact_logprobs" in entry.manifest.offers for entry in plan.entries
    )
    prompts = prepared.data.train.prompts[:MAX_ROWS] if is_able else ()
    return [
        prepared.tokenizer.encode_chat(prompt.messages, add_generation_prompt=True)[:MAX_TOKENS]
        for prompt in prompts
        if prompt.messages  # rows that are read may have none
    ]


def _refuse_other_batch_size(saved: Mapping[str, Any], steps: int, batch_size: int) -> None:
    """Admission counts groups, so a run keeps its batch size."""
    consumed = int(saved["begun"]) - int(saved["dropped"])
    if consumed != steps * batch_size:
        raise ResumeError(
            f"the checkpoint was written with another trainer.train_batch_size: its {steps} steps "
            f"trained on {consumed} groups, with {batch_size} they would have on "
            f"{steps * batch_size}; set it back to {consumed // max(steps, 1)}"
        )


def score_needs(plan: Plan) -> frozenset[str]:
    """The scores that training needs."""
    advantage, loss = plan.stages["advantage"].value, plan.stages["loss"].value
    return frozenset(advantage.needs | loss.needs)
