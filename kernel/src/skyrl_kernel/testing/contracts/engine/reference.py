"""What an engine is compared with: a Hugging Face module in float32, and nothing but PyTorch.

Shapes: T tokens of a row, C of them sampled, N rows, V vocabulary.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from skyrl_kernel.records import FloatArray, IntArray, Sampling

if TYPE_CHECKING:
    import torch


class Reference:
    """One set of weights.

    It has `weights` as a trainer has, so it can be pushed to an engine.

    Args:
        module: A causal language model of Hugging Face's.
    """

    def __init__(self, module: "torch.nn.Module") -> None:
        self.module = module.float().eval()
        config = cast(Any, module).config.get_text_config()
        self.vocabulary: int = config.vocab_size
        self.positions: int = config.max_position_embeddings
        """Most tokens of a row."""

    def weights(self, role: str = "policy") -> "Iterator[tuple[str, torch.Tensor]]":
        """Every tensor by its Hugging Face name, tied ones once."""
        seen: set[int] = set()
        for name, tensor in self.module.state_dict(keep_vars=True).items():
            if id(tensor) not in seen:
                seen.add(id(tensor))
                yield name, tensor.detach()

    def perturbed(self, seed: int, size: float) -> "Reference":
        """A copy with other weights.

        Args:
            seed: Another one gives others.
            size: Standard deviation of what is added to each weight.
        """
        import torch

        other = Reference(copy.deepcopy(self.module))
        generator = torch.Generator().manual_seed(seed)
        for _, tensor in other.weights():
            tensor.add_(torch.randn(tensor.shape, generator=generator) * size)
        return other

    def logprobs(self, row: IntArray, *, temperature: float = 1.0) -> FloatArray:
        """[T] log-prob in nats of each token given those before; 0 at index 0."""
        logits = self._read(row[:-1])[0] / temperature
        return np.concatenate([np.zeros(1, np.float32), _of(row[1:], logits)])

    def sampled_logprobs(self, row: IntArray, count: int, sampling: Sampling) -> FloatArray:
        """[C] log-prob of a row's last ``count`` tokens in the distribution that they are drawn from."""
        logits = self._read(row[:-1])[0][-count:]
        return _of(row[-count:], _truncated(logits / (sampling.temperature or 1.0), sampling))

    def next_logprobs(self, prompts: IntArray) -> FloatArray:
        """[N, V] log-probs of what follows each of N prompts of one length."""
        import torch

        with torch.no_grad():
            logits = cast(Any, self.module)(input_ids=_ids(prompts)).logits[:, -1]
        found: FloatArray = logits.log_softmax(-1).numpy()
        return found

    def _read(self, ids: IntArray, states: Any = None) -> tuple["torch.Tensor", Any]:
        """[T, V] logits behind each token, and keys and values of all of them."""
        import torch

        with torch.no_grad():
            out = cast(Any, self.module)(
                input_ids=_ids(ids)[None], past_key_values=states, use_cache=True
            )
        return out.logits[0], out.past_key_values


def logprobs_across_updates(
    by_version: Mapping[int, Reference], row: IntArray, versions: IntArray
) -> FloatArray:
    """[C] log-prob of a row's last tokens, each under the weights that sampled it.

    Keys and values stay as the weights left them that read a token: the prompt is
    read by those of the first sampled token, each sampled token by those of the next.

    Args:
        by_version: The weights.
        row: [T] prompt and completion.
        versions: [C] of the completion's tokens.
    """
    import torch

    first = len(row) - len(versions)
    readers = np.concatenate([np.repeat(versions[:1], first - 1), versions])
    logits, states, begin = [], None, 0
    for version, same in groupby(readers.tolist()):
        end = begin + len(list(same))
        part, states = by_version[version]._read(row[begin:end], states)
        logits.append(part)
        begin = end
    return _of(row[first:], torch.cat(logits)[first - 1 :])


def _ids(tokens: IntArray) -> "torch.Tensor":
    import torch

    return torch.from_numpy(tokens.astype(np.int64))


def _of(tokens: IntArray, logits: "torch.Tensor") -> FloatArray:
    """[T] the tokens' own log-probs."""
    chosen = logits.log_softmax(-1).gather(-1, _ids(tokens)[:, None])[:, 0]
    found: FloatArray = chosen.numpy()
    return found


def _truncated(logits: "torch.Tensor", sampling: Sampling) -> "torch.Tensor":
    """Minus infinity for every token that cannot be drawn: ``min_p``, then ``top_k``, then ``top_p``."""
    import torch

    probs = logits.softmax(-1)
    logits = logits.masked_fill(probs < probs.amax(-1, keepdim=True) * sampling.min_p, -torch.inf)
    if sampling.top_k > 0:
        least = logits.topk(sampling.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    ranked, ids = logits.softmax(-1).sort(dim=-1, descending=True)
    outside = ranked.cumsum(-1) - ranked >= sampling.top_p  # others have that mass already
    return logits.masked_fill(torch.zeros_like(outside).scatter(-1, ids, outside), -torch.inf)


def joined(prompts: Sequence[IntArray], completions: Sequence[IntArray]) -> list[IntArray]:
    """The rows that prompts and their completions make."""
    return [np.concatenate(pair) for pair in zip(prompts, completions, strict=True)]
