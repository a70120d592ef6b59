from pathlib import Path

import pytest
import torch

from skyrl_transformers.testing import write_random_model


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    write_random_model(folder, tie_word_embeddings=True)
    return folder


@pytest.fixture(scope="session")
def qwen2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qwen2")
    write_random_model(folder, architecture="qwen2", seed=1, tie_word_embeddings=False)
    return folder
