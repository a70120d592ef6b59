"""Finding plugins without importing them, and what is said of those that are broken."""

import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from skyrl_kernel.errors import PluginLoadError, PluginSelectionError
from skyrl_kernel.plugins import Catalog, PluginEntry, discover
from skyrl_kernel.slots import ALGORITHMS, ENVS, PLUGINS
from skyrl_kernel.testing.distributions import make_distribution, on_path

HOOKLESS = {"skyrl_foo.plugin": "raise SystemExit('somebody imported me')"}


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Path]:
    with on_path(tmp_path / "site") as folder:
        yield folder


def find(name: str) -> PluginEntry:
    return discover(refresh=True).find(name)


def test_an_entry_point_is_described_without_importing_its_package(site: Path) -> None:
    make_distribution(
        site,
        "skyrl-foo",
        "1.2.3",
        modules=HOOKLESS,
        entry_points={ALGORITHMS: {"foo": "skyrl_foo.plugin"}},
        requires=["skyrl-kernel[torch]<0.9,>=0.1", "numpy"],
        files={
            "skyrl_foo/plugin.toml": """
                [foo]
                summary = "Foos."
                config = ["trainer.foo"]
                [foo.preset]
                "trainer.algorithm.advantage_estimator" = "foo"
            """
        },
    )
    entry = find("foo")
    assert (entry.name, entry.kind, entry.group) == ("foo", "algorithm", ALGORITHMS)
    assert (entry.value, entry.package) == ("skyrl_foo.plugin", "skyrl_foo")
    assert (entry.label, entry.requires_kernel) == ("skyrl-foo 1.2.3", ">=0.1,<0.9")
    assert entry.manifest.summary == "Foos."
    assert entry.manifest.preset == {"trainer.algorithm.advantage_estimator": "foo"}
    assert (entry.problems, entry.warnings) == ((), ())
    assert "skyrl_foo" not in sys.modules


@pytest.mark.parametrize(("name", "is_usable"), [("foo++_v1.2-b", True), ("foo bar", False)])
def test_a_name_holds_letters_digits_and_few_signs(site: Path, name: str, is_usable: bool) -> None:
    points = {ENVS: {name: "skyrl_foo.plugin"}}
    make_distribution(site, "skyrl-foo", modules=HOOKLESS, entry_points=points)
    problems = find(name).problems
    assert any("its name holds more than" in problem for problem in problems) is not is_usable


def test_without_a_plugin_toml_the_summary_is_the_distributions(site: Path) -> None:
    make_distribution(
        site,
        "skyrl-foo",
        modules=HOOKLESS,
        entry_points={ENVS: {"foo": "skyrl_foo.plugin"}},
        summary="A foo.",
    )
    assert find("foo").manifest.summary == "A foo."


def test_entries_are_sorted_by_group_and_name_whatever_the_scan_order(site: Path) -> None:
    for name in ("zz", "aa", "mm"):
        make_distribution(
            site,
            f"skyrl-{name}",
            modules={f"skyrl_{name}": ""},
            entry_points={PLUGINS: {name: f"skyrl_{name}"}, ENVS: {name: f"skyrl_{name}"}},
        )
    keys = [(entry.group, entry.name) for entry in discover(refresh=True)]
    assert keys == sorted(keys)


def test_trap_discovery_survives_a_library_that_patches_importlib_metadata(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What verl does around `import cupy`, and torchforge for good.
    make_distribution(
        site, "skyrl-foo", modules=HOOKLESS, entry_points={ENVS: {"foo": "skyrl_foo.plugin"}}
    )
    monkeypatch.setattr(importlib.metadata, "distributions", lambda: [])
    assert len(importlib.metadata.entry_points(group=ENVS)) == 0
    assert find("foo").name == "foo"


def test_a_process_scans_once(site: Path) -> None:
    before = discover(refresh=True)
    make_distribution(
        site, "skyrl-foo", modules=HOOKLESS, entry_points={ENVS: {"foo": "skyrl_foo.plugin"}}
    )
    assert discover() is before
    assert len(discover(refresh=True)) == len(before) + 1


def test_finding_nothing_at_all_is_an_error_and_not_silence(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as bare:
        bare.setattr(sys, "path", [str(site)])
        with pytest.raises(PluginLoadError, match="skyrl-kernel is not properly installed here"):
            discover(refresh=True)


def test_trap_a_stale_egg_info_that_hides_a_plugin_is_reported(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_distribution(
        site,
        "skyrl-foo",
        "0.2.0",
        modules=HOOKLESS,
        entry_points={ENVS: {"foo": "skyrl_foo.plugin"}},
    )
    stale = tmp_path / "stale"
    make_distribution(stale, "skyrl-foo", "0.1.0", egg_info=True)
    monkeypatch.setattr(sys, "path", [str(stale), *sys.path])
    names = [point.name for point in importlib.metadata.entry_points(group=ENVS)]
    assert "foo" not in names  # Python's own scan does not see it
    (problem,) = find("foo").problems
    assert problem.startswith(f"0.1.0 in {stale} comes first on sys.path")
    assert f"hides 0.2.0 in {site}" in problem


def test_an_older_copy_further_down_the_path_is_a_warning(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = {ENVS: {"foo": "skyrl_foo.plugin"}}
    make_distribution(site, "skyrl-foo", "0.1.0", modules=HOOKLESS, entry_points=points)
    newer = tmp_path / "newer"
    make_distribution(newer, "skyrl-foo", "0.2.0", modules=HOOKLESS, entry_points=points)
    monkeypatch.setattr(sys, "path", [str(newer), *sys.path])
    entry = find("foo")
    assert (entry.version, entry.problems) == ("0.2.0", ())
    assert entry.warnings == (
        f"found twice: 0.2.0 in {newer} is used and hides 0.1.0 in {site}; "
        "uninstall the one that is not meant",
    )


def test_the_same_copy_reached_twice_is_no_fault(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_distribution(
        site, "skyrl-foo", modules=HOOKLESS, entry_points={ENVS: {"foo": "skyrl_foo.plugin"}}
    )
    with monkeypatch.context() as twice:
        twice.setattr(sys, "path", [str(site), *sys.path])
        entry = find("foo")
    assert (entry.problems, entry.warnings) == ((), ())


def test_two_distributions_claiming_one_name_are_both_named(site: Path) -> None:
    for distribution in ("skyrl-foo", "acme-foo"):
        package = distribution.replace("-", "_")
        make_distribution(
            site, distribution, modules={package: ""}, entry_points={ENVS: {"foo": package}}
        )
    catalog = discover(refresh=True)
    acme, skyrl = catalog.named("foo")
    assert acme.problems == ("the name is also claimed by skyrl-foo 0.1.0; uninstall all but one",)
    assert skyrl.problems == ("the name is also claimed by acme-foo 0.1.0; uninstall all but one",)
    with pytest.raises(
        PluginSelectionError,
        match=r"env 'foo' is claimed by acme-foo 0\.1\.0 and skyrl-foo 0\.1\.0",
    ):
        catalog.find("foo")


def make_foo(site: Path, manifest: str) -> None:
    make_distribution(
        site,
        "skyrl-foo",
        modules=HOOKLESS,
        entry_points={ENVS: {"foo": "skyrl_foo.plugin"}},
        files={"skyrl_foo/plugin.toml": manifest},
    )


@pytest.mark.parametrize(
    ("manifest", "problem"),
    [
        ("[foo", "plugin.toml: "),
        ("[foo]\nslotz = []", "table [foo]: unknown key 'slotz'. Did you mean 'slots'?"),
    ],
)
def test_a_broken_plugin_toml_is_that_plugins_problem_alone(
    site: Path, manifest: str, problem: str
) -> None:
    make_foo(site, manifest)
    make_distribution(
        site, "skyrl-bar", modules={"skyrl_bar": ""}, entry_points={ENVS: {"bar": "skyrl_bar"}}
    )
    assert problem in find("foo").problems[0]
    assert str(site / "skyrl_foo" / "plugin.toml") in find("foo").problems[0]
    assert find("bar").problems == ()


def test_a_plugin_toml_without_the_entry_points_table_is_a_warning(site: Path) -> None:
    make_foo(site, "[fooo]")
    assert "has no table [foo]; it has: [fooo]" in find("foo").warnings[0]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (
            'offers = ["recieves_weights"]',
            "offers in its plugin.toml has 'recieves_weights', which the kernel does not know. "
            "Did you mean 'receives_weights'?",
        ),
        (
            'needs = ["same_machin"]',
            "needs in its plugin.toml has 'same_machin', which the kernel does not know. "
            "Did you mean 'same_machine'?",
        ),
        (
            'slots = ["trainer.algorithm.advantage_estimater"]',
            "slots in its plugin.toml has 'trainer.algorithm.advantage_estimater', which the kernel does "
            "not know. Did you mean 'trainer.algorithm.advantage_estimator'?",
        ),
        ('slots = ["foo.part", "trainer.algorithm.others.kind"]\nconfig = ["foo"]', None),
        ('offers = ["receives_letters", "served"]\nneeds = ["env", "letters", "gpus"]', None),
    ],
)
def test_a_word_that_is_nearly_one_of_the_kernels_is_a_warning_and_another_is_none(
    site: Path, line: str, told: str | None
) -> None:
    make_foo(site, f"[foo]\n{line}\n")
    assert find("foo").warnings == ((told,) if told else ())


def test_a_package_that_is_gone_is_a_problem(site: Path) -> None:
    make_distribution(site, "skyrl-foo", entry_points={ENVS: {"foo": "skyrl_foo.plugin"}})
    assert find("foo").problems == ("its package 'skyrl_foo' is nowhere on sys.path: reinstall it",)


def test_an_entry_point_to_an_object_is_a_problem(site: Path) -> None:
    make_distribution(
        site, "skyrl-foo", modules=HOOKLESS, entry_points={ENVS: {"foo": "skyrl_foo.plugin:Foo"}}
    )
    assert "'skyrl_foo.plugin:Foo' names no module" in find("foo").problems[0]


def test_a_plugin_for_another_kernel_is_a_problem_before_it_is_imported(site: Path) -> None:
    make_distribution(
        site,
        "skyrl-foo",
        modules=HOOKLESS,
        entry_points={ENVS: {"foo": "skyrl_foo.plugin"}},
        requires=["skyrl-kernel>=99", "skyrl-kernel<1; extra == 'old'"],
    )
    (problem,) = find("foo").problems
    version = importlib.metadata.version("skyrl-kernel")
    assert problem.startswith(
        f"it needs skyrl-kernel >=99, but skyrl-kernel {version} is installed"
    )
    assert 'pip install "skyrl-kernel>=99"' in problem


def test_a_plugin_that_names_no_kernel_is_a_warning(site: Path) -> None:
    make_distribution(
        site,
        "skyrl-foo",
        modules=HOOKLESS,
        entry_points={ENVS: {"foo": "skyrl_foo.plugin"}},
        requires=[],
    )
    assert find("foo").warnings == (
        "it does not say which skyrl-kernel it needs: add the requirement",
    )


def test_an_entry_points_file_that_does_not_parse_hides_only_itself(site: Path) -> None:
    metadata = make_distribution(site, "skyrl-foo", modules=HOOKLESS, entry_points={})
    (metadata / "entry_points.txt").write_text(f"[{ENVS}]\nfoo\n", encoding="utf-8")
    catalog = discover(refresh=True)
    assert catalog.named("foo") == []
    assert "skyrl-foo 0.1.0" in catalog.problems[0]
    assert "entry_points.txt does not parse" in catalog.problems[0]
    assert catalog.find("agent").distribution == "skyrl-kernel"


def test_metadata_without_a_version_is_a_problem(site: Path) -> None:
    metadata = make_distribution(
        site, "skyrl-foo", modules=HOOKLESS, entry_points={ENVS: {"foo": "skyrl_foo.plugin"}}
    )
    (metadata / "METADATA").unlink()
    entry = find("foo")
    assert entry.distribution == "skyrl_foo"
    assert "its metadata lacks a version: pip install --force-reinstall skyrl_foo" in entry.problems


# --- finding by name ----------------------------------------------------------------


def catalog_of(*entries: PluginEntry) -> Catalog:
    return Catalog(entries=entries, kernel_version="0.1.0")


def entry_of(name: str, group: str, distribution: str, value: str = "m") -> PluginEntry:
    return PluginEntry(
        name=name, group=group, value=value, distribution=distribution, version="1.0"
    )


GRPO = entry_of("grpo", ALGORITHMS, "skyrl-grpo")
JUDGE_ENV = entry_of("judge", ENVS, "skyrl-judge", "skyrl_judge")
JUDGE_REWARD = entry_of("judge", PLUGINS, "acme-judge", "acme_judge")
CATALOG = catalog_of(GRPO, JUDGE_ENV, JUDGE_REWARD)


def test_an_unknown_name_is_refused_with_the_nearest_one_and_how_to_install() -> None:
    with pytest.raises(PluginSelectionError) as caught:
        CATALOG.find("grop")
    assert str(caught.value) == (
        "no plugin named 'grop' is installed. Did you mean 'grpo'? If it exists: pip install "
        "skyrl-grop. 'skyrl plugins list' shows what is installed and what each provides."
    )


def test_a_name_of_another_kind_is_said_to_be_one() -> None:
    with pytest.raises(
        PluginSelectionError,
        match=r"no env named 'grpo' is installed. There is algorithm 'grpo' \(skyrl-grpo 1.0\)",
    ):
        CATALOG.find("grpo", groups=(ENVS,))


def test_a_name_of_several_kinds_asks_for_its_full_form() -> None:
    with pytest.raises(
        PluginSelectionError,
        match=r"Write env/judge \(skyrl-judge 1\.0\) or plugin/judge \(acme-judge 1\.0\)",
    ):
        CATALOG.find("judge")
    assert CATALOG.find("env/judge") is JUDGE_ENV
    assert CATALOG.find("plugin/judge") is JUDGE_REWARD


def test_a_slot_looks_in_its_groups_in_order() -> None:
    assert CATALOG.find("judge", groups=(PLUGINS, ENVS)) is JUDGE_REWARD
    assert CATALOG.find("judge", groups=(ENVS, PLUGINS)) is JUDGE_ENV


def test_one_module_under_one_name_in_two_groups_is_one_plugin() -> None:
    sft = entry_of("sft", ALGORITHMS, "skyrl-sft", "skyrl_sft")
    again = entry_of("sft", PLUGINS, "skyrl-sft", "skyrl_sft")
    assert catalog_of(sft, again).find("sft") is sft


def test_an_unknown_kind_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(PluginSelectionError, match=r"no plugin kind 'envs'.*Did you mean 'env'?"):
        CATALOG.find("envs/judge")


# --- the kernel's own ---------------------------------------------------------------


def test_the_kernels_own_entry_points_are_described_by_its_plugin_toml() -> None:
    own = [entry for entry in discover(refresh=True) if entry.distribution == "skyrl-kernel"]
    assert {entry.name for entry in own} >= {"agent", "env_reward", "keep_all", "local", "shared"}
    for entry in own:
        assert entry.manifest.slots, entry.name
        assert (entry.problems, entry.warnings) == ((), ()), entry.name


def test_trap_listing_forty_plugins_imports_none_of_them_and_no_heavy_library(site: Path) -> None:
    for number in range(40):
        make_distribution(
            site,
            f"skyrl-p{number}",
            modules={f"skyrl_p{number}.plugin": "import torch"},
            entry_points={ENVS: {f"p{number}": f"skyrl_p{number}.plugin"}},
            files={f"skyrl_p{number}/plugin.toml": f"[p{number}]\nsummary = 'Number {number}.'"},
        )
    code = (
        "import sys, json\n"
        "import skyrl_kernel.plugins\n"
        "from skyrl_kernel.cli.plugins import plugins\n"
        "plugins(['list', '--json'], standalone_mode=False)\n"
        "print(json.dumps(sorted(m for m in sys.modules if '.' not in m)), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=True,
    )
    listed = {record["name"] for record in json.loads(done.stdout)}
    assert listed >= {f"p{number}" for number in range(40)}
    imported = set(json.loads(done.stderr))
    heavy = {"torch", "ray", "transformers", "numpy", "pyarrow", "pydantic", "rich", "structlog"}
    assert imported & heavy == set()
    assert not any(module.startswith("skyrl_p") for module in imported)
