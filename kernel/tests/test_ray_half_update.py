"""A critic that fails after the policy has made its step: the run ends, and saves neither."""

import json
from pathlib import Path

import pytest

from skyrl_kernel.errors import PluginError
from skyrl_kernel.plugins import discover
from skyrl_kernel.slots import BACKENDS
from skyrl_kernel.testing.distributions import make_distribution
from skyrl_kernel.testing.scripted import run_scripted

pytest.importorskip("skyrl_ppo", reason="not checked: a critic needs the plugin ppo")

HALF = '''
"""The scripted trainer. In its third update a critic with a process of its own fails when the policy
has made its step."""

import time
from pathlib import Path

from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.testing.scripted import Script, ScriptedTrainer

STEPPED = Path(__file__).parents[1] / "stepped"


class Half(ScriptedTrainer):
    def __init__(self, elsewhere):
        super().__init__(Script(), elsewhere)
        self.is_critic = "policy" in elsewhere

    def update(self, batch, loss, *, temperature):
        if self.is_critic and self.updates == 2:
            while not STEPPED.exists():
                time.sleep(0.01)
            raise RuntimeError("no step of the critic")
        result = super().update(batch, loss, temperature=temperature)
        if self.updates == 3:
            STEPPED.touch()
        return result


@hookimpl
def make_trainer(name, elsewhere):
    return Half(elsewhere) if name == "half" else None
'''
MANIFEST = """
[half]
slots = ["trainer.strategy"]
offers = ["trains_values", "several_ranks"]
"""
SETTINGS = (
    "trainer.strategy=half",
    "trainer.algorithm.advantage_estimator=gae",
    "trainer.runtime=ray",
    "trainer.placement.colocate_all=false",
    "trainer.ckpt_interval=1",
)


def test_no_checkpoint_has_a_step_of_the_policy_without_the_critics(
    fakes_on_ray: Path, tmp_path: Path
) -> None:
    make_distribution(
        fakes_on_ray,
        "skyrl-half",
        modules={"skyrl_half.hooks": HALF},
        entry_points={BACKENDS: {"half": "skyrl_half.hooks"}},
        files={"skyrl_half/plugin.toml": MANIFEST},
    )
    discover(refresh=True)
    with pytest.raises(PluginError, match=r"step 3, process critic rank 0 .*no step of the critic"):
        run_scripted(tmp_path, *SETTINGS)
    assert (fakes_on_ray / "stepped").exists()
    (run,) = (path for path in tmp_path.iterdir() if path.is_dir())
    saved = sorted((run / "checkpoints").iterdir())
    assert [path.name for path in saved] == ["global_step_1", "global_step_2"]
    for number, path in enumerate(saved, 1):
        states = [json.loads(file.read_text()) for file in path.glob("scripted*.json")]
        assert [state["updates"] for state in states] == [number, number]
