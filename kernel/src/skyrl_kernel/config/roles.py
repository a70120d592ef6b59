"""Sections of the models that take part in training, by role, and of their optimizers."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from skyrl_kernel.config.section import Beta, Fraction, Positive, Section
from skyrl_kernel.config.sharding import ShardingConfig


class LoraConfig(Section):
    """``….model.lora``: low-rank adapters are trained in place of all weights."""

    rank: Annotated[int, Field(ge=0)] = 0
    """Rank of each adapter; 0 trains all weights and reads none of the others."""
    alpha: Positive = 16
    """What an adapter adds is multiplied by ``alpha / rank``."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Fraction of each adapter's inputs left out while training; then the split into micro-batches is
    no longer without effect."""
    target_modules: str | list[str] = "all-linear"
    """Which layers have an adapter: all linear ones but the output head, names (``q_proj``), or a regular
    expression for whole paths."""
    exclude_modules: str | list[str] | None = None
    """Which of them have none after all, as names or a regular expression."""
    init_method: Literal["kaiming", "gaussian", "orthogonal"] = "kaiming"
    """How the first adapter is drawn; it changes nothing yet. PEFT's others also change the weights below,
    which are the reference."""

    @model_validator(mode="after")
    def _orthogonal_in_pairs(self) -> "LoraConfig":
        if self.init_method == "orthogonal" and self.rank % 2:
            raise ValueError(
                f"rank={self.rank} with init_method=orthogonal: half of the rank is drawn for each of the "
                "two matrices; set an even rank, or init_method=kaiming"
            )
        return self


class ModelConfig(Section):
    """``….model``: where a model comes from."""

    path: str = "builtin:tiny"
    """Hugging Face directory or name, or ``NAME:REST`` of a plugin. SkyRL: Qwen/Qwen2.5-1.5B-Instruct."""
    lora: LoraConfig = Field(default_factory=LoraConfig)
    """Adapters."""


class OptimizerConfig(Section):
    """``….optimizer_config``: how weights are updated."""

    name: Literal["adamw", "muon"] = "adamw"
    """``muon``: Muon on hidden matrices, AdamW on embeddings, norms and biases."""
    lr: Annotated[float, Field(ge=0)] = 1e-6
    """Peak learning rate of AdamW."""
    muon_lr: Annotated[float, Field(ge=0)] = 0.02
    """Peak learning rate of Muon; read only with ``name=muon``."""
    adam_betas: tuple[Beta, Beta] = (0.9, 0.999)
    """Decay of AdamW's first and second moments."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Decoupled weight decay."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Gradients are scaled down to this norm."""
    num_warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Updates over which the rate rises linearly to its peak; the first already has 1/n of it."""
    scheduler: Literal["constant_with_warmup", "linear"] = "constant_with_warmup"
    """``linear`` falls after the warm-up towards ``min_lr_frac`` of the peak."""
    min_lr_frac: Fraction = 0.0
    """Where ``linear`` ends, as a fraction of the peak."""
    offload_after_step: bool = True
    """Where trainer and engine take turns on a GPU, its state goes to the machine's memory while the engine
    has it; false leaves it there."""


class PolicyConfig(Section):
    """``trainer.policy``: the model that is trained."""

    model: ModelConfig = Field(default_factory=ModelConfig)
    """Its weights and tokenizer."""
    optimizer_config: OptimizerConfig = Field(default_factory=OptimizerConfig)
    """Its optimizer."""
    sequence_parallel_size: Positive = 1
    """Ranks that have the same rows and each compute a part of every one; a divisor of the ranks that
    train, and of the attention heads."""
    fsdp_config: ShardingConfig = Field(default_factory=ShardingConfig)
    """How it is spread over ranks."""


class RefModelConfig(Section):
    """``trainer.ref.model``: the frozen reference."""

    path: str | None = None
    """Default: the policy's path."""


class RefConfig(Section):
    """``trainer.ref``: the frozen model of the KL term; loaded only if something needs it."""

    model: RefModelConfig = Field(default_factory=RefModelConfig)
    """Its weights."""
    fsdp_config: ShardingConfig = Field(default_factory=ShardingConfig)
    """How it is spread over ranks, and a teacher too."""
    sequence_parallel_size: Positive = 1
    """Ranks that each compute a part of every row, and a teacher too; a divisor of the policy's."""


class CriticModelConfig(Section):
    """``trainer.critic.model``: what the critic starts from."""

    path: str | None = None
    """Its body; a head without one begins anew. Default: the policy's path. SkyRL: to be named."""
    lora: LoraConfig = Field(default_factory=LoraConfig)
    """Adapters on its body; its head is trained whole."""


class CriticConfig(Section):
    """``trainer.critic``: the value model; loaded only if something needs it."""

    model: CriticModelConfig = Field(default_factory=CriticModelConfig)
    """Its weights."""
    optimizer_config: OptimizerConfig = Field(default_factory=lambda: OptimizerConfig(lr=5e-6))
    """Its optimizer."""
    fsdp_config: ShardingConfig = Field(default_factory=ShardingConfig)
    """How it is spread over ranks."""
    sequence_parallel_size: Positive = 1
    """Ranks that each compute a part of every row; a divisor of the policy's."""


class TeacherModelConfig(Section):
    """``trainer.teacher.model``: the frozen model to learn from."""

    path: str | None = None
    """Its weights; it has the policy's tokenizer. To be named where a teacher is needed. SkyRL: trainer.ref.model.path."""


class TeacherConfig(Section):
    """``trainer.teacher``: the frozen model to learn from; loaded only if something needs it."""

    model: TeacherModelConfig = Field(default_factory=TeacherModelConfig)
    """Its weights."""
