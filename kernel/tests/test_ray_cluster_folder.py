"""What killed runs leave of their Ray is removed by the next one, and nothing else is."""

import fcntl
import os
from pathlib import Path

import pytest

pytest.importorskip("ray")

from skyrl_kernel.ray.cluster import _sweep


def folder_of_a_run(root: Path, name: str, *, age_s: float = 3600) -> Path:
    folder = root / f"skyrl-ray-{name}"
    folder.mkdir()
    (folder / "held").touch()
    grow_old(folder, age_s)
    return folder


def grow_old(path: Path, age_s: float = 3600) -> None:
    then = path.lstat().st_mtime - age_s
    os.utime(path, (then, then), follow_symlinks=False)


def test_folders_without_an_owner_are_removed_and_those_in_use_or_just_made_are_kept(
    tmp_path: Path,
) -> None:
    left = folder_of_a_run(tmp_path, "left")
    held = folder_of_a_run(tmp_path, "held")
    young = folder_of_a_run(tmp_path, "young", age_s=0)
    with (held / "held").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        grow_old(held)
        _sweep(tmp_path)
    assert [path for path in (left, held, young) if path.exists()] == [held, young]


def test_a_link_with_such_a_name_leads_nowhere(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    grow_old(precious)
    link = tmp_path / "skyrl-ray-link"
    link.symlink_to(precious)
    grow_old(link)
    _sweep(tmp_path)
    assert list(precious.iterdir()) == []
    assert link.is_symlink()
