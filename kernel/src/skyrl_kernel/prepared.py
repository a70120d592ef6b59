"""What a run reads: models, tokenizer and data, each looked at for everything that can be refused.

Nothing is written before, and nothing allocated.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skyrl_kernel.data import Dataset, PromptOrder, filter_long, load_prompts
from skyrl_kernel.errors import DataError, ModelError, UsageError
from skyrl_kernel.models import locate_model
from skyrl_kernel.plan import Plan, adopters
from skyrl_kernel.plugins import Lock, plugin_lock
from skyrl_kernel.plugins.wording import did_you_mean, listed
from skyrl_kernel.protocols import (
    MeasureRow,
    Tokenizer,
)
from skyrl_kernel.slots import ENVS, MODELS

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
    """The tokenizer of a model directory: the policy's, or a teacher's."""
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


def score_needs(plan: Plan) -> frozenset[str]:
    """The scores that training needs."""
    advantage, loss = plan.stages["advantage"].value, plan.stages["loss"].value
    return frozenset(advantage.needs | loss.needs)
