"""How the tiny model is made: its shape, its examples, its warm start.

`build` is a function of the seed. Whatever changes its result belongs into
`RECIPE`, whose digest names the cached directory.
"""

import hashlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from skyrl_kernel.progress import Progress
from skyrl_kernel.runner import run
from skyrl_multiply.problems import messages
from skyrl_tiny import teacher, tokenizer

STEPS = 400
BATCH_SIZE = 32

SHAPE: Mapping[str, Any] = {
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 320,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
    "initializer_range": 0.02,
}
ROPE_THETA = 500.0
"""Positions matter over tens of tokens here, not thousands."""

OPTIMIZER: Mapping[str, Any] = {
    "name": "muon",
    "muon_lr": 0.02,
    "lr": 5e-3,
    "adam_betas": [0.9, 0.95],
    "weight_decay": 0.0,
    "num_warmup_steps": 30,
    "scheduler": "linear",
    "min_lr_frac": 0.05,
}
"""Muon learns the carry in a fifth of the steps that AdamW alone needs (benchmarks/RESULTS.md)."""

RECIPE: Mapping[str, Any] = {
    "version": 1,
    "steps": STEPS,
    "batch_size": BATCH_SIZE,
    "shape": dict(SHAPE),
    "rope_theta": ROPE_THETA,
    "optimizer": dict(OPTIMIZER),
    "wrong_facts": teacher.NUM_WRONG_FACTS,
    "wrong_frac": teacher.WRONG_FRAC,
    "vocabulary": tokenizer.VOCABULARY,
    "chat_template": tokenizer.CHAT_TEMPLATE,
    "prompt": messages(272, 5),
}


def digest() -> str:
    """Twelve hex digits that change with the recipe."""
    return hashlib.sha256(json.dumps(RECIPE, sort_keys=True).encode()).hexdigest()[:12]


def build(seed: int, target: Path) -> None:
    """Make the model and put it at ``target``, whole or not at all.

    Args:
        seed: Of the initial weights, the teacher's mistakes and the examples.
        target: A Hugging Face directory that does not exist yet.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".making-") as scratch:
        work = Path(scratch)
        start = work / "initial"
        _save_initial(start, seed)
        _save_examples(work / "examples.parquet", seed, STEPS * BATCH_SIZE)
        with Progress("making builtin:tiny (once)", STEPS, line_interval_s=5.0) as progress:
            result = run(
                ["sft", "fsdp"], overrides=_overrides(work, start, seed), progress=progress
            )
        assert result.export is not None, "a finished run exports its model"
        (result.export / "recipe.json").write_text(json.dumps({**RECIPE, "seed": seed}, indent=1))
        result.export.rename(target)


def _overrides(work: Path, start: Path, seed: int) -> list[str]:
    """The warm start as ``key=value`` words."""
    values = {
        "data.train_data": [str(work / "examples.parquet")],
        "data.shuffle": False,
        "trainer.policy.model.path": str(start),
        "trainer.train_batch_size": BATCH_SIZE,
        "trainer.policy_mini_batch_size": BATCH_SIZE,
        "trainer.micro_train_batch_size_per_gpu": BATCH_SIZE,
        "trainer.seed": seed,
        "trainer.bf16": False,
        "trainer.gradient_checkpointing": False,
        "trainer.dump_trajectories": False,
        "trainer.ckpt_path": str(work),
        "trainer.ckpt_interval": -1,
        "trainer.run_name": "warm_start",
        "trainer.logger": [],
        **{f"trainer.policy.optimizer_config.{key}": value for key, value in OPTIMIZER.items()},
    }
    return [f"{key}={json.dumps(value)}" for key, value in values.items()]


def _save_initial(folder: Path, seed: int) -> None:
    """Random weights and the tokenizer, as a Hugging Face directory."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer.save_tokenizer(folder)
    saved = AutoTokenizer.from_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(saved),
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        bos_token_id=None,
        eos_token_id=saved.eos_token_id,
        pad_token_id=saved.pad_token_id,
        **SHAPE,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)


def _save_examples(file: Path, seed: int, count: int) -> None:
    """Worked examples in the order in which they are trained on."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {"prompt": messages(a, b), "response": text, "data_source": "worked_examples"}
        for (a, b), text in teacher.worked_examples(seed, count)
    ]
    pq.write_table(pa.Table.from_pylist(rows), file)
