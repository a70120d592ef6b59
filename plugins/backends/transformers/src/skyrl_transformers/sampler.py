"""From logits to sampled tokens and their log-probs, for a whole batch at once.

Each row draws one uniform number and inverts the cumulative distribution: one
pass over the vocabulary, where Gumbel noise would need V numbers a row.

Shapes: B rows, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from skyrl_kernel.records import Sampling


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingRows:
    """How each row of a batch samples. Greedy rows have neutral values elsewhere."""

    temperature: Tensor
    """[B] float32."""
    greedy: Tensor
    """[B] bool: takes the most likely token."""
    top_k: Tensor
    """[B] int64; the vocabulary's size or more keeps all."""
    top_p: Tensor
    """[B] float32."""
    min_p: Tensor
    """[B] float32."""

    @classmethod
    def of(cls, samplings: Sequence[Sampling], device: torch.device) -> "SamplingRows":
        """One row per `Sampling`."""
        greedy = [sampling.temperature == 0 for sampling in samplings]

        def column(values: list[float], dtype: torch.dtype, neutral: float) -> Tensor:
            pairs = zip(values, greedy, strict=True)
            column = [neutral if is_greedy else value for value, is_greedy in pairs]
            return torch.tensor(column, dtype=dtype, device=device)

        no_limit = torch.iinfo(torch.int64).max
        ranks = [sampling.top_k if sampling.top_k > 0 else no_limit for sampling in samplings]
        return cls(
            temperature=column([s.temperature for s in samplings], torch.float32, 1.0),
            greedy=torch.tensor(greedy, dtype=torch.bool, device=device),
            top_k=torch.tensor(
                [no_limit if is_greedy else k for k, is_greedy in zip(ranks, greedy, strict=True)],
                device=device,
            ),
            top_p=column([s.top_p for s in samplings], torch.float32, 1.0),
            min_p=column([s.min_p for s in samplings], torch.float32, 0.0),
        )

    def take(self, rows: Tensor) -> "SamplingRows":
        """The rows at these indices."""
        return SamplingRows(
            temperature=self.temperature[rows],
            greedy=self.greedy[rows],
            top_k=self.top_k[rows],
            top_p=self.top_p[rows],
            min_p=self.min_p[rows],
        )


class Sampler:
    """Samples for rows whose settings are known beforehand, skipping what none of them needs."""

    def __init__(self, rows: SamplingRows) -> None:
        self._rows = rows
        self._any_greedy = bool(rows.greedy.any())
        self._all_greedy = bool(rows.greedy.all())
        self._tempered = bool((rows.temperature != 1).any())
        self._sorts = bool(((rows.top_p < 1) | (rows.top_k < torch.iinfo(torch.int64).max)).any())
        self._truncates = self._sorts or bool((rows.min_p > 0).any())

    def take(self, rows: Tensor) -> "Sampler":
        """A sampler for the rows at these indices."""
        return Sampler(self._rows.take(rows))

    def __call__(self, logits: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """Sample one token per row.

        Args:
            logits: [B, V], any float dtype.
            uniform: [B] float64 in [0, 1); greedy rows ignore theirs.

        Returns:
            [B] int64 ids, and [B] float32 log-probs in nats of the distribution
            that was sampled from: temperature and truncation applied. A greedy
            row's is the chosen token's at temperature 1. NaN logits give a NaN
            log-prob.
        """
        scaled = logits.float()
        if self._tempered:
            scaled = scaled / self._rows.temperature[:, None]
        if self._truncates:
            scaled = self._truncate(scaled)
        if self._all_greedy:
            chosen = scaled.gather(-1, scaled.argmax(-1, keepdim=True))
            return scaled.argmax(-1), (chosen - scaled.logsumexp(-1, keepdim=True)).squeeze(-1)
        probs = scaled.softmax(-1)
        # float64: in a vocabulary of 150,000 the rounding of a float32 sum outweighs rare tokens.
        cumulative = probs.cumsum(-1, dtype=torch.float64)
        drawn = uniform[:, None] * cumulative[:, -1:]
        tokens = torch.searchsorted(cumulative, drawn, right=True).squeeze(-1)
        tokens = tokens.clamp_(max=logits.shape[-1] - 1)  # NaN sorts past the end
        if self._any_greedy:
            tokens = torch.where(self._rows.greedy, scaled.argmax(-1), tokens)
        return tokens, probs.gather(-1, tokens[:, None]).squeeze(-1).log()

    def _truncate(self, logits: Tensor) -> Tensor:
        """Minus infinity outside of the kept tokens: min_p, then top_k, then top_p of what is left.

        This is vLLM's order. The most likely token always stays; of equally
        likely ones those with the lower id are kept first.
        """
        least = logits.amax(-1, keepdim=True) + self._rows.min_p[:, None].log()
        logits = logits.masked_fill(logits < least, -torch.inf)
        if not self._sorts:
            return logits
        ranked, ids = logits.sort(dim=-1, descending=True, stable=True)
        rank = torch.arange(ranked.shape[-1], device=ranked.device)
        ranked = ranked.masked_fill(rank >= self._rows.top_k[:, None], -torch.inf)
        probs = ranked.softmax(-1)
        mass_before = probs.cumsum(-1) - probs
        top_p = self._rows.top_p[:, None]
        outside = (mass_before >= top_p) & (top_p < 1) & (rank > 0)
        ranked = ranked.masked_fill(outside, -torch.inf)
        return torch.empty_like(logits).scatter_(-1, ids, ranked)
