"""Log-probs and values of whole rows, of which each partner computes a part."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from skyrl_fsdp.critic import Critic
from skyrl_fsdp.models import Model
from skyrl_fsdp.packing import Layout
from skyrl_fsdp.ulysses import Part, Partners
from skyrl_kernel.records import FloatArray, IntArray
from skyrl_kernel.torch import row_numbers, selected_logprobs


def row_scores(
    model: Model,
    rows: Sequence[IntArray],
    partners: Partners,
    *,
    temperature: float,
    device: torch.device,
    max_rows: int,
    max_tokens: int | None,
) -> list[FloatArray]:
    """[T] log-prob in nats of each row's tokens given those before, or a critic's value; 0 at index 0.

    Args:
        model: A language model or a critic, that ``partners`` may have divided.
        rows: The same on all partners.
        partners: Those of the model.
        temperature: Divides logits.
        device: Where the model computes.
        max_rows: As in `skyrl_kernel.torch.row_logprobs`.
        max_tokens: As there.
    """

    def compute(ids: Tensor) -> Tensor:
        before, targets = ids[:, :-1], ids[:, 1:]

        def of_part(part: Part) -> Tensor:
            here = len(part.places)
            if isinstance(model, Critic):
                values: Tensor = model(part.ids, **part.extra)
                return values[:, :here]
            logits = model(input_ids=part.ids, **part.extra, use_cache=False).logits[:, :here]
            mine = torch.from_numpy(np.flatnonzero(part.mine)).to(device)
            return selected_logprobs(logits, targets[:, mine], temperature)

        count = len(before)
        layout = Layout(
            ids=before,
            positions=None,
            row=np.arange(count, dtype=np.int32),
            start=np.zeros(count, dtype=np.int32),
        )
        return partners.whole(layout, of_part)

    return row_numbers(compute, rows, device=device, max_rows=max_rows, max_tokens=max_tokens)
