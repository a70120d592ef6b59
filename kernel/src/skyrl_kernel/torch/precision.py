"""How exactly the mathematics of losses is computed."""

from torch import Tensor


def at_least_float32(values: Tensor) -> Tensor:
    """Half precision becomes float32; float64 stays, so that gradients can be checked with it."""
    return values.double() if values.element_size() > 4 else values.float()
