"""How the tiny model is made: its shape, its examples, its warm start.

`build` is a function of the recipe and the seed. A recipe's digest names the
directory in which the result is cached, so a changed recipe makes a new model
and an unchanged one is made once.
"""

import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from skyrl_kernel.progress import Progress
from skyrl_kernel.runner import run
from skyrl_multiply.problems import messages
from skyrl_tiny import teacher, tokenizer

ROPE_THETA = 500.0
"""Positions matter over tens of tokens here, not thousands."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """All that decides the result, the seed aside. The defaults are ``builtin:tiny``."""

    steps: int = 400
    """Of the warm start."""
    batch_size: int = 32
    """Worked examples of one step."""
    shape: Mapping[str, Any] = field(
        default_factory=lambda: {
            "hidden_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "intermediate_size": 320,
            "max_position_embeddings": 4096,
            "tie_word_embeddings": True,
            "initializer_range": 0.02,
            "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_THETA},
        }
    )
    """Of the Llama."""
    optimizer: Mapping[str, Any] = field(
        default_factory=lambda: {
            "name": "muon",
            "muon_lr": 0.02,
            "lr": 5e-3,
            "adam_betas": [0.9, 0.95],
            "weight_decay": 0.0,
            "num_warmup_steps": 30,
            "scheduler": "linear",
            "min_lr_frac": 0.05,
        }
    )
    """``trainer.policy.optimizer_config``. Muon learns the carry in a fifth of the steps that AdamW
    alone needs (benchmarks/RESULTS.md)."""

    def digest(self) -> str:
        """Twelve hex digits that change with the recipe, and with the text that it learns from."""
        ingredients = {
            **asdict(self),
            "version": 2,  # of `build`
            "vocabulary": tokenizer.VOCABULARY,
            "chat_template": tokenizer.CHAT_TEMPLATE,
            "text": "".join(tokenizer.sample_text()),
            "prompt": messages(272, 5),
            "examples": [text for _, text in teacher.worked_examples(0, 100)],
        }
        return hashlib.sha256(json.dumps(ingredients, sort_keys=True).encode()).hexdigest()[:12]


RECIPE = Recipe()
"""That of ``builtin:tiny``."""


def build(seed: int, folder: Path, recipe: Recipe = RECIPE) -> None:
    """Make the model.

    Args:
        seed: Of the initial weights, the teacher's mistakes and the examples.
        folder: An empty folder; filled with a Hugging Face directory.
        recipe: What to make.
    """
    with tempfile.TemporaryDirectory(dir=folder, prefix="work-") as scratch:
        work = Path(scratch)
        _save_initial(work / "initial", seed, recipe)
        _save_examples(work / "examples.parquet", seed, recipe.steps * recipe.batch_size)
        with Progress("making builtin:tiny (once)", recipe.steps, line_interval_s=5.0) as progress:
            result = run(
                ["sft", "fsdp"], overrides=_overrides(work, seed, recipe), progress=progress
            )
        assert result.export is not None, "a finished run exports its model"
        for file in result.export.iterdir():
            file.rename(folder / file.name)
    (folder / "recipe.json").write_text(json.dumps({"seed": seed, **asdict(recipe)}, indent=1))


def _overrides(work: Path, seed: int, recipe: Recipe) -> list[str]:
    """The warm start as ``key=value`` words."""
    values = {
        "data.train_data": [str(work / "examples.parquet")],
        "data.shuffle": False,
        "trainer.policy.model.path": str(work / "initial"),
        "trainer.train_batch_size": recipe.batch_size,
        "trainer.policy_mini_batch_size": recipe.batch_size,
        "trainer.micro_train_batch_size_per_gpu": recipe.batch_size,
        "trainer.seed": seed,
        "trainer.fsdp.num_threads": 1,  # the same model on any number of cores
        "trainer.bf16": False,
        "trainer.gradient_checkpointing": False,
        "trainer.dump_trajectories": False,
        "trainer.ckpt_path": str(work),
        "trainer.ckpt_interval": -1,
        "trainer.run_name": "warm_start",
        "trainer.logger": [],
        **{f"trainer.policy.optimizer_config.{k}": value for k, value in recipe.optimizer.items()},
    }
    return [f"{key}={json.dumps(value)}" for key, value in values.items()]


def _save_initial(folder: Path, seed: int, recipe: Recipe) -> None:
    """Random weights and the tokenizer, as a Hugging Face directory."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from skyrl_transformers.loading import no_progress_bars

    tokenizer.save_tokenizer(folder)
    saved = AutoTokenizer.from_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(saved),
        bos_token_id=None,
        eos_token_id=saved.eos_token_id,
        pad_token_id=saved.pad_token_id,
        **recipe.shape,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    with no_progress_bars():
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
