"""Fresh environments outside the workspace, filled from wheels, as a user's would be.

Third-party packages are too heavy to install again for every test (torch alone is gigabytes),
so an environment gets links to those of the running interpreter; but only to the ones that the
installed wheels declare, directly or through others. Whatever a package uses without saying so
is missing there, and nothing of the editable workspace can leak in.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from importlib.metadata import Distribution, PathDistribution, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
SITE = Path(sysconfig.get_paths()["purelib"])


def package_folders() -> list[Path]:
    """Every distribution of the workspace: the kernel, then the plugins."""
    return [ROOT / "kernel", *(p.parent for p in sorted(ROOT.glob("plugins/*/*/pyproject.toml")))]


def project(folder: Path) -> dict[str, object]:
    """The ``[project]`` table of a distribution's folder."""
    table: dict[str, object] = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    return table


def build_wheel(folder: Path, into: Path) -> Path:
    """Build with the declared backend, in the running environment: no network, no isolation."""
    before = set(into.glob("*.whl"))
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(into)]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    (wheel,) = set(into.glob("*.whl")) - before
    return wheel


def wheel_metadata(wheel: Path) -> Distribution:
    """What an installed distribution would know of itself, read from its wheel."""
    name, version = wheel.name.split("-")[:2]
    return PathDistribution(zipfile.Path(wheel, f"{name}-{version}.dist-info/"))


class Environment:
    """A virtual environment of its own; ``wheels`` is all that it may install from."""

    def __init__(self, folder: Path, wheels: Path) -> None:
        self.folder = folder
        self.wheels = wheels
        self._linked: set[tuple[str, frozenset[str]]] = set()
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
        self.site = next((folder / "lib").glob("python*/site-packages"))

    def install(self, *requirements: str) -> None:
        """Install from wheels, resolving what they declare against what is linked."""
        for requirement in requirements:
            self._link(Requirement(requirement))
        self._uv("install", "--offline", "--no-index", f"--find-links={self.wheels}", *requirements)

    def uninstall(self, name: str) -> None:
        """Remove one distribution."""
        self._uv("uninstall", name)

    def run(self, *command: str, cwd: Path, ok: bool = True) -> subprocess.CompletedProcess[str]:
        """Run one of its commands in ``cwd``; ``ok`` demands exit code 0."""
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
        done = subprocess.run(
            [str(self.folder / "bin" / command[0]), *command[1:]],
            cwd=cwd,
            env=clean | {"OMP_NUM_THREADS": "1"},
            text=True,
            capture_output=True,
        )
        if ok:
            assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done

    def _uv(self, action: str, *arguments: str) -> None:
        python = f"--python={self.folder / 'bin' / 'python'}"
        command = [sys.executable, "-m", "uv", "pip", action, "--no-config", python, *arguments]
        keep = {k: v for k, v in os.environ.items() if not k.startswith("UV_")}
        done = subprocess.run(command, env=keep, text=True, capture_output=True)
        assert done.returncode == 0, done.stderr

    def _link(self, requirement: Requirement) -> None:
        """Link the third-party distributions that a requirement leads to."""
        name = canonicalize_name(requirement.name)
        key = (name, frozenset(requirement.extras))
        if key in self._linked:
            return
        self._linked.add(key)
        wheel = next(self.wheels.glob(f"{name.replace('-', '_')}-*.whl"), None)
        found = wheel_metadata(wheel) if wheel else distribution(name)
        if not wheel:
            for top in {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
                if top.endswith(".dist-info"):  # uv overlooks a linked one
                    shutil.copytree(SITE / top, self.site / top, dirs_exist_ok=True)
                elif not (self.site / top).exists():
                    (self.site / top).symlink_to(SITE / top)
        for line in found.requires or ():
            needed = Requirement(line)
            extras = requirement.extras or {""}
            if not needed.marker or any(needed.marker.evaluate({"extra": e}) for e in extras):
                self._link(needed)
