"""Runs on Ray whose ranks bring weights to vLLM's servers themselves. Each starts its own server."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from skyrl_vllm.testing import demo, run

pytest.importorskip("ray")

ENGINE = "generator.inference_engine"
TOLERANCE = 1e-4
"""Most nats between a sampled log-prob and the trainer's, with the same weights."""
AHEAD = (
    "trainer.fully_async.enabled=true",
    "trainer.fully_async.max_staleness_steps=1",
    "trainer.fully_async.clear_kv_cache_on_weight_sync=true",
)


def trained(
    servers: Any, folder: Path, sync: str, *words: str, steps: int
) -> list[Mapping[str, float]]:
    """Metrics of a run with processes of their own for each rank and for the engine."""
    servers.stop()  # the run's takes its memory
    layout = ("trainer.runtime=ray", "trainer.placement.colocate_all=false")
    words = (
        *layout,
        f"{ENGINE}.weight_sync_backend={sync}",
        f"{ENGINE}.enforce_eager=true",
        *words,
    )
    return run(
        demo(folder, *words, "trainer.eval_interval=-1", steps=steps),
        folder,
        {"SKYRL_RAY_PG_TIMEOUT_IN_S": "120"},
    )


def attached(folder: Path) -> int:
    """How many ranks reached a server."""
    lines = (folder / "demo" / "log.jsonl").read_text().splitlines()
    events = map(json.loads, lines)
    return sum(one["ranks"] for one in events if one["event"] == "ranks attached to engines")


@pytest.mark.timeout(600)
def test_the_rank_broadcasts_its_weights_to_the_engines_server(
    servers: Any, tmp_path: Path
) -> None:
    steps = trained(servers, tmp_path, "gloo", steps=2)
    assert attached(tmp_path) == 1
    assert [step["step"] for step in steps] == [1, 2]
    for step in steps:
        assert step["async/staleness_max"] == 0
        assert 0 < step["policy/rollout_train_logprobs_abs_diff_max"] <= TOLERANCE
        assert 0 < step["timing/sync_weights"] < 30
    assert steps[0]["policy/policy_loss"] != steps[1]["policy/policy_loss"]  # it trains


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_one_of_two_ranks_passes_on_files_while_generation_runs_ahead(
    servers: Any, tmp_path: Path
) -> None:
    """The engine is paused around each sync: the rank leaves it so, and forgets the cache no earlier."""
    ranks = "trainer.placement.policy_num_gpus_per_node=2"
    steps = trained(servers, tmp_path, "safetensors", ranks, *AHEAD, steps=4)
    assert attached(tmp_path) == 1
    assert [step["step"] for step in steps] == [1, 2, 3, 4]
    assert max(step["async/staleness_max"] for step in steps) <= 1
    assert all(step["failures/trajectories"] == 0 for step in steps)
    # What was begun with older weights differs by an update, not by what a wrong one would do.
    assert all(step["policy/rollout_train_logprobs_abs_diff_mean"] < 0.05 for step in steps)
