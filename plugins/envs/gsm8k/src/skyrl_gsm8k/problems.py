"""GSM8K in SkyRL's columns, from the original jsonl files or from the Hugging Face hub.

Cobbe et al. 2021, Training Verifiers to Solve Math Word Problems,
arXiv:2110.14168: 7473 problems to train on and 1319 to test on.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from skyrl_gsm8k.env import extract_answer
from skyrl_kernel.data import read_file
from skyrl_kernel.errors import DataError, is_disk_full

INSTRUCTION = 'Let\'s think step by step and output the final answer after "####".'
HUB_NAME = "openai/gsm8k"

_SPLITS = {"train": "train", "validation": "test"}
"""Our split, which names the file written, → the original one, which names the file read."""


class Gsm8kOptions(BaseModel):
    """The options of ``skyrl data gsm8k``."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    max_train_dataset_length: int | None = Field(default=None, ge=1)
    """Keep only the first training rows; default: all."""


def write_data(options: Gsm8kOptions, folder: Path, source: Path | None) -> Mapping[str, Path]:
    """Write train.parquet and validation.parquet into ``folder``.

    Args:
        options: What to keep.
        folder: Exists.
        source: Folder with the original train.jsonl and test.jsonl; None asks the hub.

    Raises:
        DataError: A file is missing, or a row has no question or no marked answer.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    written: dict[str, Path] = {}
    for split, original in _SPLITS.items():
        file = source / f"{original}.jsonl" if source else _download(original)
        rows = read_file(file)
        if split == "train":
            rows = rows[: options.max_train_dataset_length]
        table = pa.Table.from_pylist(
            [to_row(row, original, index, file) for index, row in enumerate(rows)]
        )
        written[split] = folder / f"{split}.parquet"
        pq.write_table(table, written[split])
    return written


def to_row(problem: Mapping[str, Any], split: str, index: int, file: Path) -> dict[str, Any]:
    """One original problem in SkyRL's columns.

    Args:
        problem: ``question`` and ``answer``, as published.
        split: ``train`` or ``test``.
        index: Its row in the file, from 0.
        file: Where it stands, for messages.

    Raises:
        DataError: A column is missing, or the answer marks no number.
    """
    where = f"data file '{file}', row {index} (from 0)"
    for column in ("question", "answer"):
        if not isinstance(problem.get(column), str):
            raise DataError(
                f"{where}: no text in column '{column}'; GSM8K has the columns question and "
                f"answer, found: {', '.join(problem) or 'none'}"
            )
    ground_truth = extract_answer(problem["answer"])
    if ground_truth is None:
        raise DataError(
            f"{where}, column 'answer': it does not end with '#### NUMBER', as GSM8K's do"
        )
    return {
        "data_source": HUB_NAME,
        "prompt": [{"role": "user", "content": f"{problem['question']} {INSTRUCTION}"}],
        "env_class": "gsm8k",
        "reward_spec": {"method": "rule", "ground_truth": ground_truth},
        "extra_info": {
            "split": split,
            "index": index,
            "answer": problem["answer"],
            "question": problem["question"],
        },
    }


def _download(split: str) -> Path:
    """The hub's parquet file of a split, from the local cache if it is there."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import LocalEntryNotFoundError

    name = f"main/{split}-00000-of-00001.parquet"
    try:
        return Path(hf_hub_download(HUB_NAME, name, repo_type="dataset", local_files_only=True))
    except LocalEntryNotFoundError:
        pass
    try:
        # One plain request first: without a network the download itself retries for half a minute.
        get_hf_file_metadata(hf_hub_url(HUB_NAME, name, repo_type="dataset"))
        return Path(hf_hub_download(HUB_NAME, name, repo_type="dataset"))
    except Exception as error:  # which class it is depends on the library's version and HTTP client
        if is_disk_full(error):
            raise
        raise DataError(
            f"data 'gsm8k': the Hugging Face hub did not give {HUB_NAME} "
            f"({type(error).__name__}). Without a network, name a folder with the original "
            "train.jsonl and test.jsonl: skyrl data gsm8k --source DIR"
        ) from error
