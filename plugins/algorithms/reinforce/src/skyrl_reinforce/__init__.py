"""REINFORCE++: one normalisation over the whole batch, in place of a critic or of groups.

Hu et al. 2025, "REINFORCE++: Stabilizing Critic-Free Policy Optimization with
Global Normalization", arXiv:2501.03262: eq. 8-10, and the variant with baseline.
Differences from the paper:

1. Trained tokens stand in the mean and the variance, so a longer answer counts
   more in both; the variance divides by their number less one. As in SkyRL.
2. What several turns earn flows back to the turns before: tokens that are not
   trained on (the env's replies) are stepped over, undiscounted. In SkyRL the
   return begins anew at each of them, so that a reward stays in its own turn.
3. The discount is ``trainer.algorithm.gamma`` per trained token; the paper's is 1.
4. The variant with baseline is for whole answers: KL in the reward counts in an
   answer's total. A group of one is compared with 0.
"""

from skyrl_reinforce.baseline import centred
from skyrl_reinforce.returns import token_returns
from skyrl_reinforce.whiten import whitened

__all__ = ["centred", "token_returns", "whitened"]
