"""The documentation says what is so: commands run, names exist, lists are complete."""

import doctest
import importlib.metadata
import inspect
import os
import re
import runpy
import shlex
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import pages
import pluggy
import pyarrow as pa
import pytest
from packaging.requirements import Requirement
from pages import GUIDES, PAGES, Block, Command, blocks, commands, files
from running import Lab, probe_installed, skyrl
from workspace import ROOT, build_wheel, package_folders, project

from skyrl_kernel import hookspecs
from skyrl_kernel.cli import skyrl as main_command
from skyrl_kernel.plan import make_plan
from skyrl_kernel.plugins import PluginManager, discover
from skyrl_kernel.plugins.validation import HOOKS, STAGE_HOOKS
from skyrl_kernel.run.trajectory_file import schema
from skyrl_kernel.testing.distributions import make_distribution, on_path

DOCS = ROOT / "docs"
EXAMPLE = ROOT / "examples" / "skyrl-env-reverse"
REFERENCE = DOCS / "reference"
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


# --- hooks.md ---------------------------------------------------------------------------------

HOOK_PAGE = REFERENCE / "hooks.md"
HEADING = re.compile(r"^### (\w+)\((.*)\)$", re.MULTILINE)
NOT_OWN = "a name that no example has"


def hook_sections() -> dict[str, str]:
    """Hook → the text below its heading."""
    text = HOOK_PAGE.read_text()
    parts = re.split(r"^### (\w+)\(.*\)$", text, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def example(hook: str) -> str:
    """Source of the plugin that is shown for a hook."""
    sources = re.findall(r"^```python\n(.*?)^```$", hook_sections()[hook], re.MULTILINE | re.DOTALL)
    assert len(sources) == 1, hook
    return str(sources[0])


def load_example(hook: str) -> dict[str, Any]:
    names: dict[str, Any] = {"hookimpl": hookspecs.hookimpl, "__name__": f"example_{hook}"}
    exec(compile(example(hook), f"hooks.md, {hook}", "exec"), names)
    return names


def test_every_hook_has_its_heading_in_the_order_of_a_run() -> None:
    shown = {
        name: tuple(filter(None, arguments.split(", ")))
        for name, arguments in HEADING.findall(HOOK_PAGE.read_text())
    }
    assert shown == dict(HOOKS)
    assert list(shown) == list(HOOKS)


@pytest.mark.parametrize("hook", HOOKS)
def test_the_example_of_a_hook_is_a_plugin_of_at_most_fifteen_lines(hook: str) -> None:
    lines = [line for line in example(hook).splitlines() if line.strip()]
    assert len(lines) <= 15
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    plugin = type("Example", (), {"__module__": "example"})()
    vars(plugin).update(load_example(hook))
    manager.register(plugin)
    manager.check_pending()
    assert [one.name for one in manager.get_hookcallers(plugin) or ()] == [hook]


@pytest.mark.parametrize("hook", [name for name in HOOKS if name.startswith(("make_", "load_"))])
def test_the_example_of_a_make_hook_answers_to_its_own_name_only(hook: str) -> None:
    function = load_example(hook)[hook]
    wanted = inspect.signature(function).parameters
    key = next(iter(wanted))
    (own,) = set(re.findall(r'(?:name|source) [!=]= "([^"]+)"', example(hook)))
    values: dict[str, Any] = dict.fromkeys(wanted) | {"extras": {}}
    ask = {name: values[name] for name in wanted}
    assert function(**ask | {key: NOT_OWN}) is None
    if hook != "make_trainer":  # which would load a model
        assert function(**ask | {key: f"{own}:rest" if key == "path" else own}) is not None


def test_the_examples_work_together_in_a_run(lab: Lab) -> None:
    """Stages, wrappers, makers and observers of the page in one real run."""
    used = [*STAGE_HOOKS, "make_reduction", "make_runtime", "make_trainer", "make_env"]
    used += [hook for hook in HOOKS if hook.startswith("on_")]
    own = {
        hook: re.findall(r'name [!=]= "([^"]+)"', example(hook)) or [f"with_{hook}"]
        for hook in used
    }
    points: dict[str, dict[str, str]] = {}
    group_of = {"make_env": "skyrl.envs", "make_trainer": "skyrl.backends"}
    for hook, (name,) in own.items():
        points.setdefault(group_of.get(hook, "skyrl.plugins"), {})[name] = f"hooks_page.{hook}"
    head = "from skyrl_kernel.hookspecs import hookimpl\n\n"
    make_distribution(
        lab.folder / "site",
        "skyrl-hooks-page",
        modules={f"hooks_page.{hook}": head + example(hook) for hook in used},
        entry_points=points,
    )
    with on_path(lab.folder / "site"):
        unslotted = [own[hook][0] for hook in used if own[hook][0].startswith("with_")]
        words = lab.words(
            "run",
            *(word for name in unslotted for word in ("--plugin", name)),
            environment__env_class="polite",
            generator__inference_engine__weight_sync_backend="copied",
            trainer__algorithm__advantage_estimator="centred",
            trainer__algorithm__policy_loss_type="reinforce",
            trainer__algorithm__loss_reduction="sequence_mean",
            trainer__algorithm__dynamic_sampling__type="undecided",
            trainer__runtime="inline",
            trainer__strategy="fsdp_on_cpu",
            trainer__epochs=1,
            trainer__logger=[],
        )
        done = skyrl(*words)
    assert done.code == 0, done.err
    # "shorter" takes 0.001 a token, so rewards differ though no random answer says please
    folder = lab.at()
    row = folder.read_trajectories(1)[0]
    assert dict(row["reward_components"]) == {
        "env": 0.0,
        "length": pytest.approx(-0.001 * (row["turns"][0]["stop"] - row["turns"][0]["start"])),
    }
    metrics = folder.read_metrics()
    assert "eval/all/max_num_tokens" in metrics[0]
    assert metrics[-1]["policy/policy_loss"] != 0
    assert (folder.path / "note.txt").read_text() == "run: 2 steps\n"
    assert "held-out score" in done.out
    assert "is safe in" in done.out
    assert "finished at step 2" in done.out


# --- config.md, cli.md --------------------------------------------------------------------------


def test_generated_pages_are_current(capsys: pytest.CaptureFixture[str]) -> None:
    generate = runpy.run_path(str(DOCS / "generate.py"))
    for name, text in generate["pages"]().items():
        current = (REFERENCE / name).read_text()
        assert current == text, f"docs/reference/{name} is not current: make docs"


def test_the_help_of_the_installed_command_is_in_the_page() -> None:
    page = " ".join((REFERENCE / "cli.md").read_text().split())
    env = os.environ | {"COLUMNS": "200"}
    for words in ([], ["run"], ["plugins", "list"]):
        command = [str(BIN / "skyrl"), *words, "--help"]
        text = subprocess.run(command, env=env, text=True, capture_output=True, check=True).stdout
        assert " ".join(text.split()) in page


# --- metrics.md, records-and-files.md ---------------------------------------------------------


def documented(page: str, first_column: str) -> list[str]:
    """What stands in backquotes in the first column of the tables with that header."""
    names, inside = [], False
    for line in (REFERENCE / page).read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        inside = line.startswith("|") and (inside or cells[0] == first_column)
        if inside and cells[0].startswith("`"):
            names.append(cells[0].strip("`"))
    return names


METRICS = documented("metrics.md", "metric")
ONLY_WHEN_IT_OCCURS = {"failures/<kind>", "timing/save_hf_model"}


def pattern(name: str) -> re.Pattern[str]:
    text = re.sub(r"<\w+>", "[a-z0-9_]+", name)
    return re.compile(re.sub(r"_at_N$", r"_at_\\d+", text))


@pytest.fixture
def written(lab: Lab) -> set[str]:
    """Metrics of a real run with every term of the loss, and all that has numbers of its own."""
    switches = {
        "use_kl_loss",
        "use_entropy_loss",
        "recompute_old_logprobs",
        "zero_variance_filter",
    }
    changes = {f"trainer__algorithm__{key}": True for key in switches}
    changes |= {
        f"generator__{key}": True for key in ("step_wise_trajectories", "merge_stepwise_output")
    }
    with probe_installed(lab.folder / "site"):
        done = lab.run("metrics", **changes)
    assert done.code == 0, done.err
    return {name for line in lab.at("metrics").read_metrics() for name in line} - {"step"}


def test_every_metric_that_a_run_writes_is_explained_and_no_other(written: set[str]) -> None:
    fixed = {name for name in written if name in METRICS}
    varying = {
        name: {metric for metric in METRICS if pattern(metric).fullmatch(name)}
        for name in written - fixed
    }
    assert [name for name, found in varying.items() if not found] == []
    found = fixed.union(*varying.values())
    assert set(METRICS) - found == ONLY_WHEN_IT_OCCURS
    assert len(set(METRICS)) == len(METRICS)


def test_the_metrics_of_machines_are_explained() -> None:
    from skyrl_kernel.ray.monitor import node_metrics, parse_gpus

    found = node_metrics([{"cpu_ram_used_gb": 1.0, **parse_gpus("0, 50, 1024")}])
    explained = documented("metrics.md", "metric of machines")
    assert sorted(re.sub(r"\b\d+\b", "N", name) for name in found) == sorted(explained)


COUNTED = """
    num_requests_running num_requests_waiting kv_cache_usage_perc prompt_tokens_total
    generation_tokens_total prefix_cache_queries_total prefix_cache_hits_total
    time_to_first_token_seconds_sum time_to_first_token_seconds_count inter_token_latency_seconds_sum
    inter_token_latency_seconds_count spec_decode_num_drafts_total spec_decode_num_draft_tokens_total
    spec_decode_num_accepted_tokens_total spec_decode_num_accepted_tokens_per_pos_total:0
"""
"""What vLLM calls all that the metrics are made of."""


def test_the_metrics_of_vllm_are_explained() -> None:
    from skyrl_vllm.counters import counts

    before = {f"vllm:{name}": [1.0] for name in COUNTED.split()}
    found = counts(before, {name: [2.0] for name in before}, seconds=1.0)
    explained = documented("metrics.md", "metric of vLLM")
    names = [f"vllm/<phase>/{re.sub('pos_1$', 'pos_N', name)}" for name in found]
    assert sorted(names) == sorted(explained)


def test_the_columns_of_trajectory_files_are_explained() -> None:
    text = (REFERENCE / "records-and-files.md").read_text()
    section = text.partition("### trajectories/")[2].partition("\n### ")[0]
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+?) \|", section, re.MULTILINE)
    assert rows == [(column.name, in_words(column.type)) for column in schema()]


def in_words(kind: pa.DataType) -> str:
    """A column's type as the page writes it."""
    if pa.types.is_list(kind):
        return f"list of {in_words(kind.value_type)}"
    if pa.types.is_map(kind):
        return f"map of {kind.key_type} to {kind.item_type}"
    return "struct" if pa.types.is_struct(kind) else str(kind)


def test_the_files_of_a_run_folder_are_explained(lab: Lab) -> None:
    with probe_installed(lab.folder / "site"):
        done = lab.run()
    assert done.code == 0, done.err
    folder = lab.at().path
    here = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    explained = {name.partition("/")[0] for name in documented("records-and-files.md", "path")}
    elsewhere = {"failures.jsonl", "loggers", "report.html", "logs"}  # nothing of that kind here
    assert here | elsewhere == explained
    (checkpoint, *_) = (folder / "checkpoints").iterdir()
    written = {path.name for path in checkpoint.iterdir()}
    assert written == set(documented("records-and-files.md", "file"))


def test_every_record_is_named() -> None:
    from skyrl_kernel import records

    text = (REFERENCE / "records-and-files.md").read_text()
    internal = {"Completion", "GenerateRequest", "Piece", "Sampling", "Scores", "StopReason"}
    for name, value in vars(records).items():
        if inspect.isclass(value) and value.__module__ == records.__name__ and name not in internal:
            assert f"`{name}`" in text, name


def test_every_capability_of_an_engine_is_explained_to_who_writes_one() -> None:
    text = next(page for page in PAGES if page.name == "your-own-engine.md").read_text()
    table = text.partition("| word | promise |")[2].partition("\n\n")[0]
    explained = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    offered = {
        offer
        for entry in discover()
        if "generator.inference_engine.backend" in entry.manifest.slots
        and entry.distribution.startswith("skyrl-")
        for offer in entry.manifest.offers
    }
    assert offered - {"vllm_weight_transfer"} <= set(explained)  # that one is vLLM's own


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
