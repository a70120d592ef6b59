"""Random numbers keyed by what they are for, so that nothing depends on the order of calls."""

import hashlib

import numpy as np


def derive_seed(*key: int | str) -> int:
    """A seed in [0, 2⁶³) that depends on every part of the key.

    Example:
        >>> derive_seed(42, "train", 7, 0) == derive_seed(42, "train", 7, 1)
        False
    """
    return _hashed("\x1f".join(map(str, key)))


def derive_seeds(*key: int | str, count: int) -> list[int]:
    """`derive_seed` of ``(*key, 0)``, ``(*key, 1)``, …; what they share is joined once."""
    shared = "\x1f".join(map(str, (*key, "")))
    return [_hashed(f"{shared}{last}") for last in range(count)]


def generator(*key: int | str) -> np.random.Generator:
    """A fresh generator for one purpose, such as ``generator(seed, "select", step)``."""
    return np.random.default_rng(derive_seed(*key))


def _hashed(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
