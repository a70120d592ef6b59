"""What the pages show runs, and what they name exists."""

import doctest
import importlib.metadata
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import pages
import pytest
from packaging.requirements import Requirement
from pages import GUIDES, PAGES, Block, Command, blocks, commands, files
from running import Lab, skyrl
from workspace import ROOT, build_wheel, package_folders, project

from skyrl_kernel.cli import skyrl as main_command
from skyrl_kernel.plan import make_plan
from skyrl_kernel.plugins import PluginManager, discover
from skyrl_kernel.testing.distributions import make_distribution, on_path

DOCS = ROOT / "docs"
EXAMPLE = ROOT / "examples" / "skyrl-env-reverse"
BIN = Path(sys.executable).parent
WITH_BLOCKS = [page for page in PAGES if page.name != "hooks.md" and blocks(page)]
SLOW_PAGES = [page for page in WITH_BLOCKS if any("slow" in block.words for block in blocks(page))]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.fixture
def lab(random_model: Path, tmp_path: Path) -> Lab:
    """Small real runs in a folder of their own."""
    return Lab(random_model, tmp_path)


# --- everything in the pages runs -------------------------------------------------------------


def in_shell(command: Command, folder: Path, env: Mapping[str, str]) -> None:
    """Run one command as a reader would; it succeeds and prints what the page shows."""
    done = subprocess.run(
        ["bash", "-c", command.line],
        cwd=folder,
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    where = f"{command.block.where}: $ {command.line}"
    assert done.returncode == 0, f"{where}\nexit code {done.returncode}\n{done.stdout}"
    if command.output.strip():
        shown = f"{where}\nshown:\n{command.output}\nprinted:\n{done.stdout}"
        assert pages.same_form(command.output, done.stdout), shown


def in_python(block: Block, names: dict[str, Any]) -> None:
    """Run a block; with prompts, as a doctest."""
    if ">>>" not in block.text:
        exec(compile(block.text, block.where, "exec"), names)
        return
    test = doctest.DocTestParser().get_doctest(block.text, names, block.where, None, block.line)
    runner = doctest.DocTestRunner(checker=pages.ByForm(), verbose=False)
    report: list[str] = []
    runner.run(test, out=report.append, clear_globs=False)
    names |= test.globs
    assert not runner.summarize(verbose=False).failed, "".join(report)


def read_along(page: Path, folder: Path, wanted: Callable[[Block], bool]) -> None:
    """Do what the page says, from top to bottom, in ``folder``."""
    pages.write_files(page, folder)
    env = os.environ | {
        "PATH": f"{folder / '.venv' / 'bin'}{os.pathsep}{BIN}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # pip's way to say: without isolation
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    names: dict[str, Any] = {}
    for block in filter(wanted, blocks(page)):
        if block.language == "console":
            for command in commands(block):
                in_shell(command, folder, env)
        elif block.language == "python" and block.title is None:
            in_python(block, names)


@pytest.mark.parametrize("page", WITH_BLOCKS, ids=name_of)
def test_what_a_page_shows_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    read_along(page, tmp_path, lambda block: not block.words & {"slow", "parsed"})


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("page", SLOW_PAGES, ids=name_of)
def test_a_page_can_be_followed_from_top_to_bottom(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("bwrap") is None and any("sandbox" in one.words for one in blocks(page)):
        pytest.skip(f"bubblewrap is not installed: {name_of(page)} was not followed")
    if any(command.line.startswith("pip install") for command in all_commands(page)):
        make_environment(tmp_path / ".venv")
    monkeypatch.chdir(tmp_path)
    read_along(page, tmp_path, lambda block: "parsed" not in block.words)


def make_environment(folder: Path) -> None:
    """An environment with pip, beside which all that is installed here can be imported."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    site = next((folder / "lib").glob("python*/site-packages"))
    here = sysconfig.get_paths()["purelib"]
    (site / "workspace.pth").write_text(f"import site; site.addsitedir({here!r})\n")
    script = folder / "bin" / "skyrl"
    script.write_text(f"#!{folder / 'bin' / 'python'}\nfrom skyrl_kernel.cli import main\nmain()\n")
    script.chmod(0o755)


# --- commands that cannot run here at least exist ---------------------------------------------


def all_commands(page: Path) -> Iterator[Command]:
    for block in blocks(page):
        if block.language == "console":
            yield from commands(block)


ALL_COMMANDS = [command for page in PAGES for command in all_commands(page)]


@pytest.mark.parametrize("command", ALL_COMMANDS, ids=lambda one: f"{one.block.where} {one.line}")
def test_a_command_and_its_keys_exist(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages.write_files(command.block.page, tmp_path)
    monkeypatch.chdir(tmp_path)
    program, *words = shlex.split(command.line)
    install_example(tmp_path / "site")
    with on_path(tmp_path / "site"):
        CHECKS[program](words)


def install_example(site: Path) -> None:
    """The tutorial's package, as if it had been installed."""
    module, manifest = "skyrl_env_reverse/__init__.py", "skyrl_env_reverse/plugin.toml"
    texts = {name: (EXAMPLE / "src" / name).read_text() for name in (module, manifest)}
    make_distribution(
        site,
        "skyrl-env-reverse",
        files=texts,
        entry_points={"skyrl.envs": {"reverse": "skyrl_env_reverse"}},
    )


def check_skyrl(words: list[str]) -> None:
    name, *rest = words
    checks = {"run": check_run, "eval": check_eval, "log": check_log, "data": check_data}
    (checks | {"report": check_report, "plugins": check_plugins})[name](rest)


def parsed(command: click.Command, words: list[str]) -> dict[str, Any]:
    """What the command would be called with."""
    parent = click.Context(main_command, **main_command.context_settings)
    return command.make_context(command.name, list(words), parent).params


def check_run(words: list[str]) -> None:
    from skyrl_kernel.cli.run import run

    given = parsed(run, words)
    make_plan(
        given["plugins"] or ["demo"],
        given["files"],
        given["overrides"],
        allow_not_yet=given["dry_run"],
    )


def check_eval(words: list[str]) -> None:
    from skyrl_kernel.cli.eval import eval as command

    given = parsed(command, words)
    plugins = given["plugins"] or ["demo"]  # a run brings its own
    make_plan(plugins, given["files"], given["overrides"], training=False)


def check_report(words: list[str]) -> None:
    from skyrl_kernel.cli.report import report

    assert parsed(report, words)["runs"]


def check_log(words: list[str]) -> None:
    from skyrl_kernel.cli.log import log

    for name in parsed(log, words)["plugins"]:
        assert discover().named(name)


def check_data(words: list[str]) -> None:
    from skyrl_kernel.cli.data import parse_options, parse_words

    name, *rest = words
    manager = PluginManager(discover())
    manager.load([discover().find(name)])
    recipe = manager.make("data_recipe", name, name=name)
    parse_options(name, recipe.options, parse_words(rest))


def check_plugins(words: list[str]) -> None:
    from skyrl_kernel.cli.plugins import plugins

    name, *rest = words
    command = plugins.get_command(click.Context(plugins), name)
    assert command is not None
    given = parsed(command, rest)
    assert not given.get("name") or discover().named(given["name"])


def check_pip(words: list[str]) -> None:
    """Distributions of this repository or the tutorial, with extras that they have."""
    known = {str(project(folder)["name"]): project(folder) for folder in package_folders()}
    known["skyrl-env-reverse"] = project(EXAMPLE)
    known_files = {f"./{name}" for name in known} | {"constraints.txt"}
    action, *rest = words
    assert action in {"install", "uninstall"}
    for word in rest:
        if word.startswith("-") or word in known_files:
            continue
        requirement = Requirement(word)
        extras = known[requirement.name].get("optional-dependencies", {})
        assert requirement.extras <= set(extras)  # type: ignore[call-overload]


def check_make(words: list[str]) -> None:
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert targets
    assert set(words) <= set(targets[1].split())


CHECKS: Mapping[str, Callable[[list[str]], None]] = {
    "skyrl": check_skyrl,
    "pip": check_pip,
    "make": check_make,
    "python": lambda words: None,  # these run, or they would not be in a page
    "ls": lambda words: None,
}


def test_commands_that_need_nothing_special_are_run() -> None:
    """In the guides, ``parsed`` is for what needs a hub, an index or a clone."""
    excuses = ("make", "pip install", "Qwen/", "skyrl data gsm8k", "--config gsm8k.yaml")
    for command in ALL_COMMANDS:
        if "parsed" in command.block.words and command.block.page in GUIDES:
            assert any(excuse in command.line for excuse in excuses), command


# --- the README's env is a plugin -------------------------------------------------------------


def test_the_env_in_the_readme_trains(lab: Lab) -> None:
    made = files(ROOT / "README.md")
    points = tomllib.loads(made["pyproject.toml"])["project"]["entry-points"]
    make_distribution(
        lab.folder / "site",
        "skyrl-env-parity",
        files={"skyrl_env_parity.py": made["skyrl_env_parity.py"]},
        entry_points=points,
    )
    with on_path(lab.folder / "site"):
        changes = {"data__train_data": ["parity:train"], "data__val_data": []}
        words = lab.words("parity", "--plugin", "grpo", "--plugin", "parity", **changes)
        words = [word for word in words if not word.startswith("environment.env_class=")]
        words += ["trainer.max_training_steps=1"]
        done = skyrl(*words)
        assert done.code == 0, done.err
    assert len(lab.at("parity").read_trajectories(1)) == 16  # 4 prompts, 4 answers each


def test_the_package_in_the_readme_builds(tmp_path: Path) -> None:
    source = tmp_path / "source"
    pages.write_files(ROOT / "README.md", source)
    wheel = build_wheel(source, tmp_path)
    (metadata,) = importlib.metadata.Distribution.discover(path=[str(wheel)])
    (point,) = metadata.entry_points
    assert (point.group, point.name, point.value) == ("skyrl.envs", "parity", "skyrl_env_parity")
    assert "skyrl_env_parity.py" in map(str, metadata.files or ())


def test_the_tutorial_builds_the_example_file_by_file() -> None:
    shown = files(DOCS / "tutorials" / "your-own-environment.md")
    package = {name: text for name, text in shown.items() if name.startswith(EXAMPLE.name)}
    written = {
        path.relative_to(EXAMPLE.parent).as_posix(): path.read_text()
        for path in EXAMPLE.rglob("*")
        if path.suffix in {".py", ".toml"}
    }
    assert package == written


# --- all pages --------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for link in pages.links(page):
        target, _, anchor = link.partition("#")
        assert "://" not in target, f"{link}: pages name no hosts"
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), link
        if anchor:
            assert anchor in pages.anchors(path), link


MAPPINGS = (
    "generator.chat_template_kwargs",
    "environment.skyrl_gym.ids",
    "environment.skyrl_gym.env_config",
)
"""Keys that anything may stand below."""


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_config_keys_in_prose_exist(page: Path) -> None:
    known = config_keys()
    text = page.read_text()
    mentioned = re.findall(r"`((?:trainer|generator|data|environment)\.[A-Za-z0-9_.]+)", text)
    for key in {name.rstrip(".") for name in mentioned} - {"trainer.json"}:
        begun = any(other.startswith(f"{key}.") for other in known)
        in_mapping = any(key.startswith(f"{other}.") for other in MAPPINGS)
        assert key in known or begun or in_mapping, key


def config_keys() -> set[str]:
    """Every key of the kernel and of this repository's plugins, and SkyRL's that are not read."""
    from skyrl_kernel.config.compat import table
    from skyrl_kernel.config.tree import Config

    generate = runpy.run_path(str(DOCS / "generate.py"))
    keys = {key for key, _ in generate["keys_of"](Config)}
    for path, (_, model) in generate["plugin_sections"](
        discover(), generate["own_plugins"]()
    ).items():
        keys |= {f"{path}.{key}" for key, _ in generate["keys_of"](model)}
    return keys.union(table().keys, table().moved)
