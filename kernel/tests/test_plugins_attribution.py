"""From an exception to the plugin whose code raised it."""

import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from skyrl_kernel.errors import PluginError
from skyrl_kernel.plugins import PluginManager, discover
from skyrl_kernel.slots import PLUGINS
from skyrl_kernel.testing.distributions import make_distribution, on_path

PLUGIN = """
from skyrl_{name}.helper import run
from skyrl_kernel.hookspecs import hookimpl

@hookimpl
def reward(name):
    def closure(inner):
        return run(inner)
    return closure if name == "{name}" else None
"""

HELPER = """
import json

def run(inner):
    if inner == "library":
        return json.loads("no json")
    if inner is None:
        raise ValueError("deep inside")
    return inner()
"""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Path]:
    with on_path(tmp_path / "site") as folder:
        yield folder


def manager_of(site: Path, *names: str) -> PluginManager:
    for name in names:
        make_distribution(
            site,
            f"skyrl-{name}",
            modules={
                f"skyrl_{name}.plugin": PLUGIN.format(name=name),
                f"skyrl_{name}.helper": HELPER,
            },
            entry_points={PLUGINS: {name: f"skyrl_{name}.plugin"}},
        )
    catalog = discover(refresh=True)
    manager = PluginManager(catalog)
    manager.load([catalog.find(name) for name in names])
    return manager


def caught_from(call: Callable[[], Any]) -> Exception:
    try:
        call()
    except Exception as error:
        return error
    raise AssertionError("it did not raise")


def stage(manager: PluginManager, name: str) -> Callable[[Any], Any]:
    value: Callable[[Any], Any] = manager.resolve("reward", name, name=name, settings=None).value
    return value


def test_an_exception_in_a_helper_module_names_plugin_version_hook_step_and_process(
    site: Path,
) -> None:
    manager = manager_of(site, "foo")
    error = caught_from(lambda: stage(manager, "foo")(None))
    wrapped = manager.attribute(error, "reward", 12, process="trainer rank 3")
    assert str(wrapped) == (
        "plugin 'foo' (skyrl-foo 0.1.0) failed in hook 'reward', step 12, "
        "process trainer rank 3: ValueError: deep inside"
    )
    assert wrapped.__cause__ is error
    assert str(pickle.loads(pickle.dumps(wrapped))) == str(wrapped)


def test_an_exception_in_a_library_is_the_callers(site: Path) -> None:
    manager = manager_of(site, "foo")
    error = caught_from(lambda: stage(manager, "foo")("library"))
    assert manager.attribute(error, "reward", 1).plugin == "foo"


def test_the_deepest_plugin_is_blamed_when_one_calls_another(site: Path) -> None:
    manager = manager_of(site, "outer", "inner")
    outer, inner = stage(manager, "outer"), stage(manager, "inner")
    error = caught_from(lambda: outer(lambda: inner(None)))
    assert manager.attribute(error, "reward", 1).plugin == "inner"
    # the other way round
    error = caught_from(lambda: inner(lambda: outer(None)))
    assert manager.attribute(error, "reward", 1).plugin == "outer"


def test_of_two_names_in_one_package_the_one_whose_module_raised_is_blamed(site: Path) -> None:
    source = "from skyrl_kernel.hookspecs import hookimpl\n@hookimpl\ndef on_run_end(end): 1 / 0\n"
    make_distribution(
        site,
        "skyrl-foo",
        modules={"skyrl_foo.one": source, "skyrl_foo.two": source},
        entry_points={PLUGINS: {"one": "skyrl_foo.one", "two": "skyrl_foo.two"}},
    )
    catalog = discover(refresh=True)
    manager = PluginManager(catalog)
    manager.load([catalog.find("one"), catalog.find("two")])
    first, second = manager.observe("on_run_end", end=None)
    assert manager.attribute(first.error, "on_run_end", None).plugin == "one"
    assert manager.attribute(second.error, "on_run_end", None).plugin == "two"


def test_a_kernel_default_is_blamed_by_its_own_module() -> None:
    catalog = discover(refresh=True)
    manager = PluginManager(catalog)
    manager.load([catalog.find("agent"), catalog.find("token_mean")])
    reduction = manager.make("make_reduction", "token_mean", name="token_mean", settings=None)
    error = caught_from(lambda: reduction([None], [0], [0]))
    wrapped = manager.attribute(error, "make_reduction", 3)
    assert wrapped.plugin == "token_mean"
    assert wrapped.distribution == f"skyrl-kernel {catalog.kernel_version}"


def test_without_a_plugin_frame_the_provider_is_blamed(site: Path) -> None:
    # The loop calls the callable wrongly, or the plugin returned a function of a library.
    manager = manager_of(site, "foo")
    provider = manager.catalog.find("foo")
    error = caught_from(lambda: stage(manager, "foo")(1, 2))  # type: ignore[call-arg]
    assert manager.attribute(error, "reward", 1, provider=provider).plugin == "foo"


def test_without_any_plugin_the_kernel_is_blamed(site: Path) -> None:
    manager = manager_of(site, "foo")
    error = caught_from(lambda: {}["key"])
    wrapped = manager.attribute(error, "reward", 1)
    assert (wrapped.plugin, wrapped.distribution.split()[0]) == ("kernel", "skyrl-kernel")


def test_an_error_that_names_its_plugin_already_is_kept(site: Path) -> None:
    manager = manager_of(site, "foo")
    error = PluginError("bar", "skyrl-bar 1", "loss", 1, "trainer", "ValueError: x")
    assert manager.attribute(error, "reward", 2) is error
