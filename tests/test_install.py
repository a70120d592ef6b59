"""What `make` does on a machine that has nothing but Python."""

import os
import shutil
import subprocess

import pytest
from workspace import ROOT


def make(folder, *arguments):
    """Run make as a shell would, not as a part of the make that runs this suite."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")} | {"LC_ALL": "C"}
    command = ["make", "--no-print-directory", *arguments]
    return subprocess.run(command, cwd=folder, env=clean, text=True, capture_output=True)


@pytest.fixture
def copy(tmp_path):
    """The tree as a clone has it: nothing installed, nothing cached."""
    skip = shutil.ignore_patterns(".venv", ".git", ".*_cache", "__pycache__", "runs", ".hypothesis")
    return shutil.copytree(ROOT, tmp_path / "clone", ignore=skip)


def test_a_python_that_is_too_old_is_refused_and_nothing_is_left(copy):
    old = copy / "old-python"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.9.2" && exit 0\nexit 1\n')
    old.chmod(0o755)
    refused = make(copy, "install", f"PYTHON={old}")
    assert refused.returncode == 2
    assert f"needs Python 3.11 or newer; '{old}' is: Python 3.9.2" in refused.stderr
    assert "make PYTHON=" in refused.stderr
    assert not (copy / ".venv").exists()


@pytest.mark.slow
def test_a_fresh_clone_installs_once_and_again_only_after_a_change(copy):
    """Needs the package index."""
    first = make(copy, "install")
    assert first.returncode == 0, first.stderr
    answer = subprocess.run(
        [copy / ".venv/bin/skyrl", "plugins", "list"], cwd=copy, text=True, capture_output=True
    )
    assert answer.returncode == 0, answer.stderr
    assert "grpo" in answer.stdout
    assert "Nothing to be done" in make(copy, "install").stdout
    (copy / "plugins/envs/multiply/pyproject.toml").touch()
    assert ".ci/install" in make(copy, "-n", "install").stdout
