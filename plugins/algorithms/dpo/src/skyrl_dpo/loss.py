"""The loss of direct preference optimisation.

Rafailov et al. 2023, "Direct Preference Optimization: Your Language Model is
Secretly a Reward Model", arXiv:2305.18290, eq. 7. For a prompt x with a preferred
answer y_w and another y_l,

    reward(y) = β · (log π(y|x) − log π_ref(y|x))
    loss      = −log σ(reward(y_w) − reward(y_l))

where log π(y|x) is the sum over the answer's tokens.

Differences from the paper:

1. ``label_smoothing`` ε mixes in the loss of the pair turned around,
   (1−ε)·loss(w, l) + ε·loss(l, w), for labels that are wrong now and then
   (Mitchell 2023, "cDPO"). 0, the default, is the paper.
2. ``loss_type=ipo`` is Azar et al. 2023, arXiv:2310.12036, eq. 17, with sums over
   tokens as in that paper: (margin − 1/(2β))², margin being the rewards' difference
   before β. ``ipo_mean`` takes means over tokens, so that β does not depend on
   lengths; its authors told TRL that their results are of this form. ``hinge`` is max(0, 1 − the rewards' difference) (Zhao et al. 2023,
   SLiC-HF, arXiv:2305.10425, with the reference inside).

Which side a token belongs to is the sign of its advantage, which
`skyrl_dpo.pairs` sets; its size does not matter.
"""

from functools import partial
from typing import TYPE_CHECKING

from skyrl_dpo.config import DpoConfig
from skyrl_kernel.protocols import Loss

if TYPE_CHECKING:
    from torch import Tensor

    from skyrl_kernel.torch import LossInputs, LossTerms


def make_loss(config: DpoConfig) -> Loss:
    """The stage: needs the reference, and both sides of a pair in one micro-batch."""
    return Loss(fn=partial(dpo, config=config), needs=frozenset({"ref_logprobs"}), atom="group")


def dpo(inputs: "LossInputs", *, config: DpoConfig) -> "LossTerms":
    """The loss of each pair, at every token of the pair.

    So with a weight of 1 / (pairs × tokens of the pair) per token
    (``loss_reduction=prompt_mean``) the objective is the mean over pairs. A pair
    of which one side is not there has loss 0 and counts in no metric.

    Args:
        inputs: ``advantages`` is above 0 at tokens of the preferred answer, below 0
            at those of the other.
        config: ``trainer.algorithm.dpo``.

    Returns:
        Term ``policy``; metrics, each a mean over pairs: ``accuracy``,
        ``reward_margin``, ``chosen_reward``, ``rejected_reward`` (nats times β),
        ``chosen_logprob``, ``rejected_logprob`` (nats, sums over tokens).

    Example: β = 0.1; the preferred answer became 2 nats likelier than under the
    reference and the other 1 nat less likely: the margin is 0.3, the loss
    −ln σ(0.3) = 0.554.
    """
    import torch

    from skyrl_kernel.torch import LossTerms, TokenMetric

    assert inputs.ref_logprobs is not None
    groups, pair = torch.unique(inputs.group, return_inverse=True)
    is_chosen, is_rejected = inputs.advantages > 0, inputs.advantages < 0

    def over_pairs(values: "Tensor", side: "Tensor") -> "Tensor":
        return values.new_zeros(len(groups)).index_add(0, pair, values * side)

    log_ratio = inputs.logprobs - inputs.ref_logprobs
    chosen, rejected = over_pairs(log_ratio, is_chosen), over_pairs(log_ratio, is_rejected)
    ones = torch.ones_like(log_ratio)
    lengths = over_pairs(ones, is_chosen), over_pairs(ones, is_rejected)
    is_whole = (lengths[0] > 0) & (lengths[1] > 0)
    if config.loss_type == "ipo_mean":
        margin = chosen / lengths[0].clamp(min=1) - rejected / lengths[1].clamp(min=1)
    else:
        margin = chosen - rejected
    loss = pair_loss(margin, config) * is_whole
    logprobs = inputs.logprobs.detach()
    measured = {
        "accuracy": (chosen > rejected).to(chosen.dtype),
        "reward_margin": config.beta * (chosen - rejected),
        "chosen_reward": config.beta * chosen,
        "rejected_reward": config.beta * rejected,
        "chosen_logprob": over_pairs(logprobs, is_chosen),
        "rejected_logprob": over_pairs(logprobs, is_rejected),
    }
    return LossTerms(
        terms={"policy": loss[pair]},
        metrics={
            f"loss_metrics/{name}": TokenMetric(values=values.detach()[is_whole])
            for name, values in measured.items()
        },
    )


def pair_loss(margin: "Tensor", config: DpoConfig) -> "Tensor":
    """The loss of each pair.

    Args:
        margin: [P] log-ratio of the preferred answer minus that of the other, nats;
            for ``ipo_mean`` nats per token.
        config: ``trainer.algorithm.dpo``.
    """
    from torch.nn.functional import logsigmoid, relu

    if config.loss_type in ("ipo", "ipo_mean"):
        return (margin - 1 / (2 * config.beta)) ** 2
    scaled = config.beta * margin
    if config.loss_type == "hinge":
        return relu(1 - scaled)
    smoothing = config.label_smoothing
    return -(1 - smoothing) * logsigmoid(scaled) - smoothing * logsigmoid(-scaled)
