"""The hook of ``builtin``: models that are made on this machine on first use."""

import os
import re
from collections.abc import Callable
from pathlib import Path

from skyrl_kernel.errors import ModelError
from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.progress import say
from skyrl_kernel.run.atomic import write_folder_atomically

DEFAULT_SEED = 0
_NAME = re.compile(r"^(tiny|tiny-retry)(?:@(\d+))?$")


@hookimpl
def load_model(path: str) -> Path | None:
    """``builtin:tiny`` or ``builtin:tiny-retry``; with ``@SEED`` of another teacher and start."""
    name, _, rest = path.partition(":")
    if name != "builtin":
        return None
    match = _NAME.match(rest)
    if match is None:
        raise ModelError(
            f"no built-in model '{path}'; there are builtin:tiny and builtin:tiny-retry, and each "
            "with @SEED, such as builtin:tiny@3"
        )
    return tiny(int(match.group(2) or DEFAULT_SEED), match.group(1))


def cache_folder() -> Path:
    """Where made models are kept: ``SKYRL_CACHE``, or the user's cache folder."""
    from platformdirs import user_cache_path

    root = os.environ.get("SKYRL_CACHE")
    return (Path(root).expanduser() if root else user_cache_path("skyrl")) / "models"


def tiny(seed: int, name: str = "tiny") -> Path:
    """A tiny model's directory; made first if it is not in the cache."""
    from skyrl_tiny.recipe import RECIPES, build

    recipe = RECIPES[name]
    folder = cache_folder() / f"{name}-{recipe.digest()}-seed{seed}"
    make_once(folder, lambda empty: build(seed, empty, recipe))
    return folder


def make_once(folder: Path, make: Callable[[Path], None]) -> None:
    """Have ``make`` fill ``folder``, unless it is there.

    Of several processes that ask at once, one makes it and the others wait. A
    killed one leaves a hidden leftover, which the next one removes.

    Args:
        folder: Appears whole or not at all.
        make: Called with an empty folder.
    """
    from filelock import FileLock, Timeout

    if folder.is_dir():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{folder}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"another process is making {folder.name}; waiting for it")
        lock.acquire()
    try:
        if not folder.is_dir():
            write_folder_atomically(folder, make)
    finally:
        lock.release()
