"""Random numbers keyed by what they are for, so that nothing depends on the order of calls."""

import hashlib

import numpy as np


def derive_seed(*key: int | str) -> int:
    """A seed in [0, 2⁶³) that depends on every part of the key.

    Example:
        >>> derive_seed(42, "train", 7, 0) == derive_seed(42, "train", 7, 1)
        False
    """
    digest = hashlib.blake2b("\x1f".join(map(str, key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(*key: int | str) -> np.random.Generator:
    """A fresh generator for one purpose, such as ``generator(seed, "select", step)``."""
    return np.random.default_rng(derive_seed(*key))
