"""DAPO: group-relative policy optimisation at scale, made to keep learning.

Yu et al. 2025, "DAPO: An Open-Source LLM Reinforcement Learning System at Scale",
arXiv:2503.14476. Its parts, each of which can be used without the others:

| paper | here |
|---|---|
| §3.1 clip-higher | ``eps_clip_low``, ``eps_clip_high`` of `skyrl_grpo.clip` |
| §3.2 dynamic sampling | `skyrl_dapo.filter`; SkyRL's other form is `skyrl_dapo.replace` |
| §3.3 token-level loss | ``token_mean``, the kernel's default |
| §3.4 overlong filtering | ``generator.apply_overlong_filtering``, the kernel's |
| §3.4 soft overlong punishment | `skyrl_dapo.overlong` |

Differences from the paper:

1. It compares overlong filtering and soft punishment, and trains with the latter.
   `--plugin dapo` has both: what was cut off is not trained on, but counts in its
   group's mean with its punishment; what came near the limit is punished.
2. The punishment begins a fifth below the limit unless
   ``trainer.algorithm.overlong_buffer_len`` says otherwise: 4096 of the paper's
   20480 tokens.
3. A reward need not be right or wrong: groups are left out whose rewards differ by
   at most ``zero_variance_filter_tol``. The punishment does not count as a
   difference, as in the paper, where only correctness does.
"""

from skyrl_dapo.overlong import penalty, with_penalty
from skyrl_dapo.signal import flaw

__all__ = ["flaw", "penalty", "with_penalty"]
