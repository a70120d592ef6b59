"""Whole runs of `skyrl` with vLLM: one server, that each run attaches to by its address."""

import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from skyrl_kernel.probe import MAX_ROWS
from skyrl_kernel.testing.killing import check_each_prompt_once, killed_at_random
from skyrl_tiny.plugin import tiny
from skyrl_vllm.testing import PROMPTS, attached, demo, metrics, run

TOLERANCE = 1e-4
"""Most nats between a sampled log-prob and the trainer's, with the same weights."""
SAMPLES = 4
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
AHEAD = ("trainer.fully_async.enabled=true", "trainer.fully_async.max_staleness_steps=2")


@pytest.fixture
def url(servers: Any) -> str:
    """Of a server that has the built-in model."""
    return str(servers.start(tiny(0)).url)


def command(url: str, folder: Path, *words: str, steps: int = 3) -> list[str]:
    """Of the demo's model and task, attached to a server."""
    return demo(
        folder,
        *attached(url),
        f"generator.n_samples_per_prompt={SAMPLES}",
        "trainer.eval_interval=-1",
        *words,
        steps=steps,
    )


@pytest.mark.smoke
def test_the_server_has_the_trainers_weights_at_every_step(url: str, tmp_path: Path) -> None:
    steps = run(command(url, tmp_path), tmp_path)
    assert [step["step"] for step in steps] == [1, 2, 3]
    for step in steps:
        assert step["failures/trajectories"] == 0
        assert step["async/staleness_max"] == 0
        assert 0 < step["policy/rollout_train_logprobs_abs_diff_max"] <= TOLERANCE
        tokens = step["vllm/train/generation_throughput_tok_s"] * step["timing/generate"]
        # After the first changed weights came, the check sampled a token for each of its rows.
        compared = MAX_ROWS if step["step"] == 1 else 0
        sampled = step["generate/avg_assistant_tokens"] * PROMPTS * SAMPLES
        assert tokens == pytest.approx(sampled + compared)
        assert step["vllm/train/prefix_cache_hit_rate"] == 0  # prompts are shorter than a block
        assert 0 < step["vllm/train/ttft_seconds_avg"] < step["timing/generate"]
        assert step["vllm/train/num_requests_running"] == 0
    assert len({step["policy/policy_loss"] for step in steps}) == 3  # it trains


@pytest.mark.smoke
def test_generation_runs_ahead_of_training_and_never_further_than_the_bound(
    url: str, tmp_path: Path
) -> None:
    steps = run(command(url, tmp_path, *AHEAD, steps=6), tmp_path)
    assert [step["step"] for step in steps] == [1, 2, 3, 4, 5, 6]
    assert 0 < max(step["async/staleness_max"] for step in steps) <= 2
    assert all(step["async/staleness_violation_count"] == 0 for step in steps)
    assert all(step["failures/trajectories"] == 0 for step in steps)


def test_killed_at_random_moments_a_run_trains_on_each_prompt_once_per_epoch(
    url: str, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    problems = [(100 + 7 * number, number % 8 + 2) for number in range(2 * PROMPTS)]
    rows.write_text(
        "\n".join(
            json.dumps(
                {
                    "prompt": [{"role": "user", "content": f"{left} * {right}"}],
                    "env_class": "multiply",
                    "reward_spec": {"method": "rule", "ground_truth": str(left * right)},
                }
            )
            for left, right in problems
        )
    )
    words = (*AHEAD, f"data.train_data=['{rows}']", "data.val_data=[]", "trainer.epochs=4")
    seed = time.time_ns() % 1_000_000
    print(f"seed {seed}")
    codes = killed_at_random(
        command(url, tmp_path, *words, "trainer.ckpt_interval=1", steps=8),
        tmp_path / "demo",
        kills=3,
        rng=random.Random(seed),
        env=ENVIRONMENT,
    )
    assert codes, "it was never killed"
    assert set(codes) == {-signal.SIGKILL}
    assert [step["step"] for step in metrics(tmp_path)] == [1, 2, 3, 4, 5, 6, 7, 8]
    check_each_prompt_once(tmp_path / "demo", prompts=2 * PROMPTS)
