"""Writes a policy so that anything that reads Hugging Face directories can serve it."""

import shutil
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedModel

from skyrl_fsdp.adapted import ADAPTER_FOLDER, adapted_layers, merged_tensors, write_adapter
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
    """Write config, weights and tokenizer, and adapters by themselves in a folder beside.

    Args:
        module: The policy, in float32: nothing is rounded. Adapters are added to the weights.
        source: Where its tokenizer is: the directory, or the hub name, that it was
            loaded from. Files of a directory are copied as they are.
        folder: Made if needed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with no_progress_bars():
        module.save_pretrained(folder, state_dict=dict(merged_tensors(module)))
    if adapted_layers(module):
        write_adapter(module, source, folder / ADAPTER_FOLDER)
    if not source.is_dir():
        AutoTokenizer.from_pretrained(str(source)).save_pretrained(folder)
        return
    for pattern in TOKENIZER_FILES:
        for file in source.glob(pattern):
            if file.is_file():
                shutil.copyfile(file, folder / file.name)
