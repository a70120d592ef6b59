"""``trainer.algorithm``: advantage, loss, and which groups are trained on."""

from typing import Annotated, Literal

from pydantic import Field

from skyrl_kernel.config.section import Fraction, Positive, Section


class KLControllerConfig(Section):
    """``trainer.algorithm.kl_ctrl``: the coefficient of the KL in the reward, over time."""

    type: Literal["fixed", "adaptive"] = "fixed"
    """``adaptive`` moves ``kl_loss_coef`` so that the KL comes to ``kl_target``."""
    kl_target: Annotated[float, Field(gt=0)] = 0.1
    """In nats per token; read only with ``adaptive``."""
    horizon: Annotated[float, Field(gt=0)] = 10000
    """Trajectories over which the coefficient follows; read only with ``adaptive``."""


class DynamicSamplingConfig(Section):
    """``trainer.algorithm.dynamic_sampling``: which groups are trained on."""

    type: str | None = None
    """Slot of the stage `select`; null keeps every group."""
    max_sample_batches: int = 30
    """Most rounds of generation for one step; 0 or less: no bound."""
    min_replace_ratio: Fraction = 0.3
    """With ``type=replace``: the fraction of groups above which good ones stand in for the others."""


class AlgorithmConfig(Section):
    """``trainer.algorithm``: advantage, loss and their coefficients."""

    advantage_estimator: str = "grpo"
    """Slot of the stage `advantage`."""
    policy_loss_type: str = "regular"
    """Slot of the stage `loss`."""
    loss_reduction: str = "token_mean"
    """Slot of `make_reduction`: how per-token policy losses of a mini-batch are weighted."""
    grpo_norm_by_std: bool = True
    """Divide by the group's sample standard deviation; false is Dr. GRPO's advantage."""
    gamma: Fraction = 1.0
    """Discount of a reward per token, for estimators that credit tokens one by one."""
    lambd: Fraction = 1.0
    """λ of generalised advantage estimation: 1 trusts returns, 0 the critic."""
    advantage_batch_normalize: bool = False
    """Shift and scale the advantages of a batch's trained tokens to mean 0 and variance 1."""
    eps_clip_low: Fraction = 0.2
    """The ratio is clipped below at 1 minus this."""
    eps_clip_high: Annotated[float, Field(ge=0)] = 0.2
    """The ratio is clipped above at 1 plus this."""
    clip_ratio_c: Annotated[float, Field(gt=1)] = 3.0
    """Bound of the ratio where the advantage is negative, with ``policy_loss_type=dual_clip``."""
    value_clip: Annotated[float, Field(gt=0)] = 0.2
    """A value further than this from the old one is clipped in the critic's loss, in task units."""
    value_head_prefix: str = "value_head"
    """Name of the critic's head among its weights."""
    max_seq_len: Positive | None = None
    """What ``loss_reduction=seq_mean_token_sum_norm`` divides by, in tokens; default: the most of a
    completion, ``generator.sampling_params.max_generate_length``. SkyRL: to be set."""
    use_kl_loss: bool = True
    """Add a KL term against the reference to the loss; loads the reference model."""
    kl_loss_coef: Annotated[float, Field(ge=0)] = 0.001
    """Its coefficient, and that of the KL in the reward."""
    kl_estimator_type: Literal["k1", "k2", "k3", "abs"] = "k3"
    """Its estimator, and that of the KL in the reward."""
    use_kl_in_reward: bool = False
    """Subtract the KL against the reference from the reward, token by token; needs ``use_kl_loss=false``."""
    kl_ctrl: KLControllerConfig = Field(default_factory=KLControllerConfig)
    """How the coefficient of the KL in the reward moves."""
    use_entropy_loss: bool = False
    """Subtract the policy's entropy from the loss."""
    entropy_loss_coef: Annotated[float, Field(ge=0)] = 0.01
    """Its coefficient."""
    temperature: Annotated[float, Field(gt=0)] | None = None
    """Divides the trainer's logits; default: the sampling temperature."""
    recompute_old_logprobs: bool | None = None
    """Compute old log-probs with the trainer. Default: not where the engine computes with the trainer's
    own weights in float32, since its log-probs are the same to rounding."""
    zero_variance_filter: bool = False
    """Groups whose rewards are all equal are not trained on."""
    zero_variance_filter_tol: Annotated[float, Field(ge=0)] = 1e-6
    """Largest spread of rewards that counts as equal."""
    dynamic_sampling: DynamicSamplingConfig = Field(default_factory=DynamicSamplingConfig)
    """Which groups are trained on."""
    overlong_buffer_len: Annotated[int, Field(ge=0)] | Literal["auto"] = 0
    """Last tokens of the allowed length over which a reward falls linearly; 0: none; ``auto``: a fifth
    of that length, as in DAPO's paper. SkyRL's DAPO example: 512."""
    overlong_buffer_penalty_factor: Annotated[float, Field(ge=0)] = 1.0
    """What is taken at the end of that buffer, in task units."""
