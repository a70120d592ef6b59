"""The hook of ``builtin``: models that are made on this machine on first use."""

import os
import re
from pathlib import Path

from skyrl_kernel.errors import ModelError
from skyrl_kernel.hookspecs import hookimpl

DEFAULT_SEED = 0
_TINY = re.compile(r"^tiny(?:@(\d+))?$")


@hookimpl
def load_model(path: str) -> Path | None:
    """``builtin:tiny``, or ``builtin:tiny@SEED`` for another teacher and other initial weights."""
    name, _, rest = path.partition(":")
    if name != "builtin":
        return None
    match = _TINY.match(rest)
    if match is None:
        raise ModelError(
            f"no built-in model '{path}'; there are builtin:tiny and builtin:tiny@SEED, "
            "such as builtin:tiny@3"
        )
    return tiny(int(match.group(1) or DEFAULT_SEED))


def cache_folder() -> Path:
    """Where made models are kept: ``SKYRL_CACHE``, or the user's cache folder."""
    from platformdirs import user_cache_path

    root = os.environ.get("SKYRL_CACHE")
    return (Path(root).expanduser() if root else user_cache_path("skyrl")) / "models"


def tiny(seed: int) -> Path:
    """The tiny model's directory; made first if it is not in the cache."""
    from filelock import FileLock

    from skyrl_tiny.recipe import build, digest

    target = cache_folder() / f"tiny-{digest()}-seed{seed}"
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_suffix(".lock")):  # another process may be making it
            if not target.is_dir():
                build(seed, target)
    return target
