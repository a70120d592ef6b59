"""Checkpoints: whole or absent, checked before they are believed, pruned.

    checkpoints/global_step_20/
        …               what the trainer wrote
        state.json      the controller's state
        manifest.json   size and SHA-256 of every other file

A checkpoint is written aside, brought to the disk and renamed, so a kill at any
moment leaves the ones before it and no half of a new one. Damage after that
(a bad disk, a truncated copy) is found by the manifest; a damaged checkpoint is
reported and skipped, never deleted.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skyrl_kernel.errors import CheckpointError, ResumeError
from skyrl_kernel.run.atomic import (
    discard,
    remove_leftovers,
    set_aside,
    write_folder_atomically,
)

STATE = "state.json"
MANIFEST = "manifest.json"
_FORMAT = 1
_NAME = re.compile(r"^global_step_(\d+)$")
_HASH_THREADS = 4
"""hashlib releases the interpreter lock, so shards are hashed side by side."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """One verified checkpoint."""

    step: int
    path: Path


def save_checkpoint(
    folder: Path,
    step: int,
    write: Callable[[Path], None],
    state: Mapping[str, Any],
    keep: int = -1,
) -> Path:
    """Write ``global_step_<step>`` into ``folder``, then prune.

    A folder of that name already there (a damaged one that this run has caught
    up with) is renamed to ``global_step_<step>.1``.

    Args:
        folder: The run's ``checkpoints`` folder; made if missing. One writer only.
        step: The step that the checkpoint ends.
        write: Called once with the folder to write into; the names ``state.json``
            and ``manifest.json`` are taken.
        state: The controller's state: JSON values with string keys. Floats keep
            their bits, NaN and infinities included; tuples come back as lists.
        keep: Newest checkpoints kept, this one included; -1 keeps all.

    Returns:
        The checkpoint's folder.

    Raises:
        TypeError: ``state`` would not come back from JSON as it is.
        OSError: It could not be written; what was there before is untouched.
    """
    text = dump_json(state, "the controller's state")

    def fill(temporary: Path) -> None:
        write(temporary)
        for name in (STATE, MANIFEST):
            if (temporary / name).exists():
                raise ValueError(f"the trainer wrote {name}, a name that the kernel uses")
        (temporary / STATE).write_text(text, encoding="utf-8")
        files = {
            name: {"bytes": (temporary / name).stat().st_size, "sha256": digest}
            for name, digest in _hash_files(temporary, _files_of(temporary)).items()
        }
        manifest = {"format": _FORMAT, "step": step, "files": files}
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")

    remove_leftovers(folder)
    target = folder / f"global_step_{step}"
    write_folder_atomically(target, fill, keep_old=True)
    _prune(folder, step, keep)
    return target


def latest_checkpoint(folder: Path, *, clean: bool = True) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint whose manifest holds, and why newer ones were skipped.

    Reads every byte of the checkpoints that it looks at.

    Args:
        folder: The run's ``checkpoints`` folder.
        clean: Remove what killed writers left; then the caller must hold the run
            folder. False touches nothing, for readers beside a run.

    Returns:
        The checkpoint, or None if there is none; and one sentence for each
        damaged checkpoint that is newer, newest first.
    """
    if clean:
        remove_leftovers(folder)
    damaged: list[str] = []
    for step, path in _checkpoints(folder):
        problem = verify(path)
        if problem is None:
            return Checkpoint(step=step, path=path), damaged
        damaged.append(f"{path} is damaged: {problem}")
    return None, damaged


def checkpoint_at(path: Path) -> Checkpoint:
    """The checkpoint at ``trainer.resume_path``, verified.

    Raises:
        ResumeError: There is no ``global_step_N`` folder; says which ones are near.
        CheckpointError: It is damaged; says how.
    """
    name = _NAME.match(path.name)
    if name is None or not path.is_dir():
        near = [
            *_checkpoints(path),
            *_checkpoints(path / "checkpoints"),
            *_checkpoints(path.parent),
        ]
        found = ", ".join(str(other) for _, other in near) or "none"
        raise ResumeError(
            f"trainer.resume_path={path} is no checkpoint: a folder named global_step_N is "
            f"wanted; near there: {found}"
        )
    problem = verify(path)
    if problem is not None:
        raise CheckpointError(
            f"checkpoint {path} is damaged: {problem}; take another, or let "
            "trainer.resume_mode=latest find the newest whole one"
        )
    return Checkpoint(step=int(name[1]), path=path)


def load_state(checkpoint: Checkpoint) -> dict[str, Any]:
    """The controller's state, as `save_checkpoint` was given it."""
    state: dict[str, Any] = json.loads((checkpoint.path / STATE).read_text(encoding="utf-8"))
    return state


def verify(path: Path, *, hashes: bool = True) -> str | None:
    """What is wrong with a checkpoint, or None.

    Args:
        path: A ``global_step_N`` folder.
        hashes: False compares names and sizes only, which reads almost nothing.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
        step, files = manifest["step"], manifest["files"]
        expected = {name: (entry["bytes"], entry["sha256"]) for name, entry in files.items()}
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} is unreadable"
    if manifest.get("format") != _FORMAT:
        return f"its format is {manifest.get('format')!r}, this kernel reads {_FORMAT}"
    if path.name != f"global_step_{step}":
        return f"its manifest is that of step {step}"
    if STATE not in expected:
        return f"{STATE} is not in its manifest"
    for name, (size, _) in expected.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes, {size} were written"
    if hashes:
        try:
            found = _hash_files(path, list(expected))
        except OSError as error:
            return f"it cannot be read: {error}"
        for name, digest in found.items():
            if digest != expected[name][1]:
                return f"{name} is not what was written (SHA-256 differs)"
    return None


def set_aside_later(folder: Path, step: int) -> list[Path]:
    """Rename checkpoints of steps after ``step`` to ``global_step_N.1``; the new paths.

    For a run that goes back: without this, its next resume would take the
    checkpoint of the branch that it left.
    """
    return [set_aside(path) for found, path in _checkpoints(folder) if found > step]


def _checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """(step, path) of every ``global_step_N`` in ``folder``, newest first."""
    if not folder.is_dir():
        return []
    found = [
        (int(name[1]), entry)
        for entry in folder.iterdir()
        if (name := _NAME.match(entry.name)) and entry.is_dir()
    ]
    return sorted(found, reverse=True)


def _prune(folder: Path, step: int, keep: int) -> None:
    """Remove all but the newest ``keep`` up to ``step``; incomplete ones neither count nor go."""
    if keep < 0:
        return
    older = [path for found, path in _checkpoints(folder) if found <= step]
    for path in [path for path in older if verify(path, hashes=False) is None][keep:]:
        discard(path)


def _files_of(folder: Path) -> list[str]:
    """Relative paths of all files below ``folder``, sorted."""
    paths = (Path(root, name) for root, _, names in os.walk(folder) for name in names)
    return sorted(path.relative_to(folder).as_posix() for path in paths)


def _hash_files(folder: Path, names: list[str]) -> dict[str, str]:
    """SHA-256 by relative path."""

    def digest(name: str) -> str:
        with (folder / name).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    with ThreadPoolExecutor(_HASH_THREADS) as pool:
        return dict(zip(names, pool.map(digest, names), strict=True))


def dump_json(value: Any, what: str) -> str:
    """``value`` as JSON text, if that gives it back; Python's JSON, which knows NaN and infinities.

    Raises:
        TypeError: It would not come back; names ``what`` and the place in it.
    """
    _require_string_keys(value, what)
    try:
        return json.dumps(dict(value) if isinstance(value, Mapping) else value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{what} does not fit in JSON: {error}") from error


def _require_string_keys(value: Any, where: str) -> None:
    """JSON would turn other keys into strings without a word."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"{where} has the key {key!r}; JSON keeps string keys only")
            _require_string_keys(item, f"{where}[{key!r}]")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _require_string_keys(item, f"{where}[{index}]")
