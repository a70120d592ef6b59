"""The tensorboard logger: a run in TensorBoard. See `skyrl_tensorboard.plugin`."""
