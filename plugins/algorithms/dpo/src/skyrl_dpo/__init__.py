"""Direct preference optimisation: pairs of answers instead of samples and rewards.

`skyrl_dpo.loss` is the paper, `skyrl_dpo.pairs` makes a group of two trajectories
of each row, `skyrl_dpo.evaluation` scores held-out pairs, `skyrl_dpo.plugin` are
the hooks.
"""
