"""What a run is refused for: settings that the selected plugins cannot do together."""

from collections.abc import Collection, Mapping

from skyrl_kernel.config import GeneratorConfig, ResolvedConfig
from skyrl_kernel.errors import CapabilityError, ConfigError
from skyrl_kernel.plugins import Catalog, PluginEntry, Resolved
from skyrl_kernel.plugins.wording import did_you_mean, listed
from skyrl_kernel.slots import BACKENDS, PLUGINS

_SAMPLING = TRAINING, EVALUATION = "sampling_params", "eval_sampling_params"


def refuse_truncated_sampling(config: ResolvedConfig, offers: Collection[str]) -> None:
    """Log-probs of truncated sampling need the support that was sampled from, which the engine may offer."""
    sampling = config[GeneratorConfig].sampling_params
    truncated = [
        name
        for name, is_so in (
            ("top_p", sampling.top_p < 1),
            ("top_k", sampling.top_k > 0),
            ("min_p", sampling.min_p > 0),
        )
        if is_so
    ]
    if truncated and "sampling_support" not in offers:
        raise ConfigError(
            f"generator.sampling_params.{truncated[0]} truncates what is sampled in training, so the "
            "trainer's log-probs would be of another distribution than the sampler's; leave "
            "top_p=1, top_k=-1, min_p=0 in training (evaluation may truncate), or use an engine "
            "that offers 'sampling_support'"
        )


def refuse_unread_sampling(config: ResolvedConfig, catalog: Catalog) -> None:
    """An engine may drop what it does not know without a word, so its plugin names what it takes."""
    generator = config[GeneratorConfig]
    name = generator.inference_engine.backend
    for entry in catalog.named(name, (BACKENDS, PLUGINS)):
        for section in _SAMPLING:
            known = _taken(entry, section)
            for key in getattr(generator, section).additional_kwargs or {}:
                if key not in ("stop_token_ids", *known) and entry.manifest.reads is not None:
                    raise ConfigError(_unread_sampling(entry, section, key))


def _taken(entry: PluginEntry, section: str) -> list[str]:
    """Names in ``additional_kwargs`` that an engine reads."""
    start = f"generator.{section}.additional_kwargs."
    return [one.removeprefix(start) for one in entry.manifest.reads or () if one.startswith(start)]


def _unread_sampling(entry: PluginEntry, section: str, key: str) -> str:
    name = f"generator.{section}.additional_kwargs.{key}"
    if key in _taken(entry, EVALUATION):
        return (
            f"{name} changes what is sampled, so the trainer's log-probs would be of another "
            f"distribution than the sampler's; leave it out (generator.{EVALUATION} may have it)"
        )
    known = ("stop_token_ids", *_taken(entry, section))
    return (
        f"{name}: the engine '{entry.name}' does not take it.{did_you_mean(key, known)} "
        f"It takes {listed(known)}, and what the other sampling keys say"
    )


def refuse_missing_teacher(config: ResolvedConfig, needs: Collection[str]) -> None:
    """Every other model is the policy unless it is named."""
    if "teacher_logprobs" in needs and config.config.trainer.teacher.model.path is None:
        raise ConfigError(
            "there is no teacher to learn from: trainer.teacher.model.path is not set; name a model "
            "that has the policy's tokenizer"
        )


def refuse_critic_batches(config: ResolvedConfig, needs: Collection[str]) -> None:
    """Policy and critic step on the same mini-batches; without a critic the key means nothing."""
    trainer = config.config.trainer
    own, policy = trainer.critic_mini_batch_size, trainer.policy_mini_batch_size
    if "values" in needs and own not in (None, policy):
        raise ConfigError(
            f"trainer.critic_mini_batch_size={own} is not trainer.policy_mini_batch_size={policy}; policy "
            "and critic step on the same mini-batches, so set both to the same number or leave the "
            "critic's out"
        )


def refuse_several_rows(config: ResolvedConfig, stages: Mapping[str, Resolved]) -> None:
    """Credit that flows along a row cannot reach another one."""
    advantage = stages["advantage"]
    if config[GeneratorConfig].step_wise_trajectories and advantage.value.needs_one_row:
        raise CapabilityError(
            "generator.step_wise_trajectories=true makes a token row of each turn, and "
            f"{advantage.provider} (trainer.algorithm.advantage_estimator) credits tokens along one "
            "row; leave it out, or use an estimator that credits whole trajectories, such as grpo"
        )
