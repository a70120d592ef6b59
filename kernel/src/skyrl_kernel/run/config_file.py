"""``config.yaml`` of a run: what was in force, and where each value came from.

    trainer:
      seed: 7  # command line
      logger: [console]  # default

The origins are comments: the file is an ordinary config file, and
``skyrl run --config`` reads it. Secrets are masked.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from skyrl_kernel.errors import ResumeError
from skyrl_kernel.masking import mask_secrets


def config_text(tree: Mapping[str, Any], origins: Mapping[str, str]) -> str:
    """The tree as YAML, one leaf per line with its origin behind it.

    Args:
        tree: Nested mappings of YAML values; tuples and paths are fine.
        origins: Dotted key → where its value came from. A mapping that has an
            origin of its own is one value, written on one line.

    Example:
        >>> print(config_text({"a": {"b": 1, "c": []}}, {"a.b": "command line"}), end="")
        a:
          b: 1  # command line
          c: []
    """
    return "".join(f"{line}\n" for line in _lines(mask_secrets(tree), origins, "", ""))


def read_config(path: Path) -> dict[str, Any]:
    """The tree of a ``config.yaml``, secrets still masked.

    Raises:
        ResumeError: It cannot be read.
    """
    import yaml

    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        tree, reason = None, " ".join(str(error).split())
    else:
        reason = f"it holds a {type(tree).__name__}, not keys"
    if not isinstance(tree, dict):
        raise ResumeError(
            f"{path} is damaged: {reason}. Restore it, or choose another trainer.run_name"
        )
    return tree


def _lines(
    tree: Mapping[str, Any], origins: Mapping[str, str], prefix: str, indent: str
) -> Iterator[str]:
    for key, value in tree.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, Mapping) and value and dotted not in origins:
            yield f"{indent}{_inline(key)}:"
            yield from _lines(value, origins, f"{dotted}.", f"{indent}  ")
        else:
            printable = (c if c.isprintable() else " " for c in origins.get(dotted, ""))
            origin = " ".join("".join(printable).split())
            comment = f"  # {origin}" if origin else ""
            yield f"{indent}{_inline(key)}: {_inline(value)}{comment}"


def _inline(value: Any) -> str:
    """One line of YAML."""
    import yaml

    options: dict[str, Any] = {"default_flow_style": True, "allow_unicode": True, "width": 2**30}
    text: str = yaml.safe_dump(_plain(value), sort_keys=False, **options)
    text = text.removesuffix("...\n").rstrip("\n")
    if len(text.splitlines()) > 1:
        # Line breaks of any kind in a string: only double quotes keep it on one line.
        text = yaml.safe_dump(_plain(value), sort_keys=False, default_style='"', **options)
    return text.strip(" \n")  # and no other blank: a no-break space may be the value


def _plain(value: Any) -> Any:
    """``value`` in the types that YAML's safe dumper knows."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
