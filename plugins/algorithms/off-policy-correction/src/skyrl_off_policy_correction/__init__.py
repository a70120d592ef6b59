"""Tokens were sampled with other probabilities than the trainer has for them: correct for it.

The engine rounds otherwise, or samples with older weights. With ρ = exp(old −
sampler), the ratio of the trainer's probability before the step's updates to the
engine's, there are four remedies, applied in SkyRL's order, each to what the one
before it left:

1. outlier mask: one token far out takes its whole trajectory out;
2. token mask, "IcePop" (Ling team 2025, arXiv:2510.18855): tokens far out;
3. truncated importance sampling (Ionides 2008; Yao et al. 2025, "Your Efficient RL
   Framework Secretly Brings You Off-Policy RL Training"): the loss times min(ρ, cap),
   by token or by trajectory;
4. sequence mask (Liu and Li et al. 2025, "When Speed Kills Stability"): trajectories
   whose product, or geometric mean, of ρ is out of bounds.

Differences from SkyRL:

1. The statistics of a trajectory are over all its rows, also step-wise.
2. What is masked keeps its share of the normalisation, as in SkyRL: the weights of
   the loss reduction are those of all trained tokens, so the rest is not raised.
3. Only the term ``policy`` is weighted: KL, entropy and value terms are as they were.
4. With clip_cov and kl_cov all of it is refused; SkyRL ignores the masks by outlier
   and token there.
5. A weight is refused with every loss whose ratio is to the sampler (cispo with that
   anchor, rollout_is, dppo): it would count twice. SkyRL refuses the first only.
"""

from skyrl_off_policy_correction.config import OffPolicyCorrectionConfig

__all__ = ["OffPolicyCorrectionConfig"]
