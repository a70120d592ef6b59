"""Each plugin.toml beside the module that it describes without importing it."""

import importlib

import pytest
from workspace import package_folders, project

from skyrl_kernel.errors import CapabilityError
from skyrl_kernel.plan import Plan, make_plan
from skyrl_kernel.plugins import PluginEntry, PluginManager, discover
from skyrl_kernel.plugins.validation import implementations
from skyrl_kernel.slots import MAKERS, STAGES

NAMES = {project(folder)["name"] for folder in package_folders()}
ENTRIES = [entry for entry in discover() if entry.distribution in NAMES]
CHEAP = {"make_runtime", "make_reduction"} | {slot.hook for slot in STAGES}
"""Hooks that answer by name alone: no model, no data."""

each = pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.qualified)


TEACHER = "trainer.teacher.model.path=teacher"
"""What distillation has to be told; nobody looks for it before a run begins."""


@each
def test_the_names_in_the_table_and_the_entry_points_are_usable(entry: PluginEntry) -> None:
    assert entry.problems == ()
    assert entry.manifest.summary.endswith(".")


@each
def test_the_config_sections_are_those_of_the_module(entry: PluginEntry) -> None:
    manager = PluginManager(discover())
    manager.load([entry])
    assert set(manager.sections()) == set(entry.manifest.config)


@pytest.fixture(autouse=True)
def _gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some transports are refused in plans of machines without one; nothing is computed here."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")


def planned(entry: PluginEntry) -> Plan:
    """With its config sections, beside the engine that it is made for."""
    made_for = {"vllm_weight_transfer", "receives_adapters"} & {*entry.manifest.needs}
    engine = ["vllm"] if made_for else []
    return make_plan([entry.qualified, *engine], overrides=[TEACHER])


@each
def test_the_slots_are_those_that_the_module_answers(entry: PluginEntry) -> None:
    plan = planned(entry)
    module = importlib.import_module(entry.value)
    hooks = {
        hook: (function, options)
        for hook, function, options in implementations(module).values()
        if not options.get("wrapper")
    }
    offered = {"name": entry.name, "settings": plan.config}
    for slot in (*MAKERS, *STAGES):
        declared = slot.key in entry.manifest.slots
        if slot.hook not in hooks:
            assert not declared, slot.key
        elif slot.hook in CHEAP:
            function, _ = hooks[slot.hook]
            wanted = function.__code__.co_varnames[: function.__code__.co_argcount]
            try:
                is_own = function(**{name: offered[name] for name in wanted}) is not None
            except CapabilityError:  # it is, and what it needs is not on this machine
                is_own = True
            assert is_own == declared, slot.key


@each
def test_a_run_can_be_planned_with_it(entry: PluginEntry) -> None:
    """So the keys and values of its preset exist, and what it needs is installed."""
    assert entry in planned(entry).entries
