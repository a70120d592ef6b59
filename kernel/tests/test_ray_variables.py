"""Environment variables that a plugin asks for, and those that the user does."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from skyrl_kernel.plugins import discover
from skyrl_kernel.slots import BACKENDS
from skyrl_kernel.testing.distributions import make_distribution, on_path
from skyrl_kernel.testing.scripted import run_scripted

PLUGIN = """
import os
from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.testing.scripted import Script, ScriptedTrainer

@hookimpl
def make_trainer(name):
    if name == "asking":
        found = {key: value for key, value in os.environ.items() if key.startswith("ASKED_")}
        assert found == {"ASKED_ALONE": "plugin", "ASKED_TOO": "user", "ASKED_BY_USER": "user"}, found
        return ScriptedTrainer(Script())
"""
MANIFEST = """
[asking]
slots = ["trainer.strategy"]
[asking.runtime_env.env_vars]
ASKED_ALONE = "plugin"
ASKED_TOO = "plugin"
"""


@pytest.fixture(scope="module")
def asking(fakes: Path) -> Iterator[Path]:
    """A Ray whose processes find a plugin that asks for variables."""
    from skyrl_kernel.ray.cluster import Cluster

    make_distribution(
        fakes,
        "skyrl-asking",
        modules={"skyrl_asking.plugin": PLUGIN},
        files={"skyrl_asking/plugin.toml": MANIFEST},
        entry_points={BACKENDS: {"asking": "skyrl_asking.plugin"}},
    )
    with on_path(fakes):
        discover(refresh=True)
        cluster = Cluster(num_cpus=4)
        try:
            yield fakes
        finally:
            cluster.close()
    discover(refresh=True)


@pytest.mark.usefixtures("asking")
def test_a_users_variables_leave_a_plugins_others_as_they_are(tmp_path: Path) -> None:
    result = run_scripted(
        tmp_path,
        "trainer.runtime=ray",
        "trainer.strategy=asking",
        "trainer.ray.trainer_env={env_vars: {ASKED_TOO: user, ASKED_BY_USER: user}}",
    )
    assert result.status == "finished"
