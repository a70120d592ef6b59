"""Fixtures of the tests across packages: wheels, and fresh environments filled from them."""

import os
import string
from collections.abc import Callable
from pathlib import Path

import pytest
from workspace import Environment, build_wheel, package_folders


def pytest_configure(config: pytest.Config) -> None:
    """Nothing here may reach a model hub, whether or not this machine could."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a wheel of every package of the workspace."""
    folder = tmp_path_factory.mktemp("wheels")
    for package in package_folders():
        build_wheel(package, folder)
    return folder


@pytest.fixture
def environment(tmp_path: Path, wheels: Path) -> Callable[..., Environment]:
    """Makes environments: ``environment("skyrl-grpo", …)`` has these installed from wheels."""
    number = iter(range(100))

    def make(*requirements: str) -> Environment:
        made = Environment(tmp_path / f"environment{next(number)}", wheels)
        made.install(*requirements)
        return made

    return make


CHAT = "{% for m in messages %}{{ m.content }}\n{% endfor %}"


@pytest.fixture(scope="session")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder of a model that has learned nothing; one token per character."""
    import torch
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("model")
    characters = ["<eos>", "<unk>", *string.ascii_letters, *string.digits, *" .*\n"]
    vocabulary = {character: number for number, character in enumerate(characters)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", unk_token="<unk>", chat_template=CHAT
    ).save_pretrained(folder)

    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        eos_token_id=0,
        bos_token_id=None,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(shape).save_pretrained(folder)
    return folder
