"""Secrets never reach a file or a screen: keys that name one, and text that looks like one.

`mask_secrets` is applied to everything that the kernel writes for people: the
log, ``config.yaml``, and the config that observers see.
"""

import itertools
import os
import re
from collections.abc import Mapping
from typing import Any

MASK = "***"

_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")

_SECRET_WORDS = frozenset({
    *("password", "passwd", "passphrase", "pwd", "secret", "secrets", "credential", "credentials"),
    *("apikey", "authorization", "cookie", "bearer"),
})  # fmt: skip
_SECRET_PAIRS = frozenset(
    {("api", "key"), ("access", "key"), ("private", "key"), ("secret", "key"), ("auth", "key")}
)
_VOCABULARY_TOKENS = frozenset({
    *("eos", "bos", "pad", "unk", "sep", "cls", "mask", "stop", "start", "end", "think", "chat"),
    *("image", "audio", "video", "special", "additional", "tool", "prompt", "per", "next", "last"),
})  # fmt: skip
"""What stands before ``token`` where a tokenizer's token is meant, not a key."""

_SHAPES = re.compile(
    r"""
      \b(?:sk|pk|rk)-[\w-]{16,}                    # OpenAI, Anthropic, Stripe
    | \bhf_[A-Za-z0-9]{16,}                        # Hugging Face
    | \bgh[pousr]_\w{20,} | \bgithub_pat_\w{20,}   # GitHub
    | \bglpat-[\w-]{16,}                           # GitLab
    | \bxox[abeoprs]-[\w-]{10,}                    # Slack
    | \b(?:AKIA|ASIA)[0-9A-Z]{16}\b                # AWS
    | \bAIza[\w-]{30,}                             # Google
    | \bwandb_v\d_\w{20,}                          # Weights & Biases
    | \beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]{8,}         # JSON web token
    | -----BEGIN[ ][A-Z ]*PRIVATE[ ]KEY-----[\s\S]*?(?:-----END[ ][A-Z ]*PRIVATE[ ]KEY-----|\Z)
    | (?<=://)[^\s/:@]*:[^\s/@]+(?=@)              # user:password@ of an address
    | (?i:(?<=\bbearer[ ]))[\w.~+/=-]{8,}
    | (?i:(?<=\bbasic[ ]))[\w+/=]{16,}
    """,
    re.VERBOSE,
)
_KEY = re.compile(r"""(?<![\w.-])([\w.-]+)["']?\s*[=:]\s*["']?""")
"""``api_key=`` or ``"password": "``: a key, and all that stands before its value."""
_VALUE = re.compile(r"""[^\s"',;&]*""")

_SHORTEST_KNOWN = 8
"""Environment values shorter than this would mask ordinary words."""


def is_secret_key(key: str) -> bool:
    """True if the last part of a dotted key says that its value is a secret.

    Example:
        >>> [is_secret_key(key) for key in ("api_key", "HF_TOKEN", "eos_token", "max_tokens")]
        [True, True, False, False]
    """
    words = [word.lower() for word in _WORDS.findall(key.rpartition(".")[2])]
    if words == ["pwd"]:  # the working directory, not a password
        return False
    if _SECRET_WORDS.intersection(words) or _SECRET_PAIRS.intersection(itertools.pairwise(words)):
        return True
    return words[-1:] == ["token"] and _VOCABULARY_TOKENS.isdisjoint(words[-2:-1])


def known_secrets(environment: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Values of the environment's secret variables, longest first.

    A variable that holds the path of a file holds no secret itself.
    """
    values = {
        value
        for key, value in (os.environ if environment is None else environment).items()
        if is_secret_key(key) and len(value) >= _SHORTEST_KNOWN and not os.path.exists(value)
    }
    return tuple(sorted(values, key=len, reverse=True))


def mask_secrets(value: Any, known: tuple[str, ...] = ()) -> Any:
    """A copy of ``value`` in which `MASK` stands for every secret.

    Mappings, lists and tuples are gone through; text loses what has the shape
    of a token, an ``api_key=…`` or a ``user:password@``; under a secret key,
    text and numbers go whole (under ``…token`` text only: numbers are ids).

    Args:
        value: Anything; what is neither text nor a container is returned as it is.
        known: Exact strings to mask, such as `known_secrets`.

    Example:
        >>> mask_secrets({"path": "a/b", "wandb": {"api_key": "0123"}, "eos_token": "<end>"})
        {'path': 'a/b', 'wandb': {'api_key': '***'}, 'eos_token': '<end>'}
    """
    if isinstance(value, str):
        return _mask_text(value, known)
    if isinstance(value, Mapping):
        return {key: _mask_item(str(key), item, known) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)([mask_secrets(item, known) for item in value])
    return value


def _mask_item(key: str, item: Any, known: tuple[str, ...]) -> Any:
    if not is_secret_key(key) or item is None or item == "" or isinstance(item, bool):
        return mask_secrets(item, known)
    if isinstance(item, str):
        return MASK
    if isinstance(item, Mapping):
        return {inner: _mask_item(key, value, known) for inner, value in item.items()}
    if isinstance(item, list | tuple):
        return [_mask_item(key, value, known) for value in item]
    return item if key.lower().endswith("token") else MASK


def _mask_text(text: str, known: tuple[str, ...]) -> str:
    for secret in known:
        text = text.replace(secret, MASK)
    text = _SHAPES.sub(MASK, text)
    kept, done = "", 0
    for key in _KEY.finditer(text):
        if key.start() < done or not is_secret_key(key[1]):
            continue
        value = _VALUE.match(text, key.end())
        if value and value[0]:
            kept += text[done : key.end()] + MASK
            done = value.end()
    return kept + text[done:]
