"""Group relative policy optimization: the advantage and the clipped loss.

Shao et al. 2024, "DeepSeekMath", arXiv:2402.03300. Differences from the paper:

1. The loss is averaged over all tokens of the mini-batch (``token_mean``), not
   per completion first: SkyRL's default, from DAPO (arXiv:2503.14476).
2. Rewards are divided by the sample standard deviation (n - 1) plus 1e-6, as in
   SkyRL; the paper does not say which.
3. A group of one keeps its reward as the advantage, as in SkyRL.
4. The KL term is the kernel's, around any loss (`skyrl_kernel.defaults.kl_loss`).
   It is averaged per completion first, as the paper averages the whole loss.
5. The old policy of the ratio is the one that sampled, as in the paper; where
   the engine computes with the trainer's own weights its log-probs are not
   computed again.
"""

from skyrl_grpo.advantage import group_advantages
from skyrl_grpo.clip import clipped_loss

__all__ = ["clipped_loss", "group_advantages"]
