"""Files and folders that are there whole or not at all, also after a kill or a power cut.

Everything is written aside under a name that starts with a dot and holds
``.tmp-``, brought to the disk, and renamed. What a killed process left under
such a name is rubbish, and `remove_leftovers` removes it.
"""

import contextlib
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

_LEFTOVER = re.compile(r"^\.(.+)\.tmp-\d+$")


def temporary_for(path: Path) -> Path:
    """Where to write ``path`` aside: a sibling, so that the rename stays in one file system."""
    return path.with_name(f".{path.name}.tmp-{os.getpid()}")


def write_atomically(path: Path, data: bytes) -> None:
    """Replace or create the file; readers see the old content or the new, never a part."""
    temporary = temporary_for(path)
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_folder_atomically(
    path: Path, write: Callable[[Path], None], *, keep_old: bool = False
) -> None:
    """Have ``write`` fill a folder aside, bring it to the disk, and put it at ``path``.

    Args:
        path: Where the folder goes; its parent is made if missing.
        write: Called once with the folder to fill. If it raises, nothing stays but what other
            processes still write then, which `remove_leftovers` finds.
        keep_old: What is at ``path`` already is renamed by `set_aside`; otherwise
            it is removed, after it was moved out of the way.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent, of=path)
    temporary = temporary_for(path)
    try:
        temporary.mkdir()
        write(temporary)
        sync_tree(temporary)
        if path.exists() and keep_old:
            set_aside(path)
        elif path.exists():
            discard(path)
        temporary.rename(path)
    except BaseException:
        # Not in place of what went wrong: where one rank has died, others may be writing on.
        with contextlib.suppress(OSError):
            remove(temporary)
        raise
    sync_folder(path.parent)


def sync_file(path: Path) -> None:
    """Bring a file's content to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Bring a folder's entries (names, renames) to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Bring everything below a folder to the disk, contents before names."""
    for root, _, files in os.walk(folder, topdown=False):
        for name in files:
            sync_file(Path(root, name))
        sync_folder(Path(root))


def remove_leftovers(folder: Path, of: Path | None = None) -> None:
    """Remove what killed writers left in ``folder``.

    The caller must be the only writer (see `skyrl_kernel.run.lock`).

    Args:
        folder: May be missing.
        of: Only what was to become this path; default: all.
    """
    if folder.is_dir():
        for entry in list(folder.iterdir()):
            name = _LEFTOVER.match(entry.name)
            if name and (of is None or name[1] == of.name):
                remove(entry)


def discard(path: Path) -> None:
    """Remove a folder; a kill half-way leaves a leftover, not a folder with files missing."""
    doomed = path.with_name(f"{temporary_for(path).name}0")  # the plain name may be in use
    path.rename(doomed)
    remove(doomed)


def remove(path: Path) -> None:
    """Remove a file or a whole folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def set_aside(path: Path) -> Path:
    """Rename ``path`` to ``<name>.1``, or the number after the highest there; the new path."""
    pattern = re.compile(re.escape(path.name) + r"\.(\d+)$")
    taken = [int(m[1]) for entry in path.parent.iterdir() if (m := pattern.match(entry.name))]
    target = path.with_name(f"{path.name}.{max(taken, default=0) + 1}")
    path.rename(target)
    sync_folder(path.parent)
    return target
