"""Envs that no installed plugin is called, and envs that refuse to start."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from skyrl_kernel.errors import DataError, PluginError, PluginSelectionError, UsageError
from skyrl_kernel.plan import Plan, make_plan
from skyrl_kernel.plugins import discover
from skyrl_kernel.prepared import load_data, make_tokenizer
from skyrl_kernel.slots import ENVS
from skyrl_kernel.testing.distributions import make_distribution
from skyrl_kernel.testing.scripted import installed

ADAPTER = """
from skyrl_kernel.env import EnvStep, TextEnv
from skyrl_kernel.errors import UsageError
from skyrl_kernel.hookspecs import hookimpl


class Echo(TextEnv):
    def __init__(self, name, extras):
        super().__init__(extras)
        self.name = name

    def step(self, action):
        return EnvStep(observations=[], reward=1.0, done=True, metadata={"env": self.name})


@hookimpl
def make_env(name, extras):
    return Echo(name, extras) if name.startswith("other") else None


@hookimpl
def check_env(name):
    if name == "other:Missing":
        raise UsageError("there is no class Missing; there is Here")
    if name == "other:Broken":
        raise RuntimeError("the check is ill")
"""


@pytest.fixture(scope="module", autouse=True)
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with installed(tmp_path_factory.mktemp("site")) as folder:
        make_distribution(
            folder,
            "skyrl-other",
            modules={"skyrl_other.plugin": ADAPTER},
            entry_points={ENVS: {"other": "skyrl_other.plugin"}},
            files={"skyrl_other/plugin.toml": '[other]\noffers = ["any_env"]\n'},
        )
        discover(refresh=True)
        yield folder


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": [{"role": "user", "content": "?"}]}\n')
    return file


def planned(env: str, rows: Path, *plugins: str) -> Plan:
    words = [
        f"environment.env_class={env}",
        f"data.train_data=['{rows}']",
        "data.val_data=[]",
    ]
    return make_plan(("scripted", *plugins), [], words)


def load(plan: Plan) -> None:
    load_data(plan, make_tokenizer(plan, Path("unused")))


def test_a_name_that_nobody_has_goes_to_the_plugin_that_takes_any(rows: Path) -> None:
    plan = planned("other_module:Here", rows, "other")
    load(plan)
    name = "other_module:Here"
    env = plan.manager.make(
        "make_env", name, name=name, settings=plan.config, extras={}, max_turns=None
    )
    assert env.step("x")["metadata"] == {"env": name}


def test_an_installed_env_keeps_its_name(rows: Path) -> None:
    plan = planned("scripted", rows, "other")
    assert plan.selected("scripted", ENVS)
    assert not plan.adopts("scripted")
    assert not plan.adopts("env/scripted")
    assert plan.adopts("nobody:Here")


def test_without_such_a_plugin_an_unknown_name_is_refused_as_before(rows: Path) -> None:
    with pytest.raises(
        PluginSelectionError,
        match=r"environment\.env_class=other_module:Here: no env.*are run by --plugin other\.",
    ):
        planned("other_module:Here", rows)
    rows.write_text(rows.read_text().replace("}\n", ', "env_class": "nobodys"}\n'))
    with pytest.raises(
        DataError, match=r"names the env 'nobodys', which is not installed.*run by --plugin other"
    ):
        load(planned("scripted", rows))


def test_an_env_that_cannot_be_made_refuses_the_run_with_the_row_that_asks_for_it(
    rows: Path,
) -> None:
    with pytest.raises(
        UsageError,
        match=r"data\.train_data: '.*rows\.jsonl', row 0 \(from 0\) names the env "
        r"'other:Missing': there is no class Missing; there is Here",
    ):
        load(planned("other:Missing", rows, "other"))


def test_a_check_that_fails_itself_is_blamed_on_its_plugin(rows: Path) -> None:
    with pytest.raises(PluginError, match=r"skyrl-other.*check_env.*") as caught:
        load(planned("other:Broken", rows, "other"))
    assert caught.value.exit_code == 2
    assert "the check is ill" in str(caught.value)
