"""Proximal policy optimization with a critic: GAE, and the clipped value loss.

Schulman et al. 2017, "Proximal Policy Optimization Algorithms", arXiv:1707.06347;
Schulman et al. 2016, "High-Dimensional Continuous Control Using Generalized
Advantage Estimation", arXiv:1506.02438. Differences from the papers:

1. A time step is a token that the policy sampled. What the env says between two
   turns takes no time: no discount, and no value of its own.
2. Policy and critic are two models with an optimizer each; 1707.06347 lets them
   share weights.
3. The value loss is clipped around the old values (`clipped_value_loss`), as in
   the code that came with 1707.06347, not in its text.
4. Advantages are whitened over the trained tokens of the batch, as in SkyRL.
5. γ = λ = 1 by default, as in SkyRL: an advantage is what was still earned, less
   what the critic expected.
6. A trajectory that was cut at its length limit ends there: nothing is expected
   of it beyond (in 1707.06347, the value of the last state).

The policy's loss is SkyRL's default, the clipped one (`skyrl_grpo.clip`).
"""

from skyrl_ppo.gae import credit_row, whiten
from skyrl_ppo.value_loss import clipped_value_loss

__all__ = ["clipped_value_loss", "credit_row", "whiten"]
