"""``trainer``: the loop, its batches, its files, its devices."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from skyrl_kernel.config.algorithm import AlgorithmConfig
from skyrl_kernel.config.roles import CriticConfig, PolicyConfig, RefConfig, TeacherConfig
from skyrl_kernel.config.section import Fraction, Positive, Seconds, Section


class PlacementConfig(Section):
    """``trainer.placement``: what computes on which devices."""

    colocate_all: bool = True
    """Trainer and engines take turns on the same GPUs; false gives engines GPUs of their own, and a critic
    processes and GPUs of its own."""
    colocate_policy_ref: bool = True
    """The reference is in the policy's processes; false, where ``colocate_all`` is false too, gives it
    processes and GPUs of its own."""
    policy_num_nodes: Positive = 1
    """Nodes that train the policy."""
    policy_num_gpus_per_node: Positive = 1
    """GPUs, and processes, of each of them; without GPUs, processors."""
    ref_num_nodes: Positive = 1
    """Nodes of a reference on GPUs of its own."""
    ref_num_gpus_per_node: Positive = 1
    """GPUs of each of them."""
    critic_num_nodes: Positive = 1
    """Nodes of a critic on GPUs of its own."""
    critic_num_gpus_per_node: Positive = 1
    """GPUs of each of them."""


class LogprobsDiffConfig(Section):
    """``trainer.logprobs_diff``: how far engine and trainer may differ on what is trained on.

    Both bound ``policy/rollout_train_logprobs_abs_diff_mean``. Equal weights give up to 1e-4 in
    float32 and a few 1e-2 in bfloat16; generation that runs ahead adds what the policy moved.
    """

    warn_above: Annotated[float, Field(gt=0)] | None = 0.1
    """Nats per token, mean of a step, above which the run says so; null: never."""
    stop_above: Annotated[float, Field(gt=0)] | None = 1.0
    """Nats per token, mean of a step, above which the run ends with an error; null: never."""

    @model_validator(mode="after")
    def _warns_first(self) -> "LogprobsDiffConfig":
        warn, stop = self.warn_above, self.stop_above
        if warn is not None and stop is not None and stop < warn:
            raise ValueError(
                f"trainer.logprobs_diff.stop_above={stop:g} is below warn_above={warn:g}, so the run would "
                "end before it warns; raise it, or lower the other"
            )
        return self


class FullyAsyncConfig(Section):
    """``trainer.fully_async``: generation running ahead of training."""

    enabled: bool = False
    """False is synchronous training: ``max_staleness_steps`` counts as 0."""
    max_staleness_steps: Annotated[int, Field(ge=0)] = 4
    """Most steps between the weights that began a trajectory and those that it trains."""
    num_parallel_generation_workers: Positive | None = None
    """Most groups generated at a time; null: all that ``max_staleness_steps`` allows. SkyRL: 768."""
    sample_full_batch: bool = False
    """Groups that ``trainer.algorithm.zero_variance_filter`` finds are dropped, and others generated in
    their place; false masks them."""
    clear_kv_cache_on_weight_sync: bool = False
    """Running requests compute their keys and values again after each weight sync; false keeps those of
    the weights before."""


class TrainerConfig(Section):
    """``trainer``: the loop, its batches, its files."""

    strategy: str = "fsdp"
    """Slot of `make_trainer`."""
    runtime: str = "auto"
    """Which processes make up the run: ``local`` is this one, ``ray`` one for each rank and engine; ``auto``
    is ``local`` unless ``trainer.placement`` asks for several ranks, or for a critic or a reference of its
    own. SkyRL: Ray always."""
    evaluator: str = "accuracy"
    """Slot of the stage `evaluate`."""
    train_batch_size: Positive = 1024
    """Prompts of one step."""
    policy_mini_batch_size: Positive = 256
    """Prompts of one optimizer step; divides ``train_batch_size``."""
    critic_mini_batch_size: Positive | None = None
    """The critic takes a step with each of the policy's: nothing else than ``policy_mini_batch_size``. SkyRL: 256."""
    micro_train_batch_size_per_gpu: Positive = 1
    """Token rows of one forward and backward pass."""
    remove_microbatch_padding: bool = True
    """Short rows of a pass share a row of it, where the model keeps them apart; false pads them."""
    micro_forward_batch_size_per_gpu: Positive = 1
    """Token rows of one forward pass for scores."""
    max_tokens_per_microbatch: int = -1
    """Most tokens of one pass, padding included, in place of both numbers of rows; a longer row is
    computed by itself. 0 or less: rows are counted."""
    update_epochs_per_batch: Positive = 1
    """Passes over each batch."""
    epochs: Positive = 1
    """Passes over the training data; its last incomplete batch is left out."""
    max_training_steps: Positive | None = None
    """Steps after which the run ends whatever ``epochs`` says."""
    seed: Annotated[int, Field(ge=0)] = 42
    """Seed of all random choices."""
    max_prompt_length: Positive = 512
    """Prompts of more tokens are dropped and counted."""
    eval_batch_size: Positive = 1024
    """Prompts evaluated at a time."""
    eval_interval: int = 5
    """Steps between evaluations; 0 or less: only before and after training."""
    eval_before_train: bool = True
    """Evaluate the initial weights."""
    ckpt_path: str = "runs"
    """Folder of run folders. SkyRL: ~/ckpts/."""
    ckpt_interval: int = 10
    """Steps between checkpoints; 0 or less: only at the end."""
    max_ckpts_to_keep: int = -1
    """Newest checkpoints kept; -1 keeps all."""
    resume_mode: Literal["latest", "from_path", "none"] | None = "latest"
    """``latest`` continues this run's own folder; ``none`` (or null) moves that folder aside and starts anew."""
    resume_path: str | None = None
    """A ``global_step_N`` folder, with ``resume_mode=from_path``."""
    hf_save_interval: int = -1
    """Steps between Hugging Face exports; the last step always exports. 0 or less: only there."""
    export_path: str | None = None
    """Exports go to a folder named after the run in here; default: ``export/`` in the run folder. SkyRL: ~/exports/."""
    log_path: str | None = None
    """Logs go to a folder named after the run in here; default: the run folder. SkyRL: a folder for temporary files."""
    logger: str | list[str] = Field(default_factory=lambda: ["console"])
    """Loggers, by plugin name. SkyRL: wandb."""
    logger_timeout_s: Seconds = 60.0
    """Longest wait at the end of a run for loggers that are behind; ``skyrl log`` delivers the rest."""
    close_timeout_s: Seconds = 60.0
    """Longest wait at the end of a run for each of what runs beside the loop: rollouts, the engine, the
    trainer's thread."""
    project_name: str = "skyrl"
    """Project under which loggers file the run."""
    run_name: str = "test_run"
    """Names the run folder."""
    tags: list[str] | None = None
    """Labels of the run, for loggers that have them."""
    dump_eval_results: bool = True
    """Write what each evaluation generated, one file per data source."""
    num_logger_train_samples: Annotated[int, Field(ge=-1)] = -1
    """Trained trajectories of a step that loggers show in a table; -1: all."""
    num_logger_eval_samples: Annotated[int, Field(ge=-1)] = -1
    """The same of an evaluation."""
    print_example_interval: int = 0
    """Steps between trajectories that the console prints; 0 or less: none. SkyRL: 1."""
    dump_trajectories: bool = True
    """Write every trained trajectory to ``trajectories/step_N.parquet``."""
    enable_ray_gpu_monitor: bool = True
    """With ``runtime=ray`` each step tells how busy the GPUs and how full the memory of its machines are."""
    max_failed_frac: Fraction = 0.5
    """Lost trajectories of one step, as a fraction; more stop the run."""
    bf16: bool = True
    """Compute in bfloat16; weights and optimizer stay float32."""
    gradient_checkpointing: bool = True
    """Recompute activations in the backward pass: less memory, more time."""
    policy: PolicyConfig = Field(default_factory=PolicyConfig)
    """The model that is trained."""
    critic: CriticConfig = Field(default_factory=CriticConfig)
    """The value model."""
    ref: RefConfig = Field(default_factory=RefConfig)
    """The frozen reference."""
    teacher: TeacherConfig = Field(default_factory=TeacherConfig)
    """The frozen model to learn from."""
    algorithm: AlgorithmConfig = Field(default_factory=AlgorithmConfig)
    """Advantage and loss."""
    placement: PlacementConfig = Field(default_factory=PlacementConfig)
    """Devices."""
    logprobs_diff: LogprobsDiffConfig = Field(default_factory=LogprobsDiffConfig)
    """How far engine and trainer may differ."""
    fully_async: FullyAsyncConfig = Field(default_factory=FullyAsyncConfig)
    """Generation ahead of training."""

    @property
    def updates_per_step(self) -> int:
        """Optimizer steps of the policy in one step."""
        return self.update_epochs_per_batch * self.train_batch_size // self.policy_mini_batch_size

    @property
    def max_staleness(self) -> int:
        """Most steps a trajectory may lag behind the weights that it trains; 0 is synchronous."""
        return self.fully_async.max_staleness_steps if self.fully_async.enabled else 0

    @property
    def tokens_per_pass(self) -> int | None:
        """``max_tokens_per_microbatch``; None if rows are counted."""
        return self.max_tokens_per_microbatch if self.max_tokens_per_microbatch > 0 else None

    @property
    def loggers(self) -> tuple[str, ...]:
        """`logger` as a tuple."""
        return (self.logger,) if isinstance(self.logger, str) else tuple(self.logger)

    @field_validator("ckpt_path", "export_path", "log_path")
    @classmethod
    def _is_a_folder(cls, path: str | None, info: ValidationInfo) -> str | None:
        if path is not None and "://" in path:
            raise ValueError(
                f"trainer.{info.field_name}='{path}' is an address; runs are written to folders: mount the "
                "storage and name its folder, or copy the run folder when the run has ended"
            )
        return path

    @field_validator("run_name")
    @classmethod
    def _names_one_folder(cls, name: str) -> str:
        if Path(name).name != name or name == "..":
            raise ValueError(
                f"trainer.run_name='{name}' names no folder in trainer.ckpt_path; use a name without "
                "slashes, and trainer.ckpt_path for where run folders are"
            )
        return name

    @model_validator(mode="after")
    def _batches_divide(self) -> "TrainerConfig":
        if self.train_batch_size % self.policy_mini_batch_size:
            raise ValueError(
                f"trainer.train_batch_size={self.train_batch_size} is not a multiple of "
                f"trainer.policy_mini_batch_size={self.policy_mini_batch_size}; "
                "set one so that it divides the other"
            )
        if self.max_ckpts_to_keep == 0 or self.max_ckpts_to_keep < -1:
            raise ValueError(
                f"trainer.max_ckpts_to_keep={self.max_ckpts_to_keep} keeps no checkpoint to resume "
                "from; use -1 for all, or 1 or more"
            )
        ahead = self.fully_async
        if ahead.enabled and ahead.sample_full_batch and not self.algorithm.zero_variance_filter:
            raise ValueError(
                "trainer.fully_async.sample_full_batch=true replaces the groups that "
                "trainer.algorithm.zero_variance_filter=true finds; set both, or leave it out"
            )
        if (self.resume_mode == "from_path") != (self.resume_path is not None):
            raise ValueError(
                "trainer.resume_path and trainer.resume_mode=from_path come together: set both or neither"
            )
        return self
