"""Trains Hugging Face models with PyTorch.

Everything here is imported lazily by `skyrl_fsdp.plugin`: the package itself
does not load torch.
"""
