"""What servers count, as metrics: worked numbers, and servers that say nothing of use."""

import asyncio

import pytest
from aiohttp import web

from skyrl_kernel.counts import Count
from skyrl_vllm.client import Client
from skyrl_vllm.counters import Counters, counts, parse
from skyrl_vllm.testing import listening

BEFORE = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="a b"} 4.0
vllm:num_requests_waiting{engine="0",model_name="a b"} 1.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="a b",reason="capacity"} 1.0
vllm:kv_cache_usage_perc{engine="0",model_name="a b"} 0.5
vllm:generation_tokens_total{engine="0",model_name="a b"} 1000.0
vllm:generation_tokens_created{engine="0",model_name="a b"} 1.7957397932130392e+09
vllm:prompt_tokens_total{engine="0",model_name="a b"} 400.0
vllm:prefix_cache_queries_total{engine="0",model_name="a b"} 400.0
vllm:prefix_cache_hits_total{engine="0",model_name="a b"} 100.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="+Inf",model_name="a b"} 10.0
vllm:time_to_first_token_seconds_sum{engine="0",model_name="a b"} 5.0
vllm:time_to_first_token_seconds_count{engine="0",model_name="a b"} 10.0
vllm:inter_token_latency_seconds_sum{engine="0",model_name="a b"} 20.0
vllm:inter_token_latency_seconds_count{engine="0",model_name="a b"} 990.0
"""
NOW = """\
vllm:num_requests_running{engine="0",model_name="a b"} 0.0
vllm:num_requests_waiting{engine="0",model_name="a b"} 0.0
vllm:kv_cache_usage_perc{engine="0",model_name="a b"} 0.25
vllm:generation_tokens_total{engine="0",model_name="a b"} 3000.0
vllm:prompt_tokens_total{engine="0",model_name="a b"} 1000.0
vllm:prefix_cache_queries_total{engine="0",model_name="a b"} 1000.0
vllm:prefix_cache_hits_total{engine="0",model_name="a b"} 550.0
vllm:time_to_first_token_seconds_sum{engine="0",model_name="a b"} 8.0
vllm:time_to_first_token_seconds_count{engine="0",model_name="a b"} 30.0
vllm:inter_token_latency_seconds_sum{engine="0",model_name="a b"} 39.8
vllm:inter_token_latency_seconds_count{engine="0",model_name="a b"} 2970.0
"""


def test_counters_become_what_was_done_since_the_call_before() -> None:
    found = counts(parse(BEFORE), parse(NOW), seconds=4.0)
    assert found == {
        "num_requests_running": Count(value=0.0),
        "num_requests_waiting": Count(value=0.0),
        "kv_cache_usage_perc": Count(value=0.25, weight=1),
        "generation_throughput_tok_s": Count(value=500.0),  # (3000 - 1000) / 4 s
        "prompt_throughput_tok_s": Count(value=150.0),  # (1000 - 400) / 4 s
        "prefix_cache_hit_rate": Count(value=0.75, weight=600.0),  # (550 - 100) / (1000 - 400)
        "ttft_seconds_avg": Count(value=0.15, weight=20.0),  # (8 - 5) / (30 - 10)
        "tpot_seconds_avg": Count(value=pytest.approx(0.01), weight=1980.0),  # 19.8 / 1980
    }


def test_without_a_call_before_there_is_only_what_is_so_now() -> None:
    found = counts({}, parse(BEFORE), seconds=4.0)
    now = {"num_requests_running": 4.0, "num_requests_waiting": 1.0, "kv_cache_usage_perc": 0.5}
    assert {name: count.value for name, count in found.items()} == now


def test_a_server_that_did_nothing_has_no_rates_and_one_that_was_started_anew_no_differences() -> (
    None
):
    idle = counts(parse(BEFORE), parse(BEFORE), seconds=4.0)
    assert idle["generation_throughput_tok_s"] == Count(value=0.0)
    assert "prefix_cache_hit_rate" not in idle
    assert "ttft_seconds_avg" not in idle
    anew = counts(parse(NOW), parse(BEFORE), seconds=4.0)
    assert set(anew) == set(counts({}, parse(BEFORE), seconds=4.0))


def test_engines_of_one_server_are_added_up_and_their_caches_averaged() -> None:
    other = BEFORE.replace('engine="0"', 'engine="1"')
    found = counts({}, parse(BEFORE + other.replace("} 0.5", "} 0.1")), seconds=0.0)
    assert found["num_requests_running"] == Count(value=8.0)
    assert found["kv_cache_usage_perc"] == Count(value=pytest.approx(0.3), weight=2)


DRAFTS = """\
vllm:spec_decode_num_drafts_total{{engine="0"}} {0}
vllm:spec_decode_num_draft_tokens_total{{engine="0"}} {1}
vllm:spec_decode_num_accepted_tokens_total{{engine="0"}} {2}
vllm:spec_decode_num_accepted_tokens_per_pos_total{{engine="0",position="0"}} {3}
vllm:spec_decode_num_accepted_tokens_per_pos_total{{engine="0",position="1"}} {4}
"""


def test_drafts_are_told_of_servers_that_make_them() -> None:
    before, now = DRAFTS.format(10, 20, 5, 4, 1), DRAFTS.format(110, 220, 155, 94, 61)
    assert counts(parse(before), parse(now), seconds=4.0) == {
        "draft_num_draft_tokens": Count(value=200.0),
        "draft_num_accepted_tokens": Count(value=150.0),
        "draft_acceptance_rate": Count(value=0.75, weight=200.0),  # 150 / 200
        "draft_mean_acceptance_length": Count(value=2.5, weight=100.0),  # 1 + 150 / 100
        "draft_acceptance_rate_pos_1": Count(value=0.9, weight=100.0),  # (94 - 4) / 100
        "draft_acceptance_rate_pos_2": Count(value=0.6, weight=100.0),  # (61 - 1) / 100
    }


def test_a_server_without_counters_is_said_once_and_the_others_count(
    capsys: pytest.CaptureFixture[str],
) -> None:
    texts = [BEFORE, NOW]

    async def counting(request: web.Request) -> web.Response:
        assert request.path == "/metrics"
        return web.Response(text=texts.pop(0))

    async def refusing(_: web.Request) -> web.Response:
        return web.Response(status=404, text="no such page")

    async def ask() -> list[dict[str, Count]]:
        async with listening(counting) as one, listening(refusing) as two:
            clients = [Client(one), Client(two)]
            counters = Counters(clients)
            found = [await counters.since(4.0), await counters.since(4.0)]
            for client in clients:
                await client.close()
            return found

    _, second = asyncio.run(ask())
    assert second["generation_throughput_tok_s"] == Count(value=500.0)
    printed = capsys.readouterr()  # a test before this one may have moved the console
    said = " ".join((printed.out + printed.err).split())
    assert said.count("no vllm/ metrics of http://127.0.0.1:") == 1
    assert "status 404: no such page" in said
