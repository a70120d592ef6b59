"""The transformers engine keeps the contract of engines, with a tied head and with one of its own."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from skyrl_kernel.protocols import Engine, Tokenizer
from skyrl_kernel.testing.contracts import LogProbContract, ModelEngineContract
from skyrl_transformers.engine import TransformersEngine
from skyrl_transformers.tokenizer import HuggingFaceTokenizer


class Subject:
    """Both models' engines."""

    folder: Path

    def make(self) -> Engine:
        engine = TransformersEngine(self.folder, max_rows=16)
        self.computed = 0
        engine._weights().register_forward_hook(self.count, with_kwargs=True)
        return engine

    def count(self, module, args, kwargs, output) -> None:
        self.computed += len(kwargs["input_ids"])

    def reference(self) -> torch.nn.Module:
        return AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32)

    def tokenizer(self) -> Tokenizer:
        return HuggingFaceTokenizer(self.folder)

    def tokens_computed(self, engine: Engine) -> int:
        """Rows that went through the module."""
        return self.computed


class TestTied(Subject, ModelEngineContract):
    @pytest.fixture(autouse=True)
    def _folder(self, llama: Path) -> None:
        self.folder = llama


class TestUntied(Subject, LogProbContract):
    @pytest.fixture(autouse=True)
    def _folder(self, qwen2: Path) -> None:
        self.folder = qwen2
