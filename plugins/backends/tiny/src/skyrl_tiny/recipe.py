"""How the tiny models are made: their shape, their examples, their warm start.

`build` is a function of the recipe and the seed. A recipe's digest names the
directory in which the result is cached, so a changed recipe makes a new model
and an unchanged one is made once.
"""

import hashlib
import json
import random
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from skyrl_kernel.progress import Progress
from skyrl_kernel.runner import run
from skyrl_multiply.env import MultiplyEnv
from skyrl_multiply.problems import messages
from skyrl_tiny import teacher, tokenizer

Example = tuple[list[dict[str, str]], str]
"""A conversation, and what the model should say next."""

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

    name: ClassVar[str] = "tiny"
    """As in ``builtin:NAME``."""

    def digest(self) -> str:
        """Twelve hex digits that change with the recipe, and with the text that it learns from."""
        text = json.dumps(self.ingredients(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def ingredients(self) -> dict[str, Any]:
        """All that the digest is of."""
        return {
            **asdict(self),
            "version": 2,  # of `build`
            "vocabulary": tokenizer.VOCABULARY,
            "chat_template": tokenizer.CHAT_TEMPLATE,
            "text": "".join(self.text()),
            "prompt": messages(272, 5),
            "examples": [text for _, text in teacher.worked_examples(0, 100)],
        }

    def text(self) -> Iterator[str]:
        """What the tokenizer is trained on."""
        return tokenizer.sample_text()

    def examples(self, seed: int) -> Iterator[Example]:
        """Conversations and what to answer, in the order in which they are trained on."""
        for (a, b), text in teacher.worked_examples(seed, self.steps * self.batch_size):
            yield messages(a, b), text


@dataclass(frozen=True, kw_only=True, slots=True)
class RetryRecipe(Recipe):
    """A model that has also seen what follows a wrong answer: ``builtin:tiny-retry``."""

    steps: int = 500
    wrong_frac: float = 0.9
    """How often the teacher writes the wrong product of a fact that it has wrong: so often that
    what cannot be found at first must be found when the env has replied."""
    stubborn_frac: float = 0.7
    """How often it insists on a wrong answer: more than half, so that the most likely second answer
    is the first; less than all, so that samples sometimes put it right."""
    retry_frac: float = 0.5
    """Of the examples: second answers, after a wrong one and the env's reply. The rest are first
    answers, as in `Recipe`."""

    name: ClassVar[str] = "tiny-retry"

    def ingredients(self) -> dict[str, Any]:
        """Also some of the conversations."""
        some = replace(self, steps=1, batch_size=100)
        return {**Recipe.ingredients(self), "conversations": list(some.examples(0))}

    def text(self) -> Iterator[str]:
        """Also the env's replies, which then take half the tokens."""
        yield from tokenizer.sample_text()
        for (a, b), attempt, _ in self._second_tries(0, 1000):
            yield f"{reply(a, b, attempt)['content']}\n"

    def examples(self, seed: int) -> Iterator[Example]:
        """First answers and second ones, mixed."""
        count = self.steps * self.batch_size
        first = teacher.worked_examples(seed, count, self.wrong_frac)
        second = self._second_tries(seed, count)
        rng = random.Random(f"mixed {seed}")
        for _ in range(count):
            if rng.random() < self.retry_frac:
                (a, b), attempt, text = next(second)
                said = {"role": "assistant", "content": attempt}
                yield [*messages(a, b), said, reply(a, b, attempt)], text
            else:
                (a, b), text = next(first)
                yield messages(a, b), text

    def _second_tries(self, seed: int, count: int) -> Iterator[tuple[teacher.Pair, str, str]]:
        return teacher.second_tries(seed, count, self.wrong_frac, self.stubborn_frac)


def reply(a: int, b: int, attempt: str) -> dict[str, str]:
    """What the env says to a wrong answer: its own words, so that they can never differ."""
    env = MultiplyEnv({"reward_spec": {"ground_truth": str(a * b)}}, max_turns=2)
    (message,) = env.step(attempt)["observations"]
    return dict(message)


RECIPE = Recipe()
"""That of ``builtin:tiny``."""
RETRY = RetryRecipe()
"""That of ``builtin:tiny-retry``."""
RECIPES = {recipe.name: recipe for recipe in (RECIPE, RETRY)}


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
        _save_examples(work / "examples.parquet", recipe.examples(seed))
        with Progress(
            f"making builtin:{recipe.name} (once)", recipe.steps, line_interval_s=5.0
        ) as progress:
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

    tokenizer.save_tokenizer(folder, recipe.text())
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


def _save_examples(file: Path, examples: Iterable[Example]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {"prompt": conversation, "response": text, "data_source": "worked_examples"}
        for conversation, text in examples
    ]
    pq.write_table(pa.Table.from_pylist(rows), file)
