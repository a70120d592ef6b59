"""What vLLM servers count of their own work: SkyRL's ``vllm/…`` metrics, from their ``/metrics``."""

import asyncio
import re
from collections.abc import Mapping, Sequence

from skyrl_kernel.counts import Count, joined
from skyrl_kernel.progress import say
from skyrl_vllm.client import Client, Refused, ServerError

_DEADLINE_S = 5.0
"""Of one server, at the end of a step: the run goes on without its numbers."""
_POSITION = re.compile(r'position="(\d+)"')

_NOW = {
    "num_requests_running": "vllm:num_requests_running",
    "num_requests_waiting": "vllm:num_requests_waiting",
}
_FULL = {"kv_cache_usage_perc": "vllm:kv_cache_usage_perc"}
_PER_SECOND = {
    "generation_throughput_tok_s": "vllm:generation_tokens_total",
    "prompt_throughput_tok_s": "vllm:prompt_tokens_total",
}
_DRAFTS = "vllm:spec_decode_num_drafts_total"
_DRAFTED = "vllm:spec_decode_num_draft_tokens_total"
_ACCEPTED = "vllm:spec_decode_num_accepted_tokens_total"
_ACCEPTED_AT = "vllm:spec_decode_num_accepted_tokens_per_pos_total"
_ADDED = {"draft_num_draft_tokens": _DRAFTED, "draft_num_accepted_tokens": _ACCEPTED}
_RATIOS = {
    "prefix_cache_hit_rate": ("vllm:prefix_cache_hits_total", "vllm:prefix_cache_queries_total"),
    "ttft_seconds_avg": (
        "vllm:time_to_first_token_seconds_sum",
        "vllm:time_to_first_token_seconds_count",
    ),
    "tpot_seconds_avg": (
        "vllm:inter_token_latency_seconds_sum",
        "vllm:inter_token_latency_seconds_count",
    ),
    "draft_acceptance_rate": (_ACCEPTED, _DRAFTED),
}
"""Metric → what it divides by what, both since the call before."""

Readings = Mapping[str, Sequence[float]]
"""vLLM's name → its value in each of a server's engines. Of what is counted by position in a draft
the name is ``NAME:POSITION``."""


def parse(text: str) -> dict[str, list[float]]:
    r"""The numbers of one ``/metrics``.

    Example:
        >>> lines = '# HELP x\nx{engine="0"} 1.0\nx{engine="1"} 2.5\ny{position="0"} 7.0\n'
        >>> parse(lines)
        {'x': [1.0, 2.5], 'y:0': [7.0]}
    """
    found: dict[str, list[float]] = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            labelled, _, value = line.rpartition(" ")
            name, _, labels = labelled.partition("{")
            position = _POSITION.search(labels)
            found.setdefault(f"{name}:{position[1]}" if position else name, []).append(float(value))
    return found


def counts(before: Readings, now: Readings, seconds: float) -> dict[str, Count]:
    """SkyRL's metrics of one server; one whose parts vLLM does not tell, or that would divide by 0, is absent.

    Args:
        before: Its readings at the beginning; empty if there are none.
        now: Its readings.
        seconds: For which it was asked to generate.
    """
    moved = {
        name: sum(values) - sum(before[name])
        for name, values in now.items()
        if name in before and sum(values) >= sum(before[name])  # less: it was started anew
    }
    found = {name: Count(value=sum(now[of])) for name, of in _NOW.items() if of in now}
    for name, of in _FULL.items():
        if values := now.get(of):
            found[name] = Count(value=sum(values) / len(values), weight=len(values))
    if seconds > 0:
        for name, of in _PER_SECOND.items():
            if of in moved:
                found[name] = Count(value=moved[of] / seconds)
    found |= {name: Count(value=moved[of]) for name, of in _ADDED.items() if of in moved}
    for name, (above, below) in _RATIOS.items():
        if moved.get(below) and above in moved:
            found[name] = Count(value=moved[above] / moved[below], weight=moved[below])
    if drafts := moved.get(_DRAFTS):
        if _ACCEPTED in moved:
            length = 1 + moved[_ACCEPTED] / drafts
            found["draft_mean_acceptance_length"] = Count(value=length, weight=drafts)
        for of, accepted in moved.items():
            name, _, position = of.rpartition(":")
            if name == _ACCEPTED_AT:
                rate = Count(value=accepted / drafts, weight=drafts)
                found[f"draft_acceptance_rate_pos_{int(position) + 1}"] = rate
    return found


class Counters:
    """The counters of all servers of an engine.

    Args:
        clients: One for each.
    """

    def __init__(self, clients: Sequence[Client]) -> None:
        self._clients = clients
        self._before: dict[str, Readings] = {}
        self._is_said = False

    async def since(self, seconds: float) -> dict[str, Count]:
        """Of all servers that answer, since the call before."""
        return joined(await asyncio.gather(*(self._of(one, seconds) for one in self._clients)))

    async def _of(self, client: Client, seconds: float) -> dict[str, Count]:
        try:
            now = parse(await client.read("/metrics", timeout_s=_DEADLINE_S))
        except (Refused, ServerError, TimeoutError, ValueError) as error:
            if not self._is_said:
                self._is_said = True
                say(f"warning: no vllm/ metrics of {client.url}: {error}", style="yellow")
            return {}
        before, self._before[client.url] = self._before.get(client.url, {}), now
        return counts(before, now, seconds)
