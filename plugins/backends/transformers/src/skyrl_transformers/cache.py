"""Keys and values of the rows being decoded, in buffers that grow seldom and compact in place.

transformers' own dynamic cache is concatenated anew for every token and copied
whole whenever a row leaves. Here a token is written into its place, and a
finished row's place is taken by the last row: one row is copied for each that
leaves.

All rows are aligned to the right: a row shorter than the longest begins later,
and the attention mask hides what stands before it.

Shapes: B rows, H key/value heads, T tokens, D head size.
"""

import torch
from torch import Tensor
from transformers import Cache, PretrainedConfig
from transformers.cache_utils import DynamicLayer, get_layer_types_and_kwargs

from skyrl_kernel.errors import ModelError

_GROWTH = 1.5
"""Factor by which full buffers grow: each token is copied at most 1 / (growth - 1) = 2 times."""


class RowLayer(DynamicLayer):  # type: ignore[misc]
    """One layer's [B, H, T, D] keys and values, views of the front of larger buffers."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self._capacity = capacity
        self._length = 0
        self._rows = 0
        self._buffers: list[Tensor] = []

    def get_seq_length(self) -> int:
        """Tokens of every row, the hidden ones before a short row included."""
        return self._length

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Append [B, H, 1, D] and return everything."""
        stop = self._length + key_states.shape[-2]
        if stop > self._capacity:
            self._grow(max(stop, int(self._capacity * _GROWTH)))
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[: self._rows, :, self._length : stop] = new
        self._length = stop
        keys, values = (buffer[: self._rows, :, :stop] for buffer in self._buffers)
        return keys, values

    def fill(self, first_row: int, rows: int, length: int, states: tuple[Tensor, Tensor]) -> None:
        """Write [b, H, t, D] prompt states into rows from ``first_row``, ending at ``length``."""
        if not self._buffers:
            _, heads, _, _ = states[0].shape
            # Zeros: a masked key weighs 0, and 0 times uninitialised memory may be NaN.
            self._buffers = [
                state.new_zeros(rows, heads, self._capacity, state.shape[-1]) for state in states
            ]
            self._rows, self._length, self.is_initialized = rows, length, True
        for buffer, state in zip(self._buffers, states, strict=True):
            count, _, tokens, _ = state.shape
            buffer[first_row : first_row + count, :, length - tokens : length] = state

    def keep(self, target: Tensor, source: Tensor, rows: int) -> None:
        """Copy rows ``source`` over rows ``target``, then keep the first ``rows``."""
        for buffer in self._buffers:
            buffer[target, :, : self._length] = buffer[source, :, : self._length]
        self._rows = rows

    def _grow(self, capacity: int) -> None:
        self._capacity = capacity
        grown = []
        for buffer in self._buffers:
            _, heads, _, size = buffer.shape
            larger = buffer.new_zeros(self._rows, heads, capacity, size)
            larger[:, :, : self._length] = buffer[: self._rows, :, : self._length]
            grown.append(larger)
        self._buffers = grown


class RowCache(Cache):  # type: ignore[misc]
    """A `RowLayer` for each layer of a model.

    Args:
        config: The model's.
        capacity: Tokens for which room is made at first.
    """

    def __init__(self, config: PretrainedConfig, capacity: int) -> None:
        super().__init__(layers=[RowLayer(capacity) for _ in range(num_attention_layers(config))])

    def fill(self, first_row: int, rows: int, length: int, prompts: Cache, take: Tensor) -> None:
        """Give rows from ``first_row`` the states of prompts that were computed padded right.

        Args:
            first_row: The first row to write.
            rows: Rows of the whole cache.
            length: Tokens of the longest prompt of the whole cache.
            prompts: [U, H, t, D] states of U prompts.
            take: [b, t] for each row to write and each place: which (flat) token
                of the U × t states belongs there.
        """
        for layer, computed in zip(self.layers, prompts.layers, strict=True):
            states = (_pick(computed.keys, take), _pick(computed.values, take))
            layer.fill(first_row, rows, length, states)

    def keep(self, target: Tensor, source: Tensor, rows: int) -> None:
        """See `RowLayer.keep`."""
        for layer in self.layers:
            layer.keep(target, source, rows)


def prompt_cache(config: PretrainedConfig) -> Cache:
    """An empty cache that keeps all states of a prompt, in layers with a sliding window too."""
    return Cache(layers=[DynamicLayer() for _ in range(num_attention_layers(config))])


def num_attention_layers(config: PretrainedConfig) -> int:
    """How many layers the model has, all of which must be attention.

    A sliding window is fine: the model masks what is outside of it.

    Raises:
        ModelError: A layer keeps something else than keys and values.
    """
    kinds, _ = get_layer_types_and_kwargs(config.get_text_config(decoder=True))
    if others := sorted({kind for kind in kinds if kind not in _ATTENTION}):
        raise ModelError(
            f"the engine 'transformers' cannot generate with a {config.model_type} model: it has "
            f"layers of type {', '.join(others)}, and only {', '.join(_ATTENTION)} are supported; "
            "use another engine, such as generator.inference_engine.backend=vllm"
        )
    return len(kinds)


_ATTENTION = ("full_attention", "sliding_attention")


def _pick(states: Tensor, take: Tensor) -> Tensor:
    """[U, H, t, D] and [b, t] flat token numbers → [b, H, t, D]."""
    flat = states.transpose(1, 2).flatten(0, 1)
    return flat[take.to(flat.device)].transpose(1, 2)


def right_aligned(lengths: Tensor, owners: Tensor, width: int) -> Tensor:
    """Which tokens move where when prompts padded right become rows aligned right.

    Args:
        lengths: [U] tokens of each prompt, at most ``width``.
        owners: [b] the prompt of each row.
        width: t.

    Returns:
        [b, t] flat token numbers; a row shorter than t repeats its first token
        before its beginning.

    Example: prompts of 1 and 2 tokens, a row for each.
        >>> right_aligned(torch.tensor([1, 2]), torch.tensor([0, 1]), 2)
        tensor([[0, 0],
                [2, 3]])
    """
    missing = (width - lengths)[owners, None]
    place = (torch.arange(width) - missing).clamp(min=0)
    return owners[:, None] * width + place
