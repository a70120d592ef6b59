"""A data set: the prompts of all its sources, in file order, each with its origin."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from skyrl_kernel.data.reader import Resolve, read_source
from skyrl_kernel.data.schema import check_row
from skyrl_kernel.records import Prompt


@dataclass(frozen=True, kw_only=True, slots=True)
class Dataset:
    """Prompts in the order of their sources and rows.

    The uid of a prompt is ``<number of its source>:<row>``, both from 0: it
    does not change when other rows are dropped, and is the same on resume.
    """

    prompts: tuple[Prompt, ...]
    sources: tuple[str, ...] = ()
    """The entries of ``data.train_data`` or ``data.val_data``, as written."""
    lengths: tuple[int, ...] | None = None
    """Tokens of each prompt in the chat template; None before `filter_long`."""

    @property
    def title(self) -> str:
        """Its sources, for messages."""
        return ", ".join(self.sources) or "the data"

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, index: int) -> Prompt:
        return self.prompts[index]

    def __iter__(self) -> Iterator[Prompt]:
        return iter(self.prompts)

    def origin(self, prompt: Prompt) -> str:
        """Where a prompt came from, for messages: ``'train.parquet', row 17 (from 0)``."""
        source, row = prompt.uid.split(":")
        return f"'{self.sources[int(source)]}', row {row} (from 0)"

    def env_classes(self) -> dict[str, str]:
        """Each env that the rows name (or get by default) → the origin of its first row."""
        first: dict[str, str] = {}
        for prompt in self.prompts:
            if prompt.env_class not in first:
                first[prompt.env_class] = self.origin(prompt)
        return first

    def fingerprint(self) -> str:
        """Hex digest of all rows in order: two data sets train alike if it is equal."""
        digest = hashlib.sha256()
        for prompt in self.prompts:
            content = [prompt.uid, prompt.env_class, prompt.messages, prompt.extras]
            digest.update(json.dumps(content, default=str).encode())
        return digest.hexdigest()


def load_prompts(
    sources: Sequence[str],
    *,
    default_env: str,
    resolve: Resolve | None = None,
    needs_prompt: bool = True,
) -> Dataset:
    """Read and check every row of every source; the sources are concatenated.

    Args:
        sources: ``data.train_data`` or ``data.val_data``; may be empty.
        default_env: ``environment.env_class``, for rows that name no env.
        resolve: Gives the rows of a ``NAME:SPLIT``, or None if it is no plugin's.
        needs_prompt: False where the stage `generate` says which columns it reads.

    Raises:
        DataError: A source is missing, unreadable or empty, or a row has the wrong
            schema; names source, row and column.
    """
    prompts = [
        check_row(
            row,
            source=source,
            index=index,
            uid=f"{number}:{index}",
            default_env=default_env,
            needs_prompt=needs_prompt,
        )
        for number, source in enumerate(sources)
        for index, row in enumerate(read_source(source, resolve))
    ]
    return Dataset(prompts=tuple(prompts), sources=tuple(sources))
