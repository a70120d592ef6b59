"""Policy losses beside the PPO clip, one module each, to be read beside its paper.

Every one gives a loss per token and leaves the average to
``trainer.algorithm.loss_reduction``. What SkyRL calls a sequence is here a
trajectory, all its token rows together. Differences from a paper and from SkyRL
open each module.
"""

from skyrl_policy_losses.cispo import cispo_loss
from skyrl_policy_losses.clip_cov import clip_cov_choice
from skyrl_policy_losses.dppo import dppo_loss
from skyrl_policy_losses.dual_clip import dual_clipped_loss
from skyrl_policy_losses.gspo import mean_log_ratios, sequence_ratios, token_ratios
from skyrl_policy_losses.importance_sampling import importance_sampling_loss
from skyrl_policy_losses.kl_cov import kl_cov_choice
from skyrl_policy_losses.rollout_is import rollout_is_loss
from skyrl_policy_losses.sapo import sapo_loss

__all__ = [
    "cispo_loss",
    "clip_cov_choice",
    "dppo_loss",
    "dual_clipped_loss",
    "importance_sampling_loss",
    "kl_cov_choice",
    "mean_log_ratios",
    "rollout_is_loss",
    "sapo_loss",
    "sequence_ratios",
    "token_ratios",
]
