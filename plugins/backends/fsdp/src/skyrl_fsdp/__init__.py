"""Trains Hugging Face models with PyTorch."""
