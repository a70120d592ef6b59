"""Writes a policy so that anything that reads Hugging Face directories can serve it."""

import shutil
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedModel

from skyrl_transformers.loading import no_progress_bars

TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "vocab.*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
)
"""What makes up a tokenizer in a model directory."""


def export_policy(module: PreTrainedModel, source: Path, folder: Path) -> None:
    """Write config, weights and tokenizer.

    Args:
        module: The policy, in float32: nothing is rounded.
        source: Where its tokenizer is: the directory, or the hub name, that it was
            loaded from. Files of a directory are copied as they are.
        folder: Made if needed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with no_progress_bars():
        module.save_pretrained(folder)
    if not source.is_dir():
        AutoTokenizer.from_pretrained(str(source)).save_pretrained(folder)
        return
    for pattern in TOKENIZER_FILES:
        for file in source.glob(pattern):
            if file.is_file():
                shutil.copyfile(file, folder / file.name)
