"""The plugin lock: what it records, and what a difference is called."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from skyrl_kernel.errors import PluginLoadError
from skyrl_kernel.plugins import (
    Lock,
    PluginManager,
    diff_locks,
    discover,
    locked_entries,
    plugin_lock,
)
from skyrl_kernel.slots import ENVS
from skyrl_kernel.testing.distributions import make_distribution, on_path

MODULES = {
    "skyrl_foo.plugin": (
        "from skyrl_kernel.hookspecs import hookimpl\n@hookimpl\ndef make_env(name): return 'env'\n"
    )
}


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Path]:
    with on_path(tmp_path / "site") as folder:
        yield folder


def lock_of_foo(site: Path, version: str = "0.1.0") -> Lock:
    for old in site.glob("*.dist-info/*"):
        old.unlink()
    for folder in site.glob("*.dist-info"):
        folder.rmdir()
    make_distribution(
        site,
        "skyrl-foo",
        version,
        modules=MODULES,
        entry_points={ENVS: {"foo": "skyrl_foo.plugin"}},
    )
    return plugin_lock([discover(refresh=True).find("foo")])


def test_a_lock_records_who_from_where_and_what_and_survives_json(site: Path) -> None:
    lock = lock_of_foo(site)
    (record,) = lock
    digest, data = record["digest"], record["data"]
    assert len(digest) == len(data) == 64
    assert record == {
        "name": "foo",
        "kind": "env",
        "value": "skyrl_foo.plugin",
        "distribution": "skyrl-foo",
        "version": "0.1.0",
        "digest": digest,
        "data": data,
        "requires": [],
    }
    assert diff_locks(lock, json.loads(json.dumps(lock))) == []


def test_the_digest_depends_on_contents_and_not_on_place_or_bytecode(
    site: Path, tmp_path: Path
) -> None:
    before = lock_of_foo(site)
    cache = site / "skyrl_foo" / "__pycache__"
    cache.mkdir(exist_ok=True)
    (cache / "plugin.cpython-311.pyc").write_bytes(b"noise")
    assert lock_of_foo(site) == before
    with on_path(tmp_path / "elsewhere") as elsewhere:
        assert lock_of_foo(elsewhere) == before


def test_a_changed_moved_or_added_file_changes_the_digest(site: Path) -> None:
    locks = [lock_of_foo(site)]
    (site / "skyrl_foo" / "helper.py").write_text("x = 1\n", encoding="utf-8")
    locks.append(lock_of_foo(site))
    (site / "skyrl_foo" / "helper.py").write_text("x = 2\n", encoding="utf-8")
    locks.append(lock_of_foo(site))
    (site / "skyrl_foo" / "helper.py").rename(site / "skyrl_foo" / "other.py")
    locks.append(lock_of_foo(site))
    assert len({lock[0]["digest"] for lock in locks}) == 4
    assert diff_locks(locks[0], locks[1]) == ["foo: skyrl-foo 0.1.0: file contents changed"]


def test_another_kind_of_file_counts_too_unless_it_is_hidden(site: Path) -> None:
    before = lock_of_foo(site)
    (site / "skyrl_foo" / ".swp").write_text("an editor's")
    assert lock_of_foo(site) == before
    (site / "skyrl_foo" / "templates").mkdir()
    (site / "skyrl_foo" / "templates" / "chat.jinja").write_text("{{ messages }}")
    assert diff_locks(before, lock_of_foo(site)) == ["foo: skyrl-foo 0.1.0: file contents changed"]


def make_chain(site: Path, version: str = "0.1.0", source: str = "") -> Lock:
    """The lock of ``foo``, which is built on ``skyrl-bar``, and that on ``acme-base``, with a plugin."""
    lock_of_foo(site)
    requires = {"skyrl-foo": "Skyrl.Bar>=0.1", "skyrl-bar": "acme_base; python_version > '3'"}
    make_distribution(
        site,
        "skyrl-foo",
        modules=MODULES,
        entry_points={ENVS: {"foo": "skyrl_foo.plugin"}},
        requires=["skyrl-kernel>=0.1", "pytest", "skyrl-gone", requires["skyrl-foo"]],
    )
    bar = {"skyrl_bar.inner": "x = 1\n"}
    make_distribution(site, "skyrl-bar", modules=bar, requires=[requires["skyrl-bar"], "skyrl-foo"])
    for old in site.glob("acme_base-*"):
        shutil.rmtree(old)
    make_distribution(
        site,
        "acme-base",
        version,
        modules={"acme.plugin": source},
        entry_points={ENVS: {"base": "acme.plugin"}},
    )
    return plugin_lock([discover(refresh=True).find("foo")])


def test_what_a_plugin_is_built_on_is_recorded_and_held_to(site: Path) -> None:
    (before,) = make_chain(site)
    named = [(one["distribution"], one["version"]) for one in before["requires"]]
    assert named == [("acme-base", "0.1.0"), ("skyrl-bar", "0.1.0")]
    assert diff_locks([before], make_chain(site)) == []
    assert diff_locks([before], make_chain(site, source="x = 2")) == [
        "foo: acme-base 0.1.0: file contents changed"
    ]
    assert diff_locks([before], make_chain(site, "0.2.0")) == ["foo: acme-base 0.1.0 → 0.2.0"]
    alone = before | {"requires": []}
    assert diff_locks([before], [alone]) == [
        "foo: without acme-base 0.1.0",
        "foo: without skyrl-bar 0.1.0",
    ]
    assert diff_locks([alone], [before])[0] == "foo: with acme-base 0.1.0"


def test_a_lock_of_an_older_kernel_is_compared_by_what_it_says(site: Path) -> None:
    (now,) = make_chain(site)
    old = {key: value for key, value in now.items() if key not in ("data", "requires")}
    assert diff_locks([old], [now]) == diff_locks([now], [old]) == []
    assert diff_locks([old | {"digest": "x"}], [now]) == [
        "foo: skyrl-foo 0.1.0: file contents changed"
    ]


def test_a_new_version_is_told_with_both(site: Path) -> None:
    assert diff_locks(lock_of_foo(site), lock_of_foo(site, "0.2.0")) == [
        "foo: skyrl-foo 0.1.0 → 0.2.0"
    ]


def record(name: str, **changes: str) -> dict[str, str]:
    return {
        "name": name,
        "kind": "env",
        "value": f"skyrl_{name}",
        "distribution": f"skyrl-{name}",
        "version": "1",
        "digest": "x",
    } | changes


def test_plugins_that_came_and_went_are_told() -> None:
    assert diff_locks([record("a")], [record("b")]) == [
        "a: removed (skyrl-a 1)",
        "b: added (skyrl-b 1)",
    ]


def test_one_name_from_another_distribution_is_told() -> None:
    assert diff_locks([record("a")], [record("a", distribution="acme-a", version="9")]) == [
        "a: skyrl-a 1 → acme-a 9"
    ]


def test_one_change_of_a_distribution_with_several_names_is_one_line() -> None:
    old = [record("a", distribution="skyrl-x"), record("b", distribution="skyrl-x")]
    new = [dict(one, version="2") for one in old]
    assert diff_locks(old, new) == ["a, b: skyrl-x 1 → 2"]


def test_a_worker_loads_from_the_lock_without_a_scan(site: Path) -> None:
    lock = lock_of_foo(site)
    here = locked_entries(lock)
    manager = PluginManager(discover())
    manager.load(here)
    assert manager.make("make_env", "foo", name="foo") == "env"
    assert plugin_lock(here) == lock


def test_a_worker_with_another_version_is_told_with_a_diff(site: Path) -> None:
    lock = lock_of_foo(site)
    lock_of_foo(site, "0.2.0")  # what the worker's machine has
    assert diff_locks(lock, plugin_lock(locked_entries(lock))) == ["foo: skyrl-foo 0.1.0 → 0.2.0"]


def test_a_worker_that_lacks_a_plugin_says_which_to_install() -> None:
    with pytest.raises(
        PluginLoadError,
        match=r"env 'foo' \(skyrl-foo-nowhere 1\) is not installed in this process: "
        r'pip install "skyrl-foo-nowhere==1"',
    ):
        locked_entries([record("foo", distribution="skyrl-foo-nowhere")])
