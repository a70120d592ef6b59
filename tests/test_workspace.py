"""The rules that hold the repository together, checked on its files."""

import ast
import os
import re
import tomllib
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from workspace import ROOT, package_folders, project

from skyrl_kernel.slots import GROUPS

PLUGINS = [folder for folder in package_folders() if folder.name != "kernel"]
KERNEL = ROOT / "kernel" / "src" / "skyrl_kernel"
TOP_LEVEL = {
    *("pyproject.toml", "kernel", "plugins", "tests", "docs", "examples", "benchmarks"),
    *(
        "Makefile",
        "Dockerfile",
        "README.md",
        "CONTRIBUTING.md",
        "LICENSE",
        "constraints.txt",
        "changelog",
    ),
}
GROUP_OF_FOLDER = {
    "algorithms": "skyrl.algorithms",
    "envs": "skyrl.envs",
    "backends": "skyrl.backends",
    "loggers": "skyrl.loggers",
}
NOT_WRITTEN = {"__pycache__", "runs", "dist", "build"}
BINARY = {".png", ".parquet", ".safetensors", ".pyc"}

each_plugin = pytest.mark.parametrize("folder", PLUGINS, ids=lambda folder: folder.name)


def package(folder):
    return folder / "src" / f"skyrl_{folder.name.replace('-', '_')}"


def imports(file, *, at_import_time=False):
    """Modules that a file imports: absolute names; in functions too unless ``at_import_time``."""
    found = set()

    def visit(node):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno} is a relative import"
            found.add(node.module)
        elif at_import_time and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            return
        elif at_import_time and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            for child in node.orelse:
                visit(child)
            return
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(file.read_text(), str(file)))
    return found


def text_files():
    """Every text file of the repository that a person wrote."""
    for folder, folders, files in os.walk(ROOT):
        folders[:] = [
            name
            for name in folders
            if name == ".ci"
            or not (name.startswith(".") or name in {"__pycache__", "runs", "dist"})
        ]
        yield from (Path(folder, name) for name in files if Path(name).suffix not in BINARY)


@each_plugin
def test_a_plugin_folder_has_all_that_a_distribution_needs(folder):
    for needed in ("pyproject.toml", "README.md"):
        assert (folder / needed).is_file(), f"{folder} has no {needed}"
    for needed in ("__init__.py", "plugin.toml", "py.typed"):
        assert (package(folder) / needed).is_file(), f"{package(folder)} has no {needed}"
    assert list(folder.glob("tests/test_*.py")), f"{folder} has no test"


@each_plugin
def test_folder_distribution_and_import_names_follow_from_each_other(folder):
    assert project(folder)["name"] == f"skyrl-{folder.name}"
    assert [path.name for path in (folder / "src").glob("skyrl_*")] == [package(folder).name]


@each_plugin
def test_entry_points_are_in_the_group_of_their_folder(folder):
    groups = project(folder).get("entry-points", {})
    ours = {group for group in groups if group.startswith("skyrl.")}
    assert ours <= {GROUP_OF_FOLDER[folder.parent.name], "skyrl.plugins"}
    assert set(groups) - ours <= {"vllm.general_plugins"}  # what another program is told
    for points in groups.values():
        for value in points.values():
            assert value.partition(".")[0] == package(folder).name


@each_plugin
def test_a_plugin_says_which_kernels_it_accepts(folder):
    requirements = project(folder)["dependencies"]
    (kernel,) = [line for line in requirements if re.match(r"skyrl-kernel\b", line)]
    assert ">=" in kernel
    assert "<" in kernel


@pytest.mark.parametrize("folder", package_folders(), ids=lambda folder: folder.name)
def test_a_manifest_describes_exactly_the_entry_points(folder):
    source = next((folder / "src").glob("skyrl_*"))
    groups = project(folder).get("entry-points", {})
    points = {name for group in groups if group.startswith("skyrl.") for name in groups[group]}
    assert set(tomllib.loads((source / "plugin.toml").read_text())) == points


def test_every_group_has_a_kind():
    assert set(GROUP_OF_FOLDER.values()) | {"skyrl.plugins"} == set(GROUPS.values())


def test_test_files_have_names_of_their_own():
    found = [path.relative_to(ROOT) for path in ROOT.glob("*/**/tests/test_*.py")]
    names = [path.name for path in found if not path.parts[0].startswith(".")]
    names += [path.name for path in ROOT.glob("tests/test_*.py")]
    assert sorted(set(names)) == sorted(names)


def test_the_kernel_imports_no_plugin():
    plugins = {package(folder).name for folder in PLUGINS}
    for file in KERNEL.rglob("*.py"):
        assert not {name.partition(".")[0] for name in imports(file)} & plugins, file


def test_only_the_tensor_mathematics_imports_torch_with_the_kernel_and_only_its_runtime_ray():
    for file in KERNEL.rglob("*.py"):
        part = file.relative_to(KERNEL).parts[0]
        heavy = {"torch", "ray", "transformers"} - ({"ray"} if part == "ray" else set())
        if part in {"torch", "testing"}:
            continue
        loaded = imports(file, at_import_time=True)
        assert not {name.partition(".")[0] for name in loaded} & heavy, file
        assert not {name for name in loaded if name.startswith("skyrl_kernel.torch")}, file


def test_the_loop_names_no_plugin():
    names = {
        name
        for folder in package_folders()
        for group in project(folder).get("entry-points", {}).values()
        for name in group
    }
    loop = ast.parse((KERNEL / "loop.py").read_text())
    literals = {node.value for node in ast.walk(loop) if isinstance(node, ast.Constant)}
    assert not literals & names


def test_the_top_level_is_what_the_design_says():
    shown = {path.name for path in ROOT.iterdir() if not path.name.startswith(".")}
    assert shown <= TOP_LEVEL | NOT_WRITTEN | {"data"}


def test_every_make_target_is_explained_and_every_one_named_exists():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.search(r"\.PHONY: (.*)", makefile)[1].split())
    assert set(re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE)) == targets
    for page in (ROOT / "CONTRIBUTING.md", ROOT / "README.md"):
        named = re.findall(r"(?:^\s*|`)make ([a-z-]+)", page.read_text(), re.MULTILINE)
        assert set(named) <= targets, page


def test_a_changelog_fragment_is_one_sentence_with_a_known_type():
    for fragment in (ROOT / "changelog").glob("*.md"):
        if re.fullmatch(r"README|[0-9.]+", fragment.stem):
            continue
        assert re.fullmatch(r"\d+(-[a-z-]+)?\.(feature|change|fix|removal)", fragment.stem), (
            fragment
        )
        (sentence,) = fragment.read_text().splitlines()
        assert sentence.endswith("."), fragment


def test_no_file_names_this_machine():
    """Neither where the checkout lies, nor where pip finds packages here."""
    settings = [
        os.environ.get(f"PIP_{name}") for name in ("INDEX_URL", "EXTRA_INDEX_URL", "FIND_LINKS")
    ]
    places = [place for value in settings if value for place in value.split()]
    hosts = [urlsplit(place).hostname for place in places]
    private = {str(ROOT), *places, *(host for host in hosts if host)} - {"pypi.org", "localhost"}
    private = {place for place in private if place.count("/") != 1}  # "/app" is a common word
    for file in text_files():
        text = file.read_text(errors="replace")
        for place in private:
            assert place not in text, f"{file} names a place that only this machine has"
