"""One token per character, and a chat format that only appends."""

from collections.abc import Sequence

import numpy as np

from skyrl_kernel.records import IntArray, Message

END = 0
"""Ends a turn."""
ROLES = {"system": 1, "user": 2, "assistant": 3, "tool": 4}
FIRST_CHARACTER = 8
"""Id of the character with code point 0; what is below is special."""
_SPECIAL = {END: "<end>", **{number: f"<{role}>" for role, number in ROLES.items()}}


class CharTokenizer:
    """Keeps the `skyrl_kernel.protocols.Tokenizer` protocol; reversible for any text.

    A message is its role's id, its characters, and `END`; the generation prompt
    is the id of ``assistant``.

    Example:
        >>> tokenizer = CharTokenizer()
        >>> chat = [{"role": "user", "content": "hi"}]
        >>> tokenizer.encode_chat(chat, add_generation_prompt=True).tolist()
        [2, 112, 113, 0, 3]
        >>> tokenizer.decode(tokenizer.encode("hi"))
        'hi'
    """

    eos_token_ids = frozenset({END})

    def encode(self, text: str) -> IntArray:
        """[T] one id per character."""
        return np.array([ord(character) + FIRST_CHARACTER for character in text], dtype=np.int32)

    def encode_chat(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> IntArray:
        """[T] ids of the conversation."""
        rows: list[IntArray] = []
        for message in messages:
            role = np.array([ROLES[message["role"]]], dtype=np.int32)
            rows += [role, self.encode(message["content"]), np.array([END], dtype=np.int32)]
        if add_generation_prompt:
            rows.append(np.array([ROLES["assistant"]], dtype=np.int32))
        return np.concatenate(rows) if rows else np.zeros(0, dtype=np.int32)

    def decode(self, tokens: IntArray, *, skip_special_tokens: bool = True) -> str:
        """Text of the ids; special ones are left out, or stand as ``<user>`` and ``<end>``."""
        special = {} if skip_special_tokens else _SPECIAL
        return "".join(
            chr(token - FIRST_CHARACTER) if token >= FIRST_CHARACTER else special.get(token, "")
            for token in tokens.tolist()
        )
