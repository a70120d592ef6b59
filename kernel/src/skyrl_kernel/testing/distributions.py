"""Make small installed distributions in a folder, to test plugins and their faults for real.

What is written is what an installer leaves behind: packages beside a
``.dist-info`` folder. With the folder on ``sys.path`` it is installed.
"""

import importlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import dedent

from skyrl_kernel.plugins import discover
from skyrl_kernel.slots import PLUGINS

ANY_KERNEL = ("skyrl-kernel>=0.1",)


def make_distribution(
    folder: Path,
    name: str,
    version: str = "0.1.0",
    *,
    modules: Mapping[str, str] | None = None,
    entry_points: Mapping[str, Mapping[str, str]] | None = None,
    requires: Sequence[str] = ANY_KERNEL,
    extras: Sequence[str] = (),
    summary: str = "",
    files: Mapping[str, str] | None = None,
    egg_info: bool = False,
) -> Path:
    """Install a distribution into ``folder``.

    Args:
        folder: To be put on ``sys.path``; may hold several distributions.
        name: As on a package index, such as ``skyrl-env-foo``.
        version: Of the distribution.
        modules: Dotted module name → source, which may be indented; packages around a
            module get an empty ``__init__.py``.
        entry_points: Group → name → module.
        requires: Requirement lines.
        extras: Names of extras.
        summary: One line for listings.
        files: Other files: path below ``folder`` → text, such as ``skyrl_foo/plugin.toml``.
        egg_info: Write the metadata as an ``.egg-info``, as old installers do.

    Returns:
        The metadata folder.

    Example:
        >>> make_distribution(  # doctest: +SKIP
        ...     tmp_path,
        ...     "skyrl-env-foo",
        ...     modules={"skyrl_env_foo.plugin": "..."},
        ...     entry_points={"skyrl.envs": {"foo": "skyrl_env_foo.plugin"}},
        ... )
    """
    for module, source in (modules or {}).items():
        _write_module(folder, module, source)
    for path, text in (files or {}).items():
        _write(folder / path, text)
    stem = f"{name.replace('-', '_')}"
    metadata = folder / (f"{stem}.egg-info" if egg_info else f"{stem}-{version}.dist-info")
    headers = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    headers += [f"Summary: {summary}"] if summary else []
    headers += [f"Provides-Extra: {extra}" for extra in extras]
    headers += [] if egg_info else [f"Requires-Dist: {line}" for line in requires]
    _write(metadata / ("PKG-INFO" if egg_info else "METADATA"), "\n".join(headers) + "\n")
    if egg_info:
        _write(metadata / "requires.txt", "\n".join(requires) + "\n")
    if entry_points is not None:
        lines = []
        for group, points in entry_points.items():
            lines += [f"[{group}]", *(f"{point} = {value}" for point, value in points.items())]
        _write(metadata / "entry_points.txt", "\n".join(lines) + "\n")
    return metadata


def make_plugins(folder: Path, sources: Mapping[str, str], group: str = PLUGINS) -> None:
    """Install a distribution of its own for each plugin.

    Args:
        folder: As in `make_distribution`.
        sources: Name → source of the one module that is the plugin.
        group: Their group of entry points.
    """
    for name, source in sources.items():
        module = f"skyrl_{name}"
        make_distribution(
            folder, f"skyrl-{name}", modules={module: source}, entry_points={group: {name: module}}
        )
    discover(refresh=True)


@contextmanager
def on_path(folder: Path) -> Iterator[Path]:
    """Put ``folder`` first on ``sys.path``; afterwards forget it and what was imported from it."""
    folder.mkdir(parents=True, exist_ok=True)
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    discover(refresh=True)
    try:
        yield folder
    finally:
        sys.path.remove(str(folder))
        for name, module in list(sys.modules.items()):
            origin = getattr(module, "__file__", None)
            if origin is not None and Path(origin).is_relative_to(folder):
                del sys.modules[name]
        discover(refresh=True)


def _write_module(folder: Path, module: str, source: str) -> None:
    *packages, last = module.split(".")
    for depth in range(1, len(packages) + 1):
        initial = folder.joinpath(*packages[:depth], "__init__.py")
        if not initial.exists():
            _write(initial, "")
    as_package = folder.joinpath(*packages, last)
    _write(
        as_package / "__init__.py" if as_package.is_dir() else as_package.with_suffix(".py"),
        source,
    )


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dedent(text), encoding="utf-8")
