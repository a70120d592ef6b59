"""An interpreter that cannot be a process of Ray is refused before Ray is told to start it."""

import os
import sys
from pathlib import Path

import pytest

pytest.importorskip("ray")

import ray

from skyrl_kernel.errors import CapabilityError
from skyrl_kernel.ray.interpreter import require_python


@pytest.mark.parametrize(
    "environment",
    [
        pytest.param({}, id="none"),
        pytest.param({"py_executable": sys.executable}, id="this-one"),
        pytest.param({"py_executable": "uv run --with skyrl-kernel"}, id="made-when-called"),
    ],
)
def test_what_may_be_one_is_taken(environment: dict[str, str]) -> None:
    require_python(environment, "engine 0")


def test_a_path_without_a_program_is_named(tmp_path: Path) -> None:
    path = tmp_path / "bin/python"
    with pytest.raises(
        CapabilityError, match=rf"^engine 0: py_executable={path} of its runtime_env is no program"
    ):
        require_python({"py_executable": str(path)}, "engine 0")


@pytest.mark.parametrize(
    ("versions", "told"),
    [((), "no Ray"), (("1.2.3",), r"Ray 1\.2\.3")],
    ids=["without", "another"],
)
def test_an_environment_with_another_ray_or_none_is_told_what_to_install(
    tmp_path: Path, versions: tuple[str, ...], told: str
) -> None:
    for version in versions:
        info = tmp_path / f"ray-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: ray\nVersion: {version}\n")
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')  # without site-packages
    python.chmod(0o755)
    environment = {
        "py_executable": str(python),
        "env_vars": {"PYTHONPATH": str(tmp_path), "PATH": os.environ["PATH"]},
    }
    with pytest.raises(
        CapabilityError,
        match=rf"has {told}, and this run has Ray .* -m pip install ray=={ray.__version__}$",
    ):
        require_python(environment, "engine 0")
