"""Several ranks compute what one process computes: gradients, norms, losses, weights, scores."""

import copy
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed.distributed_c10d import Backend, BackendConfig

from skyrl_fsdp.ranks import backend
from skyrl_fsdp.testing import first_gradients
from skyrl_fsdp.trainer import FsdpTrainer
from skyrl_kernel.config.trainer import TrainerConfig
from skyrl_kernel.protocols import Loss
from skyrl_kernel.records import Scores, TrainingSample
from skyrl_kernel.testing.ranks import on_ranks
from skyrl_kernel.torch import LossInputs, LossTerms, TokenMetric, ValueInputs

MAX_NORM = 0.5
CONFIG: dict[str, Any] = {
    "bf16": False,
    "gradient_checkpointing": False,
    "micro_train_batch_size_per_gpu": 2,
    "micro_forward_batch_size_per_gpu": 2,
    "policy": {"optimizer_config": {"lr": 1e-3, "max_grad_norm": MAX_NORM}},
}
TEMPERATURE = 0.7


def on_devices(gpus: int) -> pytest.MarkDecorator:
    """On processors, and on so many GPUs where there are so many."""
    gpu = pytest.param(
        "cuda",
        marks=(
            pytest.mark.gpu,
            pytest.mark.skipif(
                torch.cuda.device_count() < gpus,
                reason=f"ranks on {gpus} GPU(s), over NCCL, were not compared with one process",
            ),
        ),
    )
    return pytest.mark.parametrize("device", ["cpu", gpu])


def sample(number: int, length: int) -> TrainingSample:
    rng = np.random.default_rng([number, length])
    mask = rng.random(length) < 0.7
    mask[0], mask[-1] = False, True
    return TrainingSample(
        trajectory_id=f"prompt/{number}",
        group=number // 2,
        trajectory=number,
        tokens=rng.integers(0, 256, length).astype(np.int32),
        loss_mask=mask,
        advantages=rng.normal(size=length).astype(np.float32),
        returns=rng.normal(size=length).astype(np.float32),
        sampler_logprobs=rng.normal(size=length).astype(np.float32) - 5,
        scores=Scores(values=rng.normal(size=length).astype(np.float32)),
        loss_weights={
            name: rng.random(length).astype(np.float32) for name in ("policy", "entropy", "value")
        },
    )


BATCH = [sample(number, length) for number, length in enumerate((3, 9, 5, 12, 4, 7, 6))]


def largest_of_all(inputs: LossInputs) -> dict[str, torch.Tensor]:
    return {"logprobs": inputs.logprobs}


def terms(inputs: LossInputs) -> LossTerms:
    """Each token's term depends on all tokens of the mini-batch."""
    joined = inputs.minibatch["logprobs"]
    return LossTerms(
        terms={
            "policy": -inputs.advantages * inputs.logprobs * (1 + joined.std()) / len(joined),
            "entropy": inputs.entropy,
        },
        metrics={
            "spread": TokenMetric(values=inputs.logprobs.detach(), reduction="std"),
            "largest": TokenMetric(values=inputs.logprobs.detach(), reduction="max"),
            "mean": TokenMetric(values=inputs.advantages, reduction="mean"),
        },
    )


def squares(inputs: ValueInputs) -> LossTerms:
    assert inputs.returns is not None
    return LossTerms(terms={"value": (inputs.values - inputs.returns) ** 2})


def loss(*, critic: bool = False) -> Loss:
    return Loss(
        fn=terms,
        critic=squares if critic else None,
        prepare=largest_of_all,
        coefficients={"policy": 1.0, "entropy": -0.1, "value": 0.5},
    )


def dealt(rows: Sequence[Any], one: FsdpTrainer, *, to_one_share: bool) -> list[Any]:
    """A rank's rows: unequal numbers of them, or all on the first share."""
    if to_one_share:
        return list(rows) if one.share == 0 else []
    bounds = [round(len(rows) * (k / one.shares) ** 2) for k in range(one.shares + 1)]
    return list(rows[bounds[one.share] : bounds[one.share + 1]])


def two_updates(
    models: dict[str, Path],
    config: dict[str, Any],
    to_one_share: bool = False,
    device: str = "cpu",
) -> dict[str, Any]:
    torch.set_num_threads(1)
    elsewhere = {"policy"} - models.keys()
    one = FsdpTrainer(
        models, TrainerConfig(**config), device=device, timeout_s=60, elsewhere=elsewhere
    )
    stage = loss(critic="value" in models)
    results, found = [], {}
    for _ in range(2):
        mine = dealt(BATCH, one, to_one_share=to_one_share)
        results.append(one.update(mine, stage, temperature=TEMPERATURE))
        found = found or first_gradients(one)
    rows = dealt([row.tokens for row in BATCH], one, to_one_share=to_one_share)
    scores = {role: one.score(role, rows, temperature=TEMPERATURE) for role in models}
    weights = {role: {name: t.cpu() for name, t in one.weights(role)} for role in models}
    one.close()
    return {"results": results, "gradients": found, "scores": scores, "weights": weights}


def assert_like_one_process(
    number: int,
    models: dict[str, Path],
    config: dict[str, Any],
    *,
    to_one_share: bool = False,
    sharding: Mapping[str, Any] | None = None,
    device: str = "cpu",
) -> None:
    expected = two_updates(models, config, device=device)
    config = {**config, "policy": {**config["policy"], "fsdp_config": sharding or {}}}
    ranks = on_ranks(number, two_updates, models, config, to_one_share, device, deadline_s=100)
    assert len(expected["gradients"]) > 10
    scale = sum(float(np.sum(g**2)) for g in expected["gradients"].values()) ** 0.5
    if "policy" in models:
        policy = [g for name, g in expected["gradients"].items() if name.startswith("policy/")]
        assert sum(float(np.sum(g**2)) for g in policy) ** 0.5 == pytest.approx(MAX_NORM, rel=1e-4)
    for rank in ranks:
        for name, gradient in expected["gradients"].items():
            difference = np.linalg.norm(rank["gradients"][name] - gradient)
            assert difference <= 1e-5 * max(np.linalg.norm(gradient), 1e-3 * scale), name
        for mine, theirs in zip(rank["results"], expected["results"], strict=True):
            assert mine == replace(
                theirs,
                metrics={
                    k: pytest.approx(v, rel=1e-5, abs=1e-6) for k, v in theirs.metrics.items()
                },
            )
        for role, weights in expected["weights"].items():
            assert list(rank["weights"][role]) == list(weights)
            for name, weight in weights.items():
                torch.testing.assert_close(
                    rank["weights"][role][name], weight, atol=1e-4, rtol=1e-4
                )
    for role, scores in expected["scores"].items():
        joined = [row for rank in ranks for row in rank["scores"][role]]
        for mine, theirs in zip(joined, scores, strict=True):
            np.testing.assert_allclose(mine, theirs, atol=1e-3)


@on_devices(2)
def test_two_ranks_with_unequal_shares_are_one_process(qwen2: Path, device: str) -> None:
    models = {"policy": qwen2, "reference": qwen2, "value": qwen2}
    assert_like_one_process(2, models, CONFIG, device=device)


def test_two_ranks_with_the_critic_alone_are_one_process(qwen2: Path) -> None:
    assert_like_one_process(2, {"value": qwen2}, CONFIG)


def test_a_rank_without_rows_computes_along(llama: Path) -> None:
    """Tied embeddings; four ranks, of which one has all rows."""
    assert_like_one_process(4, {"policy": llama}, CONFIG, to_one_share=True)


@on_devices(1)
def test_one_process_may_offload_too(llama: Path, device: str) -> None:
    sharding = {"cpu_offload": True}
    assert_like_one_process(1, {"policy": llama}, CONFIG, sharding=sharding, device=device)


def test_gpus_meet_over_nccl_and_what_they_keep_in_memory_over_gloo() -> None:
    """As torch reads it, also where it was built without NCCL."""

    def connected_by(device: str) -> dict[str, str]:
        config = BackendConfig(Backend(backend(torch.device(device))))
        return dict(config.get_device_backend_map())

    assert connected_by("cuda:1") == {"cpu": "gloo", "cuda": "nccl"}
    assert connected_by("cpu")["cpu"] == "gloo"


def test_adapters_and_the_policy_without_them_are_those_of_one_process(llama: Path) -> None:
    """The reference is the policy without adapters; what is frozen is cut up too."""
    config = copy.deepcopy(CONFIG)
    config["policy"]["model"] = {"lora": {"rank": 4}}
    assert_like_one_process(2, {"policy": llama, "reference": llama}, config)


SCRIPT = """
import sys
import numpy as np
from pathlib import Path
from skyrl_fsdp.trainer import FsdpTrainer
from skyrl_kernel.config.trainer import TrainerConfig

one = FsdpTrainer({"policy": Path(sys.argv[1])}, TrainerConfig(bf16=False), device="cpu")
(scores,) = one.score("policy", [np.arange(5 + one.share, 9 + one.share)], temperature=1.0)
Path(sys.argv[2], str(one.share)).write_text(f"{one.shares} {scores.sum():.4f}")
one.close()
"""


@pytest.mark.slow
def test_torchrun_starts_ranks_as_any_launcher_does(llama: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*torchrun, str(script), str(llama), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    alone = FsdpTrainer({"policy": llama}, TrainerConfig(bf16=False), device="cpu")
    for share in (0, 1):
        (scores,) = alone.score("policy", [np.arange(5 + share, 9 + share)], temperature=1.0)
        assert (tmp_path / str(share)).read_text() == f"2 {scores.sum():.4f}"
