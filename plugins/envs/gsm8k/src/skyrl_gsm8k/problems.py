"""GSM8K in SkyRL's columns, from the original jsonl files or from the Hugging Face hub.

Cobbe et al. 2021, Training Verifiers to Solve Math Word Problems,
arXiv:2110.14168: 7473 problems to train on and 1319 to test on.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from skyrl_gsm8k.env import extract_answer
from skyrl_gsm8k.multi_turn import MAX_TURNS
from skyrl_kernel.data import read_file
from skyrl_kernel.errors import DataError, is_disk_full

INSTRUCTION = 'Let\'s think step by step and output the final answer after "####".'
MULTI_TURN_INSTRUCTION = (
    'Let\'s think step by step and output a tentative numeric answer after "####".'
)
HUB_NAME = "openai/gsm8k"

_SPLITS = {"train": "train", "validation": "test"}
"""Our split, which names the file written, → the original one, which names the file read."""


class Gsm8kOptions(BaseModel):
    """The options of ``skyrl data gsm8k``."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    max_train_dataset_length: int | None = Field(default=None, ge=1)
    """Keep only the first training rows; default: all."""


class MultiTurnOptions(Gsm8kOptions):
    """The options of ``skyrl data gsm8k_multi_turn``."""

    max_turns: int = Field(default=MAX_TURNS, ge=1)
    """Answers that the model may give to each problem; written into every row."""


def write_data(options: Gsm8kOptions, folder: Path, source: Path | None) -> Mapping[str, Path]:
    """Write train.parquet and validation.parquet into ``folder``.

    Args:
        options: What to keep; `MultiTurnOptions` ask for rows of ``gsm8k_multi_turn``.
        folder: Exists.
        source: Folder with the original train.jsonl and test.jsonl; None asks the hub.

    Raises:
        DataError: A file is missing, or a row has no question or no marked answer.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    max_turns = options.max_turns if isinstance(options, MultiTurnOptions) else None
    name = "gsm8k" if max_turns is None else "gsm8k_multi_turn"
    written: dict[str, Path] = {}
    for split, original in _SPLITS.items():
        file = source / f"{original}.jsonl" if source else _download(original, name)
        rows = read_file(file)
        if split == "train":
            rows = rows[: options.max_train_dataset_length]
        table = pa.Table.from_pylist(
            [to_row(row, original, index, file, max_turns) for index, row in enumerate(rows)]
        )
        written[split] = folder / f"{split}.parquet"
        pq.write_table(table, written[split])
    return written


def to_row(
    problem: Mapping[str, Any], split: str, index: int, file: Path, max_turns: int | None = None
) -> dict[str, Any]:
    """One original problem in SkyRL's columns.

    Args:
        problem: ``question`` and ``answer``, as published.
        split: ``train`` or ``test``.
        index: Its row in the file, from 0.
        file: Where it stands, for messages.
        max_turns: Answers allowed, for ``gsm8k_multi_turn``; None is ``gsm8k``.

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
    instruction = INSTRUCTION if max_turns is None else MULTI_TURN_INSTRUCTION
    return {
        "data_source": HUB_NAME,
        "prompt": [{"role": "user", "content": f"{problem['question']} {instruction}"}],
        "env_class": "gsm8k" if max_turns is None else "gsm8k_multi_turn",
        "reward_spec": {"method": "rule", "ground_truth": ground_truth},
        "extra_info": {
            "split": split,
            "index": index,
            "answer": problem["answer"],
            "question": problem["question"],
            **({} if max_turns is None else {"max_turns": max_turns}),
        },
    }


def _download(split: str, name: str) -> Path:
    """The hub's parquet file of a split, from the local cache if it is there."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import LocalEntryNotFoundError

    file = f"main/{split}-00000-of-00001.parquet"
    try:
        return Path(hf_hub_download(HUB_NAME, file, repo_type="dataset", local_files_only=True))
    except LocalEntryNotFoundError:
        pass
    try:
        # One plain request first: without a network the download itself retries for half a minute.
        get_hf_file_metadata(hf_hub_url(HUB_NAME, file, repo_type="dataset"))
        return Path(hf_hub_download(HUB_NAME, file, repo_type="dataset"))
    except Exception as error:  # which class it is depends on the library's version and HTTP client
        if is_disk_full(error):
            raise
        raise DataError(
            f"data '{name}': the Hugging Face hub did not give {HUB_NAME} "
            f"({type(error).__name__}). Without a network, name a folder with the original "
            f"train.jsonl and test.jsonl: skyrl data {name} --source DIR"
        ) from error
