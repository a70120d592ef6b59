"""Which Python runs the programs, and which folders it needs."""

import importlib.util
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from skyrl_kernel.errors import UsageError


@dataclass(frozen=True, kw_only=True, slots=True)
class Interpreter:
    """A Python and the folders that must be readable for it to start."""

    path: Path
    """What is executed."""
    folders: tuple[Path, ...]
    """Its installation, and its virtual environment if it is in one."""

    @classmethod
    def default(cls) -> "Interpreter":
        """The Python that runs this process, without its virtual environment.

        So programs see the standard library and what was installed beside it, not the
        packages of the run.
        """
        base = Path(sys.base_prefix)
        path = base / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
        return cls(path=path, folders=(base,)) if path.exists() else cls.at(sys.executable)

    @classmethod
    def at(cls, path: str | Path) -> "Interpreter":
        """The Python at a path; with one in a virtual environment come its packages.

        Raises:
            UsageError: There is no Python there.

        Example:
            >>> import sys
            >>> Interpreter.at(sys.executable).path == Path(sys.executable)
            True
        """
        path = Path(os.path.abspath(Path(path).expanduser()))
        if not os.access(path, os.X_OK) or path.is_dir():
            raise UsageError(
                f"no Python for the sandbox at '{path}': "
                f"{'it cannot be executed' if path.exists() else 'no such file'}; "
                "name an interpreter, such as /opt/tools/bin/python"
            )
        bases = [path.resolve().parent.parent]
        venv = path.parent.parent
        settings = venv / "pyvenv.cfg"
        if settings.is_file():
            bases += [venv, _home(settings)]
        for base in bases[:1]:
            if not list(base.glob("lib*/python3*")):
                raise UsageError(
                    f"no Python for the sandbox at '{path}': '{base}' holds no lib/python3, so it "
                    "is no installation of Python; name the interpreter itself, not a script"
                )
        return cls(path=path, folders=tuple(dict.fromkeys(bases)))


def _home(settings: Path) -> Path:
    """Prefix of the Python that a virtual environment was made from, as it names it."""
    lines = (line.partition("=") for line in settings.read_text().splitlines())
    (home,) = [value.strip() for key, _, value in lines if key.strip() == "home"]
    return Path(home).parent


def package_folders(names: Iterable[str]) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """Where installed packages of this process are.

    Returns:
        What must be readable for them to be imported: the packages alone, not what they
        depend on; and the folders to import from.

    Raises:
        UsageError: One is not installed.

    Example:
        >>> readable, imported_from = package_folders(["numpy"])
        >>> [path.name for path in readable][0], len(imported_from)
        ('numpy', 1)
    """
    readable: list[Path] = []
    imported_from: list[Path] = []
    for name in names:
        spec = importlib.util.find_spec(name) if name.isidentifier() else None
        if spec is None or spec.origin is None or not Path(spec.origin).is_file():
            raise UsageError(
                f"no package '{name}' for the sandbox: it is not installed beside this one; "
                f"pip install {name}, or leave it out"
            )
        origin = Path(spec.origin)
        found = origin.parent if spec.submodule_search_locations else origin
        libraries = found.parent / f"{name}.libs"  # where wheels keep what they link to
        readable += [found, *([libraries] if libraries.is_dir() else [])]
        imported_from.append(found.parent)
    return tuple(readable), tuple(dict.fromkeys(imported_from))
