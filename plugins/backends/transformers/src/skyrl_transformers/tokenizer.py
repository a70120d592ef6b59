"""The model's own tokenizer and chat template, behind the kernel's `Tokenizer` protocol."""

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer

from skyrl_kernel.errors import ModelError
from skyrl_kernel.records import IntArray, Message
from skyrl_transformers.loading import read_json

_MAX_CACHED_TOKENS = 4_000_000
"""Ids of conversations that are kept: those of an epoch's prompts, some tens of megabytes."""


class HuggingFaceTokenizer:
    """Keeps the `skyrl_kernel.protocols.Tokenizer` protocol.

    Args:
        model: A Hugging Face directory (or hub name) with tokenizer files.
        chat_template_kwargs: Passed to the chat template, such as
            ``{"enable_thinking": False}``.
        chat_template: Jinja text; default: the model's own.

    Raises:
        ModelError: No tokenizer can be read from ``model``.
    """

    def __init__(
        self,
        model: Path,
        chat_template_kwargs: Mapping[str, bool | int | float | str] | None = None,
        chat_template: str | None = None,
    ) -> None:
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(str(model))
        except Exception as error:  # transformers raises many types for a bad directory
            reason = str(error).strip().splitlines()
            raise ModelError(
                f"no tokenizer can be read from '{model}': {reason[0] if reason else error!r}. A "
                "model directory carries tokenizer.json and tokenizer_config.json; copy them there"
            ) from error
        if chat_template is not None:
            self._tokenizer.chat_template = chat_template
        self._model = model
        self._kwargs = dict(chat_template_kwargs or {})
        self._encoded: dict[Hashable, IntArray] = {}
        self._num_encoded_tokens = 0
        self.eos_token_ids = eos_token_ids(model, self._tokenizer.eos_token_id)

    def encode(self, text: str) -> IntArray:
        """[T] ids of plain text, no special tokens added."""
        return np.asarray(self._tokenizer.encode(text, add_special_tokens=False), dtype=np.int32)

    def encode_chat(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> IntArray:
        """[T] ids of a conversation in the model's chat template; read-only.

        A template costs more than a small model's token, and each trajectory of a
        group asks for the same prompt: what was encoded once is kept.

        Raises:
            ModelError: The tokenizer has no chat template.
        """
        if self._tokenizer.chat_template is None:
            raise ModelError(
                f"the tokenizer of '{self._model}' has no chat template, so messages cannot be "
                "turned into tokens; use the model's instruct variant, or put a "
                "chat_template.jinja into its directory"
            )
        key = (add_generation_prompt, *(repr(sorted(message.items())) for message in messages))
        if key not in self._encoded:
            ids = self._tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tokenize=True,
                add_generation_prompt=add_generation_prompt,
                return_dict=False,
                **self._kwargs,
            )
            encoded: IntArray = np.asarray(ids, dtype=np.int32)
            encoded.flags.writeable = False
            self._encoded[key] = encoded
            self._num_encoded_tokens += len(encoded)
            while self._num_encoded_tokens > _MAX_CACHED_TOKENS and len(self._encoded) > 1:
                self._num_encoded_tokens -= len(self._encoded.pop(next(iter(self._encoded))))
            return encoded
        return self._encoded[key]

    def decode(self, tokens: IntArray, *, skip_special_tokens: bool = True) -> str:
        """Text of the ids, special tokens left out unless told otherwise."""
        ids = np.asarray(tokens).tolist()
        return str(self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens))


def eos_token_ids(model: Path, tokenizer_eos: int | None) -> frozenset[int]:
    """Ids that end a turn: the tokenizer's, and those that the model's generation config names.

    Chat models often name several, such as an end-of-turn and an end-of-text id.
    Without ``generation_config.json`` the model config's are taken.
    """
    named = read_json(model / "generation_config.json").get("eos_token_id")
    if named is None:
        named = read_json(model / "config.json").get("eos_token_id")
    ids = {tokenizer_eos, *(named if isinstance(named, list) else [named])}
    return frozenset(int(token) for token in ids if token is not None)
