"""Tokens per second of our path to vLLM, beside vLLM's own benchmark on the same server.

Both send the same prompts of token ids, the same number at a time, and have the same number of
tokens sampled from them, each request with its seed and with the log-probs of what was sampled.
They take turns, in one process, so that whatever else the machine does disturbs both.

vLLM's client (`vllm.benchmarks.serve`, what `vllm bench serve` runs) reads a stream; ours takes
each completion whole. So it is measured twice: as it is, a message per token, and with the whole
completion in one message, which leaves it least to do.
"""

import asyncio
import contextlib
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import servers

from skyrl_kernel.records import GenerateRequest, IntArray, Sampling

AT_A_TIME = 128
REQUESTS, PROMPT_TOKENS, OUTPUT_TOKENS = 256, 64, 64
ROUNDS = 9
MODEL: dict[str, Any] = {
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 640,
    "max_position_embeddings": 512,
}
SAMPLED = {"temperature": 1.0, "top_p": 1.0, "seed": 1}
"""What vLLM's client is told to ask for, beside log-probs: what ours asks for."""
TIMED: dict[str, dict[str, Any]] = {
    "streamed": SAMPLED,
    "whole": {**SAMPLED, "stream_interval": OUTPUT_TOKENS},
}
"""Body of vLLM's requests by the name of the measurement."""

Prompts = Sequence[IntArray]


def measure(scratch: Path) -> dict[str, Any]:
    """Tokens per second of each round, by who asked."""
    model = scratch / "model"
    servers.write_endless_model(model, **MODEL)
    rng = np.random.default_rng(0)
    speeds: dict[str, list[float]] = {"ours": [], **{name: [] for name in TIMED}}

    def prompts() -> Prompts:  # new ones, of which no prefix is cached
        rows = rng.integers(0, 256, (REQUESTS, PROMPT_TOKENS))
        return list(rows.astype(np.int32))

    with served(model, scratch) as url:
        theirs = {
            name: lambda asked, body=body: vllms(url, model, asked, body)
            for name, body in TIMED.items()
        }
        clients: dict[str, Callable[[Prompts], float]] = {
            "ours": lambda asked: ours(url, model, asked),
            **theirs,
        }
        names = [*clients]
        for number in range(ROUNDS + 1):
            for name in names:
                speed = clients[name](prompts())
                if number:  # the first is to warm up
                    speeds[name].append(speed)
            names.append(names.pop(0))  # nobody is always the first, or always after another
            if number:
                click.echo(f"serving, round {number} of {ROUNDS}: {_line(speeds)} tokens/s")
    ratios = {
        name: [mine / its for mine, its in zip(speeds["ours"], speeds[name], strict=True)]
        for name in TIMED
    }
    return {
        "requests": REQUESTS,
        "at_a_time": AT_A_TIME,
        "prompt_tokens": PROMPT_TOKENS,
        "output_tokens": OUTPUT_TOKENS,
        "tokens_per_s": speeds,
        "ratios": ratios,
        "ratio": {name: statistics.median(values) for name, values in ratios.items()},
    }


def served(model: Path, scratch: Path) -> contextlib.AbstractContextManager[str]:
    return servers.served(model, scratch, rows=AT_A_TIME)


def ours(url: str, model: Path, prompts: Prompts) -> float:
    """As the kernel calls the engine: every trajectory by itself, as many as there are at once."""

    async def run() -> float:
        engine = servers.attach(url, model, rows=AT_A_TIME)
        sampling = Sampling(max_tokens=OUTPUT_TOKENS)
        try:
            requests = [
                GenerateRequest(tokens=prompt, sampling=sampling, seed=number)
                for number, prompt in enumerate(prompts)
            ]
            began = time.perf_counter()
            answers = await asyncio.gather(*(engine.generate([one]) for one in requests))
            seconds = time.perf_counter() - began
        finally:
            await engine.close()
        tokens = sum(len(one.tokens) for answer in answers for one in answer)
        return _speed(tokens, seconds)

    return asyncio.run(run())


def vllms(url: str, model: Path, prompts: Prompts, body: dict[str, Any]) -> float:
    """`benchmark` of vLLM, which its command calls as well; it counts and times by itself."""
    from vllm.benchmarks.datasets import SampleRequest
    from vllm.benchmarks.serve import TaskType, benchmark

    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        result = asyncio.run(
            benchmark(
                task_type=TaskType.GENERATION,
                endpoint_type="vllm",
                api_url=f"{url}/v1/completions",
                base_url=url,
                model_id=str(model),
                model_name=str(model),
                tokenizer=None,
                input_requests=[
                    SampleRequest(
                        prompt=prompt.tolist(),
                        prompt_len=PROMPT_TOKENS,
                        expected_output_len=OUTPUT_TOKENS,
                    )
                    for prompt in prompts
                ],
                logprobs=0,
                request_rate=float("inf"),
                burstiness=1.0,
                disable_tqdm=True,
                num_warmups=0,
                profile=False,
                selected_percentile_metrics=[],
                selected_percentiles=[],
                ignore_eos=False,
                goodput_config_dict={},
                max_concurrency=AT_A_TIME,
                lora_modules=None,
                extra_headers=None,
                extra_body=body,
                ready_check_timeout_sec=0,
            )
        )
    assert not result["failed"], result["errors"]
    return _speed(result["total_output_tokens"], result["duration"])


def _speed(tokens: int, seconds: float) -> float:
    assert tokens == REQUESTS * OUTPUT_TOKENS, f"{tokens} tokens are not as many as were asked for"
    return tokens / seconds


def _line(speeds: dict[str, list[float]]) -> str:
    return ", ".join(f"{name} {values[-1]:.0f}" for name, values in speeds.items() if values)
