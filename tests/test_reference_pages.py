"""The pages that list everything do: hooks, keys, commands, metrics, files, capabilities."""

import inspect
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pluggy
import pyarrow as pa
import pytest
from pages import PAGES
from running import Lab, probe_installed, skyrl
from workspace import ROOT

from skyrl_kernel import hookspecs
from skyrl_kernel.plugins import discover
from skyrl_kernel.plugins.validation import HOOKS, STAGE_HOOKS
from skyrl_kernel.run.trajectory_file import schema
from skyrl_kernel.testing.distributions import make_distribution, on_path

DOCS = ROOT / "docs"
REFERENCE = DOCS / "reference"
BIN = Path(sys.executable).parent


@pytest.fixture
def lab(random_model: Path, tmp_path: Path) -> Lab:
    """Small real runs in a folder of their own."""
    return Lab(random_model, tmp_path)


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


SKYRLS = """
    critic/critic_loss critic/values_mean critic/values_clipfrac critic/critic_lr critic/grad_norm

    async/staleness_mean async/staleness_max async/staleness_min async/staleness_ratio
    async/staleness_violation_count async/num_groups_dropped async/keep_rate
    async/gen_buffer_qsize_at_wait_start

    vllm/<phase>/num_requests_running vllm/<phase>/num_requests_waiting
    vllm/<phase>/kv_cache_usage_perc vllm/<phase>/generation_throughput_tok_s
    vllm/<phase>/prompt_throughput_tok_s vllm/<phase>/prefix_cache_hit_rate
    vllm/<phase>/ttft_seconds_avg vllm/<phase>/tpot_seconds_avg

    ray/node.N.gpu.N.util ray/node.N.gpu.N.mem_used_gb ray/gpu.util.avg ray/gpu.mem_used_gb.avg
    ray/cpu_ram_used_gb.avg
"""
"""What SkyRL writes under these areas."""


def test_skyrls_metrics_of_critics_runs_ahead_servers_and_machines_are_all_here() -> None:
    explained = set(re.findall(r"`(\w+/[\w.<>/]+)`", (REFERENCE / "metrics.md").read_text()))
    assert set(SKYRLS.split()) - explained == set()


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
