"""Trainer and engine in two real environments, whose packages clash."""

import os
import site
import sys
import venv
from pathlib import Path

import pytest

from skyrl_kernel.plugins import discover
from skyrl_kernel.ray.environment import prepare
from skyrl_kernel.slots import BACKENDS
from skyrl_kernel.testing.distributions import make_distribution, on_path
from skyrl_kernel.testing.scripted import installed, run_scripted

PLUGIN = """
from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.testing.scripted import Script, ScriptedEngine, ScriptedTrainer

def need(version):
    import pinned
    assert pinned.VERSION == version, f"pinned {pinned.VERSION} in {pinned.__file__}"

@hookimpl
def make_trainer(name):
    if name == "needs_one":
        need(1)
        return ScriptedTrainer(Script())

@hookimpl
def make_engine(name):
    if name == "needs_two":
        need(2)
        return ScriptedEngine(Script())
"""
MANIFEST = """
[needs_one]
slots = ["trainer.strategy"]

[needs_two]
slots = ["generator.inference_engine.backend"]
[needs_two.runtime_env]
py_executable = "{python}"
"""


def environment(folder: Path, pinned: int) -> Path:
    """An environment with all that this one has, and one version of a package; its interpreter."""
    venv.create(folder, symlinks=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = folder / "lib" / version / "site-packages"
    lines = [f"import site; site.addsitedir({one!r})" for one in site.getsitepackages()]
    (packages / "all.pth").write_text("\n".join(lines))
    (packages / "pinned.py").write_text(f"VERSION = {pinned}\n")
    return folder / "bin" / "python"


@pytest.mark.slow
def test_an_engine_and_a_trainer_with_clashing_pins_run_in_one_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare()
    one, two = environment(tmp_path / "one", 1), environment(tmp_path / "two", 2)
    plugins = tmp_path / "plugins"
    path = os.pathsep.join([str(plugins), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path.rstrip(os.pathsep))
    with installed(plugins), on_path(plugins):
        make_distribution(
            plugins,
            "skyrl-clash",
            modules={"skyrl_clash.plugin": PLUGIN},
            files={"skyrl_clash/plugin.toml": MANIFEST.format(python=two)},
            entry_points={
                BACKENDS: {name: "skyrl_clash.plugin" for name in ("needs_one", "needs_two")}
            },
        )
        discover(refresh=True)
        result = run_scripted(
            tmp_path / "runs",
            "trainer.runtime=ray",
            "trainer.strategy=needs_one",
            "generator.inference_engine.backend=needs_two",
            f"trainer.ray.trainer_env={{py_executable: {one}}}",
        )
    assert result.status == "finished"
    assert result.step == 4
