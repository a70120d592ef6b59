"""From what a run has prepared to its session: trainer, engine, producer, in that order."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from skyrl_kernel.admission import Admission
from skyrl_kernel.batch import Scorer
from skyrl_kernel.config import GeneratorConfig, SamplingConfig
from skyrl_kernel.errors import HookError, ResumeError
from skyrl_kernel.plan import Plan
from skyrl_kernel.prepared import Prepared, score_needs
from skyrl_kernel.probe import MAX_ROWS, MAX_TOKENS
from skyrl_kernel.producer import Producer
from skyrl_kernel.progress import Progress
from skyrl_kernel.protocols import (
    Engine,
    Measures,
    Runtime,
    SyncsByRanks,
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
from skyrl_kernel.stage_states import bring_back, stage_states

NO_LIMIT = 2**31 - 1


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
        request_timeout_s=None
        if "keeps_deadlines" in plan.engine_offers
        else config.generator.request_timeout_s,
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
    if plan.rank_sync is None:
        stage: SyncWeights = plan.stages["sync_weights"].value
        return stage
    if not isinstance(runtime, SyncsByRanks):
        raise HookError(
            f"the runtime '{plan.tree.trainer.runtime}' offers 'separate_processes' and has no method "
            "sync_by_ranks; see skyrl_kernel.protocols.SyncsByRanks"
        )
    return runtime.sync_by_ranks()


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
    updates = order.total_steps * config.trainer.updates_per_step
    trainer = make_trainer(plan, runtime, prepared.models, updates)
    if start.checkpoint is not None:
        trainer.load(start.checkpoint.path)
    if plan.hands_over_gpu:  # an engine takes its memory when it starts
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
        bring_back(plan, state["stages"])
    stage_states(plan)  # found now, or it would be after much work
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
    is_alike = plan.engine_offers >= {"in_process", "exact_logprobs"}
    return is_alike and plan.tree.trainer.max_staleness == 0


def _probe_rows(prepared: Prepared) -> list[IntArray]:
    """The first prompts' beginnings, where the engine says that it can compute log-probs as the trainer does."""
    plan = prepared.plan
    is_able = "exact_logprobs" in plan.engine_offers
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
