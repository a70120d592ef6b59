"""Generates in the trainer's process with Hugging Face transformers; loads models and tokenizers.

Everything here is imported lazily by `skyrl_transformers.plugin`: the package
itself loads neither torch nor transformers.
"""
