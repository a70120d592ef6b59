"""Engine and trainer must agree on the same tokens: the probe, and what every step measures."""

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from running import Lab, probe_installed
from sabotage import install_stale

from skyrl_fsdp.trainer import FsdpTrainer
from skyrl_kernel.assemble import _probe_rows
from skyrl_kernel.config import TrainerConfig
from skyrl_kernel.errors import WeightSyncError
from skyrl_kernel.plan import make_plan
from skyrl_kernel.plugins import discover
from skyrl_kernel.prepared import prepare
from skyrl_kernel.probe import MAX_TOKENS, probe
from skyrl_kernel.protocols import Engine
from skyrl_kernel.records import FloatArray
from skyrl_transformers.engine import TransformersEngine
from skyrl_transformers.testing import write_random_model

ROWS = [np.array([5, 6, 7, 8], dtype=np.int32), np.array([9, 8], dtype=np.int32)]


def models(tmp_path: Path, *, same: bool) -> tuple[FsdpTrainer, TransformersEngine]:
    paths = [tmp_path / "a", tmp_path / "b"]
    for seed, path in enumerate(paths):
        write_random_model(path, seed=seed)
    trainer = FsdpTrainer({"policy": paths[0]}, TrainerConfig(bf16=False), device="cpu")
    return trainer, TransformersEngine(paths[0 if same else 1])


def scores(trainer: FsdpTrainer) -> list[FloatArray]:
    return trainer.score("policy", ROWS, temperature=1.0)


def test_equal_weights_agree(tmp_path: Path) -> None:
    trainer, engine = models(tmp_path, same=True)
    asyncio.run(probe(engine, ROWS, scores(trainer), 3, "float32"))


def test_other_weights_are_an_error_that_names_the_version(tmp_path: Path) -> None:
    trainer, engine = models(tmp_path, same=False)
    with pytest.raises(WeightSyncError, match=r"policy version 3, engine and trainer differ by"):
        asyncio.run(probe(engine, ROWS, scores(trainer), 3, "float32"))


def test_a_row_of_nan_is_found_wherever_it_stands(tmp_path: Path) -> None:
    trainer, engine = models(tmp_path, same=True)
    expected = scores(trainer)
    expected[1] = np.full_like(expected[1], np.nan)
    with pytest.raises(WeightSyncError, match="differ by nan nats"):
        asyncio.run(probe(engine, ROWS, expected, 3, "bfloat16"))


def test_a_long_first_prompt_is_compared_by_its_beginning(tmp_path: Path) -> None:
    """The engine may have fewer positions than it; that costs its trajectory, not the run."""
    rows = tmp_path / "rows.jsonl"
    texts = ["7" * 500, *["7"] * 31]
    rows.write_text(
        "\n".join(
            json.dumps({"prompt": [{"role": "user", "content": text}], "env_class": "multiply"})
            for text in texts
        )
    )
    data = [f"data.train_data=['{rows}']", "data.val_data=[]"]
    plan = make_plan(["demo"], overrides=[*data, "trainer.max_prompt_length=1000"])
    long, short = _probe_rows(prepare(plan))
    assert len(long) == MAX_TOKENS > len(short)


MISMATCH = "policy/rollout_train_logprobs_abs_diff"
ALGORITHM = "trainer__algorithm__"


@pytest.mark.parametrize(
    "changes",
    [
        {},  # old log-probs are the sampler's, which shares the trainer's weights
        {f"{ALGORITHM}recompute_old_logprobs": True},
        {"generator__sampling_params__temperature": 0.7},
        # a loss that asks for no old log-probs
        {f"{ALGORITHM}policy_loss_type": "cispo", f"{ALGORITHM}cispo__cispo_anchor": "rollout"},
        {f"{ALGORITHM}policy_loss_type": "rollout_is"},
    ],
    ids=str,
)
def test_every_step_tells_how_far_engine_and_trainer_differ(
    changes: dict[str, Any], random_model: Path, tmp_path: Path
) -> None:
    with probe_installed(tmp_path / "site"):
        lab = Lab(random_model, tmp_path)
        outcome = lab.run(**changes)
    assert outcome.code == 0, outcome.err
    steps = [line for line in lab.at().read_metrics() if line["step"] > 0]
    assert len(steps) == 4
    for line in steps:
        assert line[f"{MISMATCH}_mean"] <= line[f"{MISMATCH}_max"] <= 1e-4  # float32, equal weights
        assert line[f"{MISMATCH}_min"] >= 0
        assert line[f"{MISMATCH}_std"] >= 0


def test_weights_are_compared_after_the_first_two_syncs_and_every_tenth(
    random_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[int] = []

    async def noted(engine: Engine, rows: Any, expected: Any, version: int, precision: Any) -> None:
        compared.append(version)
        await probe(engine, rows, expected, version, precision)

    monkeypatch.setattr("skyrl_kernel.session.probe", noted)
    with probe_installed(tmp_path / "site"):
        outcome = Lab(random_model, tmp_path).run(
            trainer__max_training_steps=21, trainer__epochs=30, trainer__eval_interval=-1
        )
    assert outcome.code == 0, outcome.err
    assert compared == [0, 1, 10, 20]


@pytest.mark.parametrize("recompute", [None, True])
def test_an_engine_that_keeps_old_weights_is_told_and_stops_the_run(
    recompute: bool | None, random_model: Path, tmp_path: Path
) -> None:
    changes = {
        f"{ALGORITHM}recompute_old_logprobs": recompute,
        "trainer__ckpt_interval": 1,
        "trainer__logprobs_diff__warn_above": 0.001,
    }
    with probe_installed(tmp_path / "site") as site:
        install_stale(site, last=1)
        discover(refresh=True)
        lab = Lab(random_model, tmp_path)
        assert "engine and trainer differ" not in lab.run("fresh", **changes).out
        told = lab.run("told", "--plugin", "stale", **changes)
        assert told.code == 0, told.err
        assert "step 3: engine and trainer differ by 0." in told.out
        stopped = lab.run(
            "stopped", "--plugin", "stale", trainer__logprobs_diff__stop_above=0.001, **changes
        )
    assert stopped.code == 1
    assert stopped.err.startswith("skyrl: step 3: engine and trainer differ by 0.")
    assert len(stopped.err.splitlines()) == 1
    assert [path.name for path in lab.at("stopped").checkpoints.iterdir()] == [
        "global_step_1",
        "global_step_2",
    ]
    assert [line["step"] for line in lab.at("stopped").read_metrics()] == [0, 1, 2, 3]


def test_weights_that_never_arrive_end_the_run_at_the_first_sync_that_brings_others(
    random_model: Path, tmp_path: Path
) -> None:
    with probe_installed(tmp_path / "site") as site:
        install_stale(site, last=0)
        discover(refresh=True)
        lab = Lab(random_model, tmp_path)
        done = lab.run("never", "--plugin", "stale")
    assert done.code == 1
    assert done.err.startswith(
        "skyrl: after the sync of policy version 1, engine and trainer differ by 0."
    )
