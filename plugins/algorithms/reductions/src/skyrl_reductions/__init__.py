"""How the policy losses of a mini-batch's tokens become one number.

A reduction gives each trained token a weight; the objective is Σ weight × loss
over the tokens of a mini-batch, so it depends on no split into micro-batches or
over ranks. `token_mean`, the default, is the kernel's.

Trajectories and prompts are counted whether or not a token of theirs is
trained on, as in SkyRL: what was masked leaves its share empty, instead of
raising that of the others. (`token_mean` counts trained tokens only.)
"""

from skyrl_reductions.constant import seq_mean_token_sum_norm
from skyrl_reductions.means import prompt_mean, sequence_mean

__all__ = ["prompt_mean", "seq_mean_token_sum_norm", "sequence_mean"]
