"""What a GPU computes, beside the CPU of the same machine, and how fast: needs a CUDA device.

    python benchmarks/gpu.py             writes gpu.json, and RESULTS.md anew
    python benchmarks/gpu.py --small     less of everything: does the script run?

Nothing is downloaded: the models are `builtin:tiny` and one of the shape of Qwen2-0.5B with random
weights.
"""

import asyncio
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import click
import commands
import numpy as np
import report
import torch
from machine import describe_machine
from text import to_json

from skyrl_fsdp.trainer import FsdpTrainer
from skyrl_grpo.clip import clipped_loss
from skyrl_kernel.config.roles import OptimizerConfig, PolicyConfig
from skyrl_kernel.config.trainer import TrainerConfig
from skyrl_kernel.protocols import Loss
from skyrl_kernel.records import Completion, GenerateRequest, Sampling, Scores, TrainingSample
from skyrl_kernel.torch import LossInputs, LossTerms, ratio
from skyrl_transformers.engine import TransformersEngine
from skyrl_transformers.testing import write_random_model

QWEN2_05B = {
    "hidden_size": 896,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "intermediate_size": 4864,
    "vocab_size": 151936,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": True,
    "initializer_range": 0.02,
}
LIMITS = {"logprobs": 1e-4, "update": 1e-3}
"""Most that float32 on the GPU may differ from the CPU: nats, and a fraction of the update. AdamW
divides every gradient by its own size, so rounding of the smallest ones shows in an update."""


def _clipped(inputs: LossInputs) -> LossTerms:
    assert inputs.old_logprobs is not None
    ratios = ratio(inputs.logprobs, inputs.old_logprobs)
    return LossTerms(terms={"policy": clipped_loss(ratios, inputs.advantages, 0.2, 0.2)[0]})


CLIPPED = Loss(fn=_clipped, needs=frozenset({"old_logprobs"}))


@click.command()
@click.option("--small", is_flag=True, help="Less of everything.")
def main(small: bool) -> None:
    """Measure, print, and write gpu.json."""
    if not torch.cuda.is_available():
        raise click.ClickException("not run: torch finds no CUDA device here")
    torch.backends.cuda.matmul.allow_tf32 = False
    with tempfile.TemporaryDirectory() as scratch:
        numbers = {
            **parity(Path(scratch)),
            **speed(Path(scratch), rows=8 if small else 64, length=64 if small else 512),
            **demo(Path(scratch), steps=3 if small else 30),
        }
    device = torch.cuda.get_device_properties(0)
    machine = {
        **describe_machine(),
        "gpu": f"{device.name}, {device.total_memory / 2**30:.0f} GiB",
        "cuda": str(torch.version.cuda),
    }
    results = {"machine": machine, "limits": LIMITS, "numbers": numbers}
    for name, value in numbers.items():
        click.echo(f"{name} {value:.6g}")
    if not small:
        report.GPU.write_text(to_json(results))
        report.write()
    wrong = [name for name, limit in LIMITS.items() if not numbers[f"{name}_difference"] <= limit]
    if wrong:
        raise click.ClickException(f"CPU and GPU differ by more than rounding: {', '.join(wrong)}")


def config(bf16: bool, rows: int, lr: float = 1e-4) -> TrainerConfig:
    """What one update needs."""
    return TrainerConfig(
        bf16=bf16,
        micro_train_batch_size_per_gpu=rows,
        micro_forward_batch_size_per_gpu=rows,
        policy=PolicyConfig(optimizer_config=OptimizerConfig(lr=lr)),
    )


def samples(rows: int, length: int, vocabulary: int) -> list[TrainingSample]:
    """Random tokens, the first quarter of each row a prompt, with random advantages."""
    rng = np.random.default_rng(0)
    made = []
    for row in range(rows):
        mask = np.arange(length) >= length // 4
        made.append(
            TrainingSample(
                trajectory_id=f"{row}/0",
                group=row,
                trajectory=row,
                tokens=rng.integers(0, vocabulary, length).astype(np.int32),
                loss_mask=mask,
                advantages=rng.normal(size=length).astype(np.float32) * mask,
                returns=None,
                sampler_logprobs=None,
                scores=Scores(),
                loss_weights={"policy": np.full(length, 1 / (rows * length), np.float32)},
            )
        )
    return made


def parity(scratch: Path) -> dict[str, float]:
    """The same scores and the same update on both devices, in float32."""
    model = scratch / "small"
    shape = {"hidden_size": 256, "num_hidden_layers": 4, "initializer_range": 0.05}
    write_random_model(model, architecture="qwen2", **shape)
    batch = samples(16, 96, 258)
    rows = [one.tokens for one in batch]
    trainers = {
        name: FsdpTrainer({"policy": model}, config(False, 4), device=name)
        for name in ("cpu", "cuda")
    }
    before = _weights(trainers["cpu"])
    scored = {name: one.score("policy", rows, temperature=0.7) for name, one in trainers.items()}
    scores = [Scores(old_logprobs=row) for row in scored["cpu"]]
    batch = [replace(one, scores=score) for one, score in zip(batch, scores, strict=True)]
    for one in trainers.values():
        one.update(batch, CLIPPED, temperature=0.7)
    after = {name: _weights(one) for name, one in trainers.items()}
    moved = torch.cat([(after["cpu"][name] - before[name]).flatten() for name in before])
    apart = torch.cat([(after["cpu"][name] - after["cuda"][name]).flatten() for name in before])
    trainers["cuda"].offload()
    trainers["cuda"].onload()
    kept = all(torch.equal(w, after["cuda"][n]) for n, w in _weights(trainers["cuda"]).items())
    return {
        "logprobs_difference": max(
            float(np.abs(a - b).max()) for a, b in zip(scored["cpu"], scored["cuda"], strict=True)
        ),
        "update_difference": float(apart.norm() / moved.norm()),
        "offload_keeps_bits": float(kept),
    }


def _weights(trainer: FsdpTrainer) -> dict[str, torch.Tensor]:
    return {name: tensor.cpu().clone() for name, tensor in trainer.weights()}


def speed(scratch: Path, rows: int, length: int) -> dict[str, float]:
    """Tokens per second of a model of half a billion weights, bfloat16 over float32 weights."""
    model = scratch / "large"
    write_random_model(model, architecture="qwen2", **QWEN2_05B)
    torch.cuda.reset_peak_memory_stats()
    trainer = FsdpTrainer({"policy": model}, config(True, 8), device="cuda")
    batch = samples(rows, length, 258)
    tokens = sum(len(one.tokens) for one in batch)
    scores = trainer.score("policy", [one.tokens for one in batch], temperature=1.0)
    batch = [
        replace(one, scores=Scores(old_logprobs=row))
        for one, row in zip(batch, scores, strict=True)
    ]
    update_s = _best(lambda: trainer.update(batch, CLIPPED, temperature=1.0))
    score_s = _best(lambda: trainer.score("policy", [s.tokens for s in batch], temperature=1.0))
    peak = torch.cuda.max_memory_allocated()
    engine = TransformersEngine(model, bf16=True)
    engine.share(trainer.module())
    requests = [
        GenerateRequest(
            tokens=one.tokens[: length // 4],
            sampling=Sampling(max_tokens=length // 2),
            seed=number,
        )
        for number, one in enumerate(batch)
    ]
    made: list[list[Completion]] = []
    generate_s = _best(lambda: made.append(asyncio.run(engine.generate(requests))))
    generated = sum(len(one.tokens) for one in made[-1])
    return {
        "update_tokens_per_s": tokens / update_s,
        "score_tokens_per_s": tokens / score_s,
        "generate_tokens_per_s": generated / generate_s,
        "peak_train_gib": peak / 2**30,
    }


def _best(function: Callable[[], object]) -> float:
    seconds = []
    for _ in range(3):
        torch.cuda.synchronize()
        began = time.perf_counter()
        function()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def demo(scratch: Path, steps: int) -> dict[str, float]:
    """`skyrl run --plugin demo` as it is: it takes the GPU by itself."""
    folder = scratch / "demo"
    values = {"trainer.ckpt_path": str(scratch), "trainer.max_training_steps": steps}
    commands.call(
        [commands.SKYRL, "run", "--plugin", "demo", *commands.words(values)],
        commands.environment(),
        scratch / "demo.log",
    )
    metrics = commands.read_metrics(folder)
    key = "eval/all/exact_match"
    accuracies = [line[key] for line in metrics if key in line]
    times = [line["timing/step"] for line in metrics if "timing/step" in line]
    return {
        "demo_start": accuracies[0],
        "demo_end": accuracies[-1],
        "demo_steps": float(steps),
        "demo_step_s": float(np.median(times)),
    }


if __name__ == "__main__":
    main()
