"""The transformers engine keeps the contract of engines."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from skyrl_kernel.protocols import Engine
from skyrl_kernel.records import IntArray
from skyrl_kernel.testing.contracts import EngineContract
from skyrl_transformers.engine import TransformersEngine
from skyrl_transformers.loading import distinct_tensors
from skyrl_transformers.testing import write_random_model


class TestTransformers(EngineContract):
    @pytest.fixture(autouse=True)
    def _models(self, llama: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
        self.folder = llama
        self.tmp_path_factory = tmp_path_factory

    def make(self) -> Engine:
        return TransformersEngine(self.folder, max_rows=3)

    def prompts(self) -> Sequence[IntArray]:
        return [np.arange(5, 5 + length, dtype=np.int32) for length in (4, 9)]

    def other_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        folder = self.tmp_path_factory.mktemp("other")
        other = write_random_model(folder, seed=9, tie_word_embeddings=True)
        yield from distinct_tensors(other).items()
