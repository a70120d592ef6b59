"""What the kernel hands to plugins."""

from collections.abc import (
    Sequence,
)
from typing import TYPE_CHECKING, Protocol, TypeVar

from pydantic import BaseModel

from skyrl_kernel.records import (
    IntArray,
    Message,
)

if TYPE_CHECKING:
    pass

Section = TypeVar("Section", bound=BaseModel)


class Settings(Protocol):
    """The config sections of one run, by their class: ``settings[MultiplyConfig]``.

    Kernel sections (`skyrl_kernel.config`) and sections of selected plugins are
    there; asking for another raises a `KeyError` that names the plugin to select.
    """

    def __getitem__(self, section: type[Section]) -> Section: ...


class Tokenizer(Protocol):
    """Text to ids and back, with the model's chat format."""

    eos_token_ids: frozenset[int]
    """Ids that end a turn."""

    def encode(self, text: str) -> IntArray:
        """[T] ids of plain text, no special tokens added."""
        ...

    def encode_chat(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> IntArray:
        """[T] ids of a conversation in the model's chat template."""
        ...

    def decode(self, tokens: IntArray, *, skip_special_tokens: bool = True) -> str:
        """Text of the ids, special tokens left out unless told otherwise."""
        ...
