"""``skyrl plugins list`` and ``info``, by their output."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from skyrl_kernel.cli.plugins import plugins
from skyrl_kernel.errors import PluginSelectionError
from skyrl_kernel.plugins import discover
from skyrl_kernel.slots import ENVS
from skyrl_kernel.testing.distributions import make_distribution, on_path

MANIFEST = """
[foo]
summary = "Foos."
slots = ["environment.env_class"]
config = ["environment.foo"]
offers = ["fooing"]
[foo.preset]
"environment.env_class" = "foo"
"environment.foo.size" = 3
"""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Path]:
    with on_path(tmp_path / "site") as folder:
        make_distribution(
            folder,
            "skyrl-foo",
            "1.2.3",
            modules={"skyrl_foo.plugin": "raise SystemExit('imported')"},
            entry_points={ENVS: {"foo": "skyrl_foo.plugin"}},
            requires=["skyrl-kernel>=0.1"],
            files={"skyrl_foo/plugin.toml": MANIFEST},
        )
        make_distribution(
            folder,
            "skyrl-gone",
            entry_points={ENVS: {"gone": "skyrl_gone"}},
            summary="Was here.",
        )
        discover(refresh=True)
        yield folder


def run(*words: str) -> Result:
    return CliRunner().invoke(plugins, words, catch_exceptions=False)


def test_list_prints_one_aligned_line_per_plugin_and_problems_apart(site: Path) -> None:
    result = run("list")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["NAME", "KIND", "DISTRIBUTION", "VERSION", "STATUS", "SUMMARY"]
    foo = next(line for line in lines if line.startswith("foo "))
    assert foo.split() == ["foo", "env", "skyrl-foo", "1.2.3", "ok", "Foos."]
    assert foo.index("ok") == lines[0].index("STATUS")
    gone = next(line for line in lines if line.startswith("gone "))
    assert "broken" in gone
    assert (
        "problem: env 'gone' (skyrl-gone 0.1.0): its package 'skyrl_gone' is nowhere on sys.path"
        in result.stderr
    )


def test_list_as_json_holds_all_that_info_shows(site: Path) -> None:
    records = {record["name"]: record for record in json.loads(run("list", "--json").stdout)}
    assert records["foo"] == {
        "name": "foo",
        "kind": "env",
        "distribution": "skyrl-foo",
        "version": "1.2.3",
        "module": "skyrl_foo.plugin",
        "requires_kernel": ">=0.1",
        "summary": "Foos.",
        "slots": ["environment.env_class"],
        "config": ["environment.foo"],
        "preset": {"environment.env_class": "foo", "environment.foo.size": 3},
        "needs": [],
        "offers": ["fooing"],
        "status": "ok",
        "problems": [],
        "warnings": [],
    }
    assert records["gone"]["status"] == "broken"
    assert json.loads(run("info", "foo", "--json").stdout) == [records["foo"]]


def test_info_prints_what_the_plugin_brings(site: Path) -> None:
    lines = run("info", "env/foo").stdout.splitlines()
    assert "plugin        env/foo" in lines
    assert "config        environment.foo" in lines
    assert 'preset        environment.env_class="foo"' in lines
    assert "              environment.foo.size=3" in lines
    assert "status        ok" in lines


def test_info_explains_a_broken_plugin_instead_of_refusing_it(site: Path) -> None:
    assert "problem       its package 'skyrl_gone'" in run("info", "gone").stdout


def test_info_of_an_unknown_name_gives_the_nearest(site: Path) -> None:
    with pytest.raises(PluginSelectionError, match=r"no plugin named 'fooo'.*Did you mean 'foo'"):
        run("info", "fooo")
