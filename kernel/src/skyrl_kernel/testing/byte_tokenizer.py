"""One token per byte, and a chat format that writes roles and ends turns as most models' does."""

from collections.abc import Sequence

import numpy as np

from skyrl_kernel.records import IntArray, Message

TURN, END = 256, 300
"""Start of a turn, and its end."""


class ByteTokenizer:
    r"""Keeps the `skyrl_kernel.protocols.Tokenizer` protocol; a turn is ``TURN role newline text END``.

    Example:
        >>> tokenizer = ByteTokenizer()
        >>> chat = [{"role": "user", "content": "hi"}]
        >>> tokenizer.decode(tokenizer.encode_chat(chat, add_generation_prompt=True))
        '<user\nhi><assistant\n'
    """

    eos_token_ids = frozenset({END})

    def encode(self, text: str) -> IntArray:
        """[T] one id per byte."""
        return np.array(list(text.encode()), dtype=np.int32)

    def encode_chat(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> IntArray:
        """[T] ids of the conversation."""
        ids: list[int] = []
        for message in messages:
            ids += [TURN, *f"{message['role']}\n{message['content']}".encode(), END]
        if add_generation_prompt:
            ids += [TURN, *b"assistant\n"]
        return np.array(ids, dtype=np.int32)

    def decode(self, tokens: IntArray, *, skip_special_tokens: bool = True) -> str:
        """Text of the ids, a turn's start and end as ``<`` and ``>`` whatever is asked."""
        names = {TURN: "<", END: ">"}
        return "".join(names.get(int(token)) or chr(token) for token in tokens)
