"""The wandb logger: a run in Weights & Biases. See `skyrl_wandb.plugin`."""
