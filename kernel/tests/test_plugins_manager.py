"""Loading, order, asking: and the traps of pluggy, one test each."""

import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from skyrl_kernel.errors import (
    ConfigError,
    HookError,
    PluginError,
    PluginLoadError,
    PluginSelectionError,
    StopRun,
)
from skyrl_kernel.plugins import PluginEntry, PluginManager, discover
from skyrl_kernel.slots import ALGORITHMS, ENVS, LOGGERS, PLUGINS
from skyrl_kernel.testing.distributions import make_distribution, on_path

IMPORTS = "from skyrl_kernel.hookspecs import hookimpl\n"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Path]:
    with on_path(tmp_path / "site") as folder:
        yield folder


def install(site: Path, name: str, source: str, group: str = PLUGINS, **more: Any) -> None:
    """One distribution ``skyrl-NAME`` with one module and one entry point."""
    package = f"skyrl_{name}"
    make_distribution(
        site,
        f"skyrl-{name}",
        modules={package: IMPORTS + source},
        entry_points={group: {name: package}},
        **more,
    )


def loaded(*names: str, order: tuple[str, ...] = ()) -> PluginManager:
    catalog = discover(refresh=True)
    manager = PluginManager(catalog)
    manager.load([catalog.find(name) for name in names], order=order)
    return manager


def names(entries: tuple[PluginEntry, ...]) -> list[str]:
    return [entry.name for entry in entries]


OBSERVER = """
seen = []
@hookimpl
def on_step_end(step):
    seen.append(step)
"""

ENV = """
@hookimpl
def make_env(name):
    return "{name}'s env" if name == "{name}" else None
"""

# --- loading ------------------------------------------------------------------------


def test_only_selected_plugins_are_imported(site: Path) -> None:
    install(site, "foo", OBSERVER)
    install(site, "bar", "raise RuntimeError('imported')\n")
    manager = loaded("foo")
    assert names(manager.entries) == ["foo"]
    assert "skyrl_foo" in sys.modules
    assert "skyrl_bar" not in sys.modules


def test_trap_a_broken_plugin_is_named_with_its_distribution_and_hides_no_other(site: Path) -> None:
    # load_setuptools_entrypoints stops at the first one and names nobody.
    install(site, "bad", "1 / 0\n")
    install(site, "worse", "import skyrl_no_such_module\n")
    with pytest.raises(PluginLoadError) as caught:
        loaded("bad", "worse")
    first, second = str(caught.value).splitlines()
    assert first.startswith(
        "plugin 'bad' (skyrl-bad 0.1.0) failed while importing skyrl_bad: "
        "ZeroDivisionError: division by zero"
    )
    assert second.startswith("plugin 'worse' (skyrl-worse 0.1.0) needs the module")
    assert names(loaded("agent").entries) == ["agent"]


def test_a_load_that_fails_leaves_the_manager_as_it_was(site: Path) -> None:
    install(site, "foo", OBSERVER)
    install(site, "bad", "1 / 0\n")
    manager = loaded("foo")
    with pytest.raises(PluginLoadError):
        manager.load([manager.catalog.find("bad")])
    assert names(manager.entries) == ["foo"]
    assert names(manager.observers("on_step_end")) == ["foo"]


def test_a_missing_library_is_told_from_a_bug_and_the_extras_are_named(site: Path) -> None:
    install(site, "foo", "import vllm_of_the_moon.core\n", extras=["gpu"])
    with pytest.raises(
        PluginLoadError,
        match=r"needs the module 'vllm_of_the_moon', which is not installed\. "
        r'It may come with an extra: pip install "skyrl-foo\[gpu\]"',
    ) as caught:
        loaded("foo")
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


def test_a_module_that_the_distribution_itself_lacks_asks_for_a_reinstallation(site: Path) -> None:
    make_distribution(
        site,
        "skyrl-foo",
        modules={"skyrl_foo": ""},
        entry_points={PLUGINS: {"foo": "skyrl_foo.plugin"}},
    )
    with pytest.raises(
        PluginLoadError,
        match=r"lacks its own module 'skyrl_foo\.plugin'.*--force-reinstall skyrl-foo",
    ):
        loaded("foo")


def test_a_module_that_exits_is_a_load_error_and_no_exit(site: Path) -> None:
    install(site, "foo", "raise SystemExit('no GPU here')\n")
    with pytest.raises(PluginLoadError, match="SystemExit: no GPU here"):
        loaded("foo")


def test_trap_a_plugin_for_another_kernel_is_refused_before_its_code_runs(site: Path) -> None:
    install(site, "foo", "raise RuntimeError('ran')\n", requires=["skyrl-kernel>=99"])
    with pytest.raises(
        PluginLoadError,
        match=r"plugin 'foo' \(skyrl-foo 0\.1\.0\) cannot be loaded: it needs "
        r"skyrl-kernel >=99, but skyrl-kernel .* is installed: pip install",
    ):
        loaded("foo")
    assert "skyrl_foo" not in sys.modules


def test_several_names_may_share_one_module(site: Path) -> None:
    make_distribution(
        site,
        "skyrl-foo",
        modules={
            "skyrl_foo": IMPORTS
            + "calls = []\n"
            + "@hookimpl\n"
            + "def make_env(name):\n"
            + "    calls.append(name)\n"
            + "    return name.upper() if name in ('one', 'two') else None\n"
        },
        entry_points={ENVS: {"one": "skyrl_foo", "two": "skyrl_foo"}},
    )
    manager = loaded("one", "two")
    assert names(manager.entries) == ["one", "two"]
    assert manager.make("make_env", "two", name="two") == "TWO"
    assert sys.modules["skyrl_foo"].calls == ["two"]  # registered once


# --- order --------------------------------------------------------------------------


def test_trap_call_order_does_not_depend_on_the_order_of_loading(site: Path) -> None:
    for name in ("c", "a", "d", "b"):
        install(site, name, OBSERVER)
    install(site, "z", OBSERVER, group=LOGGERS)
    install(site, "y", OBSERVER, group=ALGORITHMS)
    orders = set()
    for seed in range(10):
        asked = list("abcdyz")
        random.Random(seed).shuffle(asked)
        orders.add(tuple(names(loaded(*asked).observers("on_step_end"))))
    # Groups in alphabetical order: algorithms, loggers, plugins; names within.
    assert orders == {("y", "z", "a", "b", "c", "d")}


def test_an_explicit_order_comes_first(site: Path) -> None:
    for name in "abcd":
        install(site, name, OBSERVER)
    manager = loaded(*"abcd", order=("d", "plugin/b"))
    assert names(manager.observers("on_step_end")) == ["d", "b", "a", "c"]


def test_plugins_loaded_later_take_their_place_in_the_same_order(site: Path) -> None:
    for name in "abc":
        install(site, name, OBSERVER)
    manager = loaded("c", "a", order=("c",))
    manager.load([manager.catalog.find("b")])
    assert names(manager.observers("on_step_end")) == ["c", "a", "b"]


def test_an_order_that_names_a_stranger_is_refused(site: Path) -> None:
    install(site, "foo", OBSERVER)
    with pytest.raises(
        PluginSelectionError, match=r"'fooo', which is not loaded\. Did you mean 'foo'"
    ):
        loaded("foo", order=("fooo",))


# --- implementations that cannot work -------------------------------------------------


def test_trap_a_misspelt_hook_is_refused_with_the_nearest_one(site: Path) -> None:
    install(site, "foo", "@hookimpl\ndef on_step_ends(step): ...\n")
    with pytest.raises(
        HookError,
        match=r"plugin 'foo' \(skyrl-foo 0\.1\.0\): skyrl_foo\.on_step_ends is marked as a hook "
        r"implementation, but there is no hook 'on_step_ends'\. Did you mean 'on_step_end'\?",
    ):
        loaded("foo")


def test_trap_an_async_hook_is_refused(site: Path) -> None:
    # Its coroutine is not None, so that it would win every firstresult hook.
    install(site, "foo", "@hookimpl\nasync def make_env(name): return None\n")
    with pytest.raises(
        HookError, match="'async def', but hooks are synchronous: return an async callable instead"
    ):
        loaded("foo")


def test_trap_an_argument_that_the_hook_lacks_is_refused_showing_both_sides(site: Path) -> None:
    install(site, "foo", "@hookimpl\ndef make_env(name, setings): ...\n")
    with pytest.raises(
        HookError,
        match=r"skyrl_foo\.make_env\(name, setings\) asks for 'setings', which hook 'make_env' does "
        r"not offer\. Did you mean 'settings'\? It offers: name, settings, extras, max_turns",
    ):
        loaded("foo")


@pytest.mark.parametrize("arguments", ["setings=None", "**settings", "*, settings", "name, /"])
def test_arguments_that_would_never_be_filled_are_refused(site: Path, arguments: str) -> None:
    install(site, "foo", f"@hookimpl\ndef make_env({arguments}): ...\n")
    with pytest.raises(HookError, match=r"never fill|does not offer"):
        loaded("foo")


def test_a_generator_that_is_not_marked_as_wrapper_is_refused(site: Path) -> None:
    install(site, "foo", "@hookimpl\ndef loss(name):\n    inner = yield\n    return inner\n")
    with pytest.raises(HookError, match="mark it wrapper=True, or remove the 'yield'"):
        loaded("foo")


def test_a_wrapper_without_yield_is_refused(site: Path) -> None:
    install(site, "foo", "@hookimpl(wrapper=True)\ndef loss(name): return None\n")
    with pytest.raises(HookError, match="marked wrapper=True, but has no 'yield'"):
        loaded("foo")


def test_a_wrapper_of_pluggys_old_style_is_refused(site: Path) -> None:
    install(site, "foo", "@hookimpl(hookwrapper=True)\ndef loss(name): yield\n")
    with pytest.raises(HookError, match="old style: use wrapper=True"):
        loaded("foo")


def test_a_wrapper_of_an_observer_is_refused(site: Path) -> None:
    install(site, "foo", "@hookimpl(wrapper=True)\ndef on_step_end(step): yield\n")
    with pytest.raises(HookError, match="only stages can be wrapped: generate, reward, select"):
        loaded("foo")


def test_a_module_without_any_hook_is_refused_and_the_forgotten_marker_named(site: Path) -> None:
    install(site, "foo", "def make_env(name): ...\n")
    with pytest.raises(HookError, match=r"implements no hook.*lack @hookimpl.*: make_env"):
        loaded("foo")


def test_a_plugin_that_is_only_a_preset_needs_no_hook(site: Path) -> None:
    make_distribution(
        site,
        "skyrl-foo",
        modules={"skyrl_foo.plugin": ""},
        entry_points={PLUGINS: {"foo": "skyrl_foo.plugin"}},
        files={"skyrl_foo/plugin.toml": "[foo.preset]\n'trainer.epochs' = 2\n"},
    )
    assert names(loaded("foo").entries) == ["foo"]


def test_an_optional_hook_of_a_later_kernel_is_left_alone(site: Path) -> None:
    install(site, "foo", OBSERVER + "@hookimpl(optionalhook=True)\ndef on_moon(): ...\n")
    assert names(loaded("foo").entries) == ["foo"]


def test_a_slot_declared_but_not_implemented_is_refused(site: Path) -> None:
    make_distribution(
        site,
        "skyrl-foo",
        modules={"skyrl_foo.plugin": IMPORTS + OBSERVER},
        entry_points={PLUGINS: {"foo": "skyrl_foo.plugin"}},
        files={"skyrl_foo/plugin.toml": "[foo]\nslots = ['trainer.evaluator']"},
    )
    with pytest.raises(
        HookError,
        match=r"fills 'trainer\.evaluator', which takes an implementation of hook 'evaluate'",
    ):
        loaded("foo")


# --- make ---------------------------------------------------------------------------


def test_make_takes_the_first_answer_that_is_not_none(site: Path) -> None:
    install(site, "a", ENV.format(name="a"), group=ENVS)
    install(site, "b", ENV.format(name="b"), group=ENVS)
    manager = loaded("a", "b")
    assert manager.make("make_env", "b", name="b", settings=None) == "b's env"


def test_a_name_whose_plugin_returns_none_is_said_to_be_claimed(site: Path) -> None:
    install(site, "a", "@hookimpl\ndef make_env(name): return None\n", group=ENVS)
    install(site, "b", ENV.format(name="b"), group=ENVS)
    with pytest.raises(
        PluginSelectionError,
        match=r"nobody answers hook 'make_env' for 'a': env 'a' \(skyrl-a 0\.1\.0\) claims the name, "
        r"but its implementation returned None\. Other loaded plugins that implement it: b",
    ):
        loaded("a", "b").make("make_env", "a", name="a")


def test_a_name_whose_plugin_lacks_the_hook_is_said_to(site: Path) -> None:
    install(site, "a", OBSERVER, group=ENVS)
    with pytest.raises(
        PluginSelectionError, match="claims the name, but does not implement the hook"
    ):
        loaded("a").make("make_env", "a", name="a")


def test_a_name_that_no_loaded_plugin_has_is_refused_with_the_nearest(site: Path) -> None:
    install(site, "division", ENV.format(name="division"), group=ENVS)
    with pytest.raises(
        PluginSelectionError, match=r"no loaded plugin has that name\. Did you mean 'division'"
    ):
        loaded("division").make("make_env", "divison", name="divison")


def test_a_plugin_that_answers_for_every_name_is_refused(site: Path) -> None:
    install(site, "a", "@hookimpl\ndef make_env(name): return 'mine'\n", group=ENVS)
    install(site, "b", ENV.format(name="b"), group=ENVS)
    with pytest.raises(
        HookError,
        match=r"asked for 'b', which is env 'b' \(skyrl-b 0\.1\.0\), but env 'a' .* answered",
    ):
        loaded("a", "b").make("make_env", "b", name="b")


def test_trap_an_exception_in_a_hook_carries_its_plugin(site: Path) -> None:
    install(site, "foo", "@hookimpl\ndef make_env(name): return {}['key']\n", group=ENVS)
    with pytest.raises(PluginError) as caught:
        loaded("foo").make("make_env", "foo", name="foo")
    assert str(caught.value) == (
        "plugin 'foo' (skyrl-foo 0.1.0) failed in hook 'make_env', start-up, process controller: "
        "KeyError: 'key'"
    )
    assert isinstance(caught.value.__cause__, KeyError)
    assert caught.value.exit_code == 2


def test_an_error_that_a_plugin_wrote_for_the_user_passes_unchanged(site: Path) -> None:
    install(
        site,
        "foo",
        "from skyrl_kernel.errors import ConfigError\n"
        "@hookimpl\ndef make_env(name): raise ConfigError('environment.foo.size is odd')\n",
        group=ENVS,
    )
    with pytest.raises(ConfigError, match=r"^environment\.foo\.size is odd$"):
        loaded("foo").make("make_env", "foo", name="foo")


def test_a_maker_finds_out_once_who_answers_to_a_name(site: Path) -> None:
    install(site, "a", ENV.format(name="a"), group=ENVS)
    install(site, "b", ENV.format(name="b"), group=ENVS)
    make = loaded("a", "b").maker("make_env", settings=None)
    assert [make("a"), make("b"), make("b"), make("a")] == [
        "a's env",
        "b's env",
        "b's env",
        "a's env",
    ]


def test_a_maker_raises_what_make_raises_however_often_it_is_asked(site: Path) -> None:
    code = "@hookimpl\ndef make_env(name, extras): return {'key': 1}[extras] if name == 'foo' else None\n"
    install(site, "foo", code, group=ENVS)
    make = loaded("foo").maker("make_env", settings=None)
    assert make("foo", extras="key") == 1
    with pytest.raises(PluginError, match=r"plugin 'foo' .* failed in hook 'make_env'"):
        make("foo", extras="another")
    with pytest.raises(PluginSelectionError, match="no loaded plugin has that name"):
        make("bar", extras="key")


# --- observers ------------------------------------------------------------------------


def test_trap_an_observer_that_raises_stops_no_other(site: Path) -> None:
    install(site, "a", OBSERVER)
    install(site, "b", "@hookimpl\ndef on_step_end(step): raise OSError('disk gone')\n")
    install(site, "c", OBSERVER)
    manager = loaded("a", "b", "c")
    (failure,) = manager.observe("on_step_end", step=7)
    assert str(failure) == (
        "observer 'b' (skyrl-b 0.1.0) failed in 'on_step_end': OSError: disk gone"
    )
    assert sys.modules["skyrl_a"].seen == [7]
    assert sys.modules["skyrl_c"].seen == [7]


def test_stop_run_is_raised_after_everybody_was_told(site: Path) -> None:
    install(
        site,
        "a",
        "from skyrl_kernel.errors import StopRun\n"
        "@hookimpl\ndef on_step_end(step): raise StopRun('enough')\n",
    )
    install(site, "b", "@hookimpl\ndef on_step_end(step): raise OSError('disk gone')\n")
    install(site, "c", OBSERVER)
    manager = loaded("a", "b", "c")
    with pytest.raises(StopRun, match="enough") as caught:
        manager.observe("on_step_end", step=1)
    assert sys.modules["skyrl_c"].seen == [1]
    assert "observer 'b'" in caught.value.__notes__[0]


def test_an_observer_that_answers_none_of_the_events_is_not_called(site: Path) -> None:
    install(site, "a", OBSERVER)
    manager = loaded("a")
    assert names(manager.observers("on_run_end")) == []
    assert manager.observe("on_run_end", end=None) == []


# --- config sections ------------------------------------------------------------------

SECTION = """
from pydantic import BaseModel
class Foo(BaseModel):
    size: int = 1
@hookimpl
def config_sections():
    return {{"{path}": Foo}}
"""


def install_section(site: Path, name: str, path: str, declared: str) -> None:
    make_distribution(
        site,
        f"skyrl-{name}",
        modules={f"skyrl_{name}.plugin": IMPORTS + SECTION.format(path=path)},
        entry_points={PLUGINS: {name: f"skyrl_{name}.plugin"}},
        files={f"skyrl_{name}/plugin.toml": f"[{name}]\nconfig = {declared}"},
    )


def test_config_sections_of_all_plugins_are_merged(site: Path) -> None:
    install_section(site, "a", "trainer.a", "['trainer.a']")
    install_section(site, "b", "trainer.b", "['trainer.b']")
    sections = loaded("a", "b").sections()
    assert {path: model.__module__ for path, model in sections.items()} == {
        "trainer.a": "skyrl_a.plugin",
        "trainer.b": "skyrl_b.plugin",
    }


@pytest.mark.parametrize("path", ["trainer.x", "trainer.x.y"])
def test_two_owners_of_one_config_path_are_both_named(site: Path, path: str) -> None:
    install_section(site, "a", "trainer.x", "['trainer.x']")
    install_section(site, "b", path, f"['{path}']")
    with pytest.raises(HookError, match=r"plugin 'b' .* and config 'trainer\.x' of plugin 'a'"):
        loaded("a", "b").sections()


@pytest.mark.parametrize(
    ("declared", "found"),
    [("[]", "sections none, but"), ("['trainer.y']", r"sections trainer\.y, but")],
)
def test_sections_that_differ_from_plugin_toml_are_refused(
    site: Path, declared: str, found: str
) -> None:
    install_section(site, "a", "trainer.x", declared)
    with pytest.raises(HookError, match=rf"{found} its hook 'config_sections' returns trainer\.x"):
        loaded("a").sections()


def test_a_declared_section_that_no_hook_returns_is_refused(site: Path) -> None:
    make_distribution(
        site,
        "skyrl-a",
        modules={"skyrl_a.plugin": IMPORTS + OBSERVER},
        entry_points={PLUGINS: {"a": "skyrl_a.plugin"}},
        files={"skyrl_a/plugin.toml": "[a]\nconfig = ['trainer.x']"},
    )
    with pytest.raises(
        HookError, match=r"declares the config sections trainer\.x, but .* returns none"
    ):
        loaded("a").sections()


def test_a_section_that_is_no_pydantic_model_is_refused(site: Path) -> None:
    install(site, "a", "@hookimpl\ndef config_sections(): return {'trainer.a': dict}\n")
    with pytest.raises(HookError, match="needed: a dotted path and a pydantic model class"):
        loaded("a").sections()


# --- the kernel's own -----------------------------------------------------------------


def test_every_plugin_of_the_kernel_loads_and_keeps_its_plugin_toml() -> None:
    catalog = discover(refresh=True)
    own = [entry for entry in catalog if entry.distribution == "skyrl-kernel"]
    manager = PluginManager(catalog)
    manager.load(own)
    assert list(manager.sections()) == ["trainer.ray"]
