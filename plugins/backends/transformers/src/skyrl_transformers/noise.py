"""Uniform noise that is a function of (seed, position) and of nothing else.

A generator object per request would cost a Python call per token; a hash costs
some vector operations for all rows together, and gives a request the same noise
whatever else is in the batch, in whatever order.

Source: the finaliser and increment of SplitMix64 (Steele, Lea, Flood 2014,
"Fast splittable pseudorandom number generators"), applied to seed and counter
in turn.
"""

import numpy as np
from numpy.typing import NDArray

_INCREMENT = np.uint64(0x9E3779B97F4A7C15)
_FACTORS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_SHIFTS = (np.uint64(30), np.uint64(27), np.uint64(31))
_BITS = 50
"""Leaves 3 bits of a float64: ``uniform * total`` is below ``total`` also after rounding."""


def uniform(seeds: NDArray[np.uint64], positions: NDArray[np.int64]) -> NDArray[np.float64]:
    """[B] numbers in [0, 1), one for each pair.

    Args:
        seeds: [B] see `as_seed`.
        positions: [B] counters, at least 0.
    """
    stream = _mix(seeds + _INCREMENT)
    bits = _mix(stream + (positions.astype(np.uint64) + np.uint64(1)) * _INCREMENT)
    return (bits >> np.uint64(64 - _BITS)).astype(np.float64) * 2.0**-_BITS


def as_seed(seed: int) -> int:
    """The seed modulo 2**64.

    Example:
        >>> as_seed(-1) == 2**64 - 1
        True
    """
    return seed % 2**64


def _mix(bits: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Spread every input bit over all 64."""
    bits = (bits ^ (bits >> _SHIFTS[0])) * _FACTORS[0]
    bits = (bits ^ (bits >> _SHIFTS[1])) * _FACTORS[1]
    return bits ^ (bits >> _SHIFTS[2])
