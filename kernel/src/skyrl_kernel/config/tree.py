"""The kernel's config: every key that more than one plugin, or the kernel itself, reads.

Names are SkyRL's where SkyRL has the key. Defaults are SkyRL's too, except for
those that a laptop cannot run or that surprise; each of these says so in its
description, and docs/reference/config.md lists them.
"""

from pydantic import Field, field_validator, model_validator

from skyrl_kernel.config.algorithm import AlgorithmConfig
from skyrl_kernel.config.generator import GeneratorConfig, InferenceEngineConfig
from skyrl_kernel.config.roles import CriticConfig, PolicyConfig, RefConfig, TeacherConfig
from skyrl_kernel.config.section import Seconds, Section
from skyrl_kernel.config.trainer import FullyAsyncConfig, PlacementConfig, TrainerConfig


class DataConfig(Section):
    """``data``: what is trained on and what is held out."""

    train_data: list[str] = Field(default_factory=lambda: ["~/data/gsm8k/train.parquet"])
    """Files (parquet, jsonl, json), ``NAME:SPLIT`` of an env plugin, or Hugging Face ``name[:split]``."""
    val_data: list[str] = Field(default_factory=lambda: ["~/data/gsm8k/validation.parquet"])
    """Like ``train_data``; may be empty if nothing is evaluated."""
    shuffle: bool = True
    """Draw prompts in an order seeded by ``trainer.seed`` and the epoch; false keeps the file's order."""


class EnvironmentConfig(Section):
    """``environment``: what judges. Settings of an env stand under ``environment.<name>``."""

    env_class: str = "gsm8k"
    """Env of the rows that name none."""
    timeout_s: Seconds = 60.0
    """Deadline of every call of an env."""
    max_env_workers: int = 32
    """Threads that env calls run in, at least 1."""

    @field_validator("max_env_workers")
    @classmethod
    def _has_a_thread(cls, number: int) -> int:
        if number < 1:
            raise ValueError(
                f"environment.max_env_workers={number} leaves envs no thread, and one that hangs would "
                "stop the run; use 1 or more. An env whose class says instant = True is called without one"
            )
        return number


class Config(Section):
    """The whole tree."""

    data: DataConfig = Field(default_factory=DataConfig)
    """Data sets."""
    trainer: TrainerConfig = Field(default_factory=TrainerConfig)
    """The loop."""
    generator: GeneratorConfig = Field(default_factory=GeneratorConfig)
    """Rollouts."""
    environment: EnvironmentConfig = Field(default_factory=EnvironmentConfig)
    """Envs."""

    @model_validator(mode="after")
    def _training_samples(self) -> "Config":
        if self.generator.sampling_params.temperature == 0:
            raise ValueError(
                "generator.sampling_params.temperature=0 samples the same completion every time, which "
                "trains nothing; use a temperature above 0 (evaluation has its own: "
                "generator.eval_sampling_params.temperature)"
            )
        self._refuse_odd_lengths()
        algorithm, sampled_at = self.trainer.algorithm, self.generator.sampling_params.temperature
        if algorithm.recompute_old_logprobs is False and algorithm.temperature not in {
            None,
            sampled_at,
        }:
            raise ValueError(
                f"trainer.algorithm.temperature={algorithm.temperature:g} differs from the sampling "
                f"temperature {sampled_at:g}, so the sampler's log-probs cannot stand for the old ones; "
                "leave out trainer.algorithm.recompute_old_logprobs=false"
            )
        return self

    def _refuse_odd_lengths(self) -> None:
        limit, prompts = self.generator.max_input_length, self.trainer.max_prompt_length
        if limit is None or limit == prompts:
            return
        if limit < prompts:
            raise ValueError(
                f"generator.max_input_length={limit} is less than trainer.max_prompt_length={prompts}, so "
                "prompts between the two would get no completion; raise it, or lower the other"
            )
        if self.generator.max_turns == 1:
            raise ValueError(
                f"generator.max_input_length={limit} bounds what several turns add to a prompt, and "
                f"generator.max_turns=1 allows none; leave it out, or set it to "
                f"trainer.max_prompt_length={prompts}"
            )


KERNEL_SECTIONS: tuple[tuple[str, type[Section]], ...] = (
    ("", Config),
    ("data", DataConfig),
    ("trainer", TrainerConfig),
    ("trainer.policy", PolicyConfig),
    ("trainer.critic", CriticConfig),
    ("trainer.ref", RefConfig),
    ("trainer.teacher", TeacherConfig),
    ("trainer.algorithm", AlgorithmConfig),
    ("trainer.placement", PlacementConfig),
    ("trainer.fully_async", FullyAsyncConfig),
    ("generator", GeneratorConfig),
    ("generator.inference_engine", InferenceEngineConfig),
    ("environment", EnvironmentConfig),
)
"""Where each section that plugins may ask for stands in the tree."""
