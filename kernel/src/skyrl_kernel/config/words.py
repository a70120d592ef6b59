"""YAML as people mean it: what is no number, true, false or null is text.

YAML 1.1 reads ``on`` as True, ``007`` as 7, ``1_000`` as 1000, ``12:30`` as 750
and ``2026-01-01`` as a date, so that a run name would become something else; it
reads ``1e-6`` as text; and of two equal keys it drops the first without a word.
None of that happens here.
"""

import re
from typing import Any

import yaml

_NUMBER = r"(?:0|[1-9][0-9]*)"
_EXPONENT = r"[eE][-+]?[0-9]+"
_PLAIN = {
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": rf"[-+]?{_NUMBER}",
    "float": (
        rf"[-+]?(?:{_NUMBER}\.[0-9]*(?:{_EXPONENT})?|\.[0-9]+(?:{_EXPONENT})?|{_NUMBER}{_EXPONENT})"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
    ),
    "merge": "<<",
}
"""Tag → the plain scalars that have it (the core schema of YAML 1.2, and merge keys)."""


_KEY = re.compile(r"((?:^|(?<=[{,]))\s*[A-Za-z_]\w*):(?=[^\s/])")
"""``key:`` of a mapping, right before its value; YAML reads the two as one key."""


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {}  # noqa: RUF012 -- yaml's own way to set them per class

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key '{key.value}' stands there twice", problem_mark=key.start_mark
                )
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


for _tag, _pattern in _PLAIN.items():
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), None
    )


def read_yaml(text: str) -> Any:
    """The content of a YAML file.

    Raises:
        yaml.YAMLError: It is none.
    """
    return yaml.load(text, _Loader)  # a SafeLoader


def read_word(text: str) -> Any:
    """The value of a ``key=value`` word: a list or mapping in brackets, a quoted text, or a scalar.

    A mapping may be written as SkyRL's command line takes it, without blanks.

    Example:
        >>> [read_word(text) for text in ("3", "1e-6", "true", "null", "007", "a: b #c", "['x', 2]")]
        [3, 1e-06, True, None, '007', 'a: b #c', ['x', 2]]
        >>> read_word("{a:1,b:http://x}")
        {'a': 1, 'b': 'http://x'}
    """
    text = text.strip()
    if text[:1] in ("[", "{", "'", '"'):
        try:
            value = read_yaml(text)
            return read_yaml(_KEY.sub(r"\1: ", text)) if _runs_together(value) else value
        except yaml.YAMLError:
            return text
    loader = _Loader("")
    tag = loader.resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]
    return loader.construct_object(yaml.ScalarNode(tag, text))


def _runs_together(value: Any) -> bool:
    """True if a key has swallowed its value."""
    if isinstance(value, dict):
        return any(_KEY.match(str(key)) or _runs_together(below) for key, below in value.items())
    return isinstance(value, list) and any(map(_runs_together, value))
