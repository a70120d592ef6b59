"""Dr. GRPO: a preset. The advantage without the standard deviation, sums over a constant length.

Liu et al. 2025, "Understanding R1-Zero-Like Training: A Critical Perspective",
arXiv:2503.20783, §3.2. The advantage is `skyrl_grpo.advantage`'s with
``grpo_norm_by_std=false``, the constant `skyrl_reductions.constant`'s.
The paper has no KL term. A mini-batch's sum is divided by its trajectories and by
the constant, as in the authors' listing 1; GRPO's clip stays.
"""
