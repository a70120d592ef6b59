"""Tensor mathematics that plugins share: pure functions, no config, no process groups.

Needs the extra ``skyrl-kernel[torch]``. Only plugins import this package; the
kernel never does. All log-probs are natural logarithms (nats). N is the number
of trained tokens of a micro-batch, packed end to end.
"""

from skyrl_kernel.torch.kl import KL_ESTIMATORS, kl_estimate
from skyrl_kernel.torch.logprobs import entropy, selected_logprobs
from skyrl_kernel.torch.masked import masked_mean, masked_var, masked_whiten
from skyrl_kernel.torch.objective import MetricSums, objective, pack, pack_values, value_objective
from skyrl_kernel.torch.ratios import MAX_LOG_RATIO, ratio
from skyrl_kernel.torch.records import LossInputs, LossTerms, TokenMetric, ValueInputs
from skyrl_kernel.torch.rows import (
    count_passes,
    right_pad,
    row_logprobs,
    row_numbers,
    row_values,
)

__all__ = [
    "KL_ESTIMATORS",
    "MAX_LOG_RATIO",
    "LossInputs",
    "LossTerms",
    "MetricSums",
    "TokenMetric",
    "ValueInputs",
    "count_passes",
    "entropy",
    "kl_estimate",
    "masked_mean",
    "masked_var",
    "masked_whiten",
    "objective",
    "pack",
    "pack_values",
    "ratio",
    "right_pad",
    "row_logprobs",
    "row_numbers",
    "row_values",
    "selected_logprobs",
    "value_objective",
]
