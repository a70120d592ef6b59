"""Asynchronous against synchronous training, where an env waits as long as generation takes.

Whole runs of `skyrl run`, in turns: vLLM's server keeps to one core, the run with its trainer to
another, in both. In a synchronous step the engine generates, the env waits and the trainer trains
one after the other; asynchronously, what the next step trains on is generated and waited for
meanwhile. The ideal is that the longer of the two hides the shorter: it is computed from the
stages of the synchronous run, and the asynchronous run is measured against it.
"""

import json
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import commands
import servers

from skyrl_kernel.testing.distributions import make_distribution

ENGINE_CORE, TRAINER_CORE = 0, 1
GROUPS, SAMPLES = 8, 8
"""Of one step."""
PROMPT = "Say something."
OUTPUT_TOKENS = 64
STALENESS = 1
"""The next step is made ready while one is trained on: what the ideal supposes."""
UPDATES = 2
"""Optimizer steps on each batch, so that training takes about as long as the rest."""
STEPS = 8
UNSTEADY = 2
"""Steps at the beginning that are left out: asynchronously these are made ready at once."""
PAIRS = 3
MODEL: dict[str, Any] = {
    "hidden_size": 160,
    "num_hidden_layers": 4,
    "num_attention_heads": 5,
    "num_key_value_heads": 5,
    "intermediate_size": 432,
    "max_position_embeddings": 256,
    "initializer_range": 0.05,
}

Lines = Sequence[Mapping[str, float]]


def measure(scratch: Path) -> dict[str, Any]:
    """Stages of both kinds of run, and how near the asynchronous one comes to the ideal."""
    if len(os.sched_getaffinity(0)) < 2:
        raise click.ClickException("overlap: not run: it needs two cores, one of them the engine's")
    model = scratch / "model"
    servers.write_endless_model(model, **MODEL)
    with servers.served(model, scratch, rows=GROUPS * SAMPLES, core=ENGINE_CORE) as url:
        skyrl = Runs(scratch, model, url)
        generation_s = stages(skyrl.run("probe", wait_s=0.0, steps=4))["generate_s"]
        click.echo(f"overlap: generation takes {generation_s:.2f} s, and so the env waits")
        pairs = []
        for number in range(PAIRS):
            lines = {
                kind: skyrl.run(f"{kind}{number}", wait_s=generation_s, ahead=ahead)
                for kind, ahead in (("sync", 0), ("async", STALENESS))
            }
            pairs.append(compare(lines["sync"], lines["async"]))
            click.echo(f"overlap, pair {number + 1} of {PAIRS}: {_line(pairs[-1])}")
    return {
        "groups": GROUPS,
        "samples": SAMPLES,
        "output_tokens": OUTPUT_TOKENS,
        "staleness": STALENESS,
        "steps": STEPS,
        "unsteady": UNSTEADY,
        "generation_s": generation_s,
        "pairs": pairs,
        "of_ideal": statistics.median(pair["of_ideal"] for pair in pairs),
    }


class Runs:
    """Runs `skyrl run` on the trainer's core.

    Args:
        scratch: For data, run folders and the env's entry point.
        model: What is trained.
        url: The server.
    """

    def __init__(self, scratch: Path, model: Path, url: str) -> None:
        self._scratch, self._model, self._url = scratch, model, url
        make_distribution(
            scratch / "env",
            "skyrl-waiting",
            entry_points={"skyrl.envs": {"waiting": "skyrl_waiting"}},
        )
        self._environment = commands.environment(scratch / "env", commands.HERE / "waiting")

    def run(self, name: str, *, wait_s: float, steps: int = STEPS, ahead: int = 0) -> Lines:
        """The metrics of a run's steps; ``ahead`` is its bound of staleness."""
        data = self._scratch / f"{name}.jsonl"
        row = {"prompt": [{"role": "user", "content": PROMPT}], "wait_s": wait_s}
        data.write_text(f"{json.dumps(row)}\n" * GROUPS)
        folder = self._scratch / "runs" / name
        values = {
            "data.train_data": [str(data)],
            "data.val_data": [],
            "environment.env_class": "waiting",
            "trainer.policy.model.path": str(self._model),
            "trainer.epochs": steps,
            "trainer.train_batch_size": GROUPS,
            "trainer.policy_mini_batch_size": GROUPS,
            "trainer.update_epochs_per_batch": UPDATES,
            "trainer.micro_train_batch_size_per_gpu": GROUPS * SAMPLES,
            "trainer.micro_forward_batch_size_per_gpu": GROUPS * SAMPLES,
            "trainer.bf16": False,
            "trainer.gradient_checkpointing": False,
            "trainer.algorithm.use_kl_loss": False,
            "trainer.policy.optimizer_config.lr": 1e-5,
            "trainer.placement.colocate_all": False,
            "trainer.eval_interval": -1,
            "trainer.eval_before_train": False,
            "trainer.ckpt_interval": -1,
            "trainer.logger": ["console"],
            "trainer.fully_async.enabled": bool(ahead),
            "trainer.fully_async.max_staleness_steps": ahead,
            "generator.n_samples_per_prompt": SAMPLES,
            "generator.sampling_params.max_generate_length": OUTPUT_TOKENS,
            "generator.inference_engine.backend": "vllm",
            "generator.inference_engine.max_num_seqs": GROUPS * SAMPLES,
            "generator.inference_engine.run_engines_locally": False,
            "generator.inference_engine.external_server_urls": [self._url],
        }
        with servers.pinned(TRAINER_CORE):
            commands.train(["grpo", "fsdp", "vllm", "waiting"], values, self._environment, folder)
        return commands.read_metrics(folder)


def stages(lines: Lines) -> dict[str, float]:
    """Seconds of a step, in the median: all of it, generating (with the env's wait), the sync, the rest."""

    def median(name: str) -> float:
        return statistics.median(line[f"timing/{name}"] for line in lines[UNSTEADY:])

    step, generate, sync = median("step"), median("generate"), median("sync_weights")
    return {
        "step_s": step,
        "generate_s": generate,
        "sync_s": sync,
        "train_s": step - generate - sync,
    }


def compare(synchronous: Lines, asynchronous: Lines) -> dict[str, Any]:
    """The stages of both runs, and the asynchronous step against the ideal of the synchronous one."""
    apart, beside = stages(synchronous), stages(asynchronous)
    ideal = max(apart["generate_s"], apart["train_s"] + apart["sync_s"])
    return {
        "sync": apart,
        "async": beside,
        "ideal_step_s": ideal,
        "of_ideal": ideal / beside["step_s"],
        "speed_up": apart["step_s"] / beside["step_s"],
        "staleness_max": max(line["async/staleness_max"] for line in asynchronous),
    }


def _line(pair: Mapping[str, Any]) -> str:
    sync, beside = pair["sync"], pair["async"]
    return (
        f"{sync['step_s']:.2f} s a step (generate and wait {sync['generate_s']:.2f}, train "
        f"{sync['train_s']:.2f}, sync {sync['sync_s']:.2f}), asynchronously {beside['step_s']:.2f}: "
        f"{100 * pair['of_ideal']:.0f} % of the ideal"
    )
