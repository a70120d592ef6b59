"""What the stage `advantage` brings beside its numbers per token: metrics, and what it remembers."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from skyrl_kernel.errors import HookError, PluginError
from skyrl_kernel.testing.distributions import make_plugins
from skyrl_kernel.testing.scripted import Script, installed, run_scripted

AROUND = """
from dataclasses import replace

from skyrl_kernel.hookspecs import hookimpl

class Steps:
    done = 0
    def state_dict(self):
        return {{"done": {remembered}}}
    def load_state_dict(self, state):
        self.done = state["done"] + 0

@hookimpl(wrapper=True)
def advantage():
    inner = yield
    steps = Steps()
    def fn(groups):
        steps.done += 1
        return inner(groups)
    return replace(inner, fn=fn, measure=lambda groups: {measured}, state={{"steps": steps}})
"""
SELECTS = """
from skyrl_kernel.defaults.keep_all import keep_all
from skyrl_kernel.hookspecs import hookimpl

class Keeps:
    seen = [2, 3]
    def __call__(self, candidates, target, rng):
        return keep_all(candidates, target, rng)
    def state_dict(self):
        return {remembered}
    def load_state_dict(self, state):
        self.seen = [*state]

@hookimpl
def select(name):
    return Keeps() if name == "{name}" else None
"""
MEASURED = {
    "unnamed": '{"mine": 1.0}',
    "takes": '{"reward/avg_raw_reward": 1.0}',
    "takes_later": '{"policy/final_loss": 1.0}',
    "words": '{"loss/mine": "high"}',
    "divides": '{"loss/mine": 1 / 0}',
}
REMEMBERED = {"at_once": "{1, 2}", "after_a_step": "self.done and {1: 2}", "text": "str(self.done)"}
SELECTED = {"a_list": "self.seen", "a_set": "{*self.seen}"}
SHORT = ("data.val_data=[]", "trainer.ckpt_interval=-1")


@pytest.fixture(scope="module", autouse=True)
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    sources = {
        name: AROUND.format(remembered="self.done", measured=text)
        for name, text in MEASURED.items()
    }
    sources |= {
        name: AROUND.format(remembered=text, measured="{}") for name, text in REMEMBERED.items()
    }
    sources |= {name: SELECTS.format(remembered=text, name=name) for name, text in SELECTED.items()}
    with installed(tmp_path_factory.mktemp("site")) as folder:
        make_plugins(folder, sources)
        yield folder


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("unnamed", r"measures 'mine'; a metric is called AREA/NAME, such as 'loss/mine'"),
        ("takes", r"measures reward/avg_raw_reward, which the kernel measures itself"),
        ("takes_later", r"measures policy/final_loss, which the kernel measures itself"),
        ("words", r"measures loss/mine = 'high'; needed: a number"),
    ],
)
def test_a_metric_of_the_advantage_has_a_name_of_its_own_and_is_a_number(
    tmp_path: Path, name: str, told: str
) -> None:
    with pytest.raises(
        HookError, match=rf"^algorithm 'scripted' .*, wrapped by plugin '{name}' .* {told}"
    ):
        run_scripted(tmp_path, *SHORT, plugins=[name])


def test_what_measures_and_raises_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        PluginError, match=r"^plugin 'divides' .* failed in hook 'advantage', step 1, .*Zero"
    ):
        run_scripted(tmp_path, *SHORT, plugins=["divides"])


def test_what_no_checkpoint_keeps_is_found_before_the_first_step(tmp_path: Path) -> None:
    script = Script()
    with pytest.raises(
        HookError,
        match=r"^plugin 'at_once' \(skyrl-at_once 0\.1\.0\): its hook 'advantage' remembers what no "
        r"checkpoint keeps: state\['steps'\] does not fit in JSON: .*set",
    ):
        run_scripted(tmp_path, *SHORT, script=script, plugins=["at_once"])
    assert not any(event.startswith("ask") for event in script.events)


def test_what_becomes_so_is_found_after_the_first_step(tmp_path: Path) -> None:
    script = Script()
    with pytest.raises(
        HookError, match=r"^plugin 'after_a_step' .*state\['steps'\]\['done'\] has the key 1;"
    ):
        run_scripted(tmp_path, *SHORT, script=script, plugins=["after_a_step"])
    assert script.events.count("sync 1") == 1
    assert script.events.count("sync 2") == 0


def test_what_cannot_go_on_from_its_checkpoint_is_named(tmp_path: Path) -> None:
    steps = ("data.val_data=[]", "trainer.ckpt_interval=1", "trainer.max_training_steps=")
    run_scripted(tmp_path, *steps[:2], f"{steps[2]}1", plugins=["text"])
    with pytest.raises(
        PluginError, match=r"^plugin 'text' .* failed in hook 'advantage', start-up, .*TypeError"
    ):
        run_scripted(tmp_path, *steps[:2], f"{steps[2]}2", plugins=["text"])


def test_another_stage_remembers_whatever_json_keeps_and_is_named_otherwise(tmp_path: Path) -> None:
    select = "trainer.algorithm.dynamic_sampling.type="
    run_scripted(tmp_path / "kept", *SHORT, f"{select}a_list")
    with pytest.raises(
        HookError,
        match=r"^plugin 'a_set' \(skyrl-a_set 0\.1\.0\): its hook 'select' remembers what no checkpoint "
        r"keeps: state_dict\(\) does not fit",
    ):
        run_scripted(tmp_path / "lost", *SHORT, f"{select}a_set")
