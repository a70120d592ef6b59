"""Supervised fine-tuning in the loop of RL: `generate` reads the data set, there is no engine.

`skyrl_sft.plugin` makes a trajectory of each row, `skyrl_sft.cross_entropy` is the
loss, `skyrl_sft.uniform` credits every token of the response alike.
"""
