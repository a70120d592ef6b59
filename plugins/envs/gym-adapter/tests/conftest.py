"""A module as a user of skyrl-gym writes it, and what runs its classes here."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from skyrl_gym_adapter.config import SkyrlGymConfig
from skyrl_gym_adapter.envs import InProcessEnv, SandboxedEnv
from skyrl_gym_adapter.recipe import Recipe
from skyrl_gym_adapter.workers import close_workers

MODULE = '''
"""Written for skyrl-gym: nothing of this project is imported."""

import os
import subprocess
import sys
import time

import numpy as np
from skyrl_gym.envs.base_text_env import BaseTextEnv, BaseTextEnvStepOutput

seen = []


class Guess(BaseTextEnv):
    """Guess a number; said to be higher or lower, until the turns are used up."""

    def __init__(self, env_config=None, extras={}):
        super().__init__()
        assert "reward_spec" in extras, "reward_spec field is required"
        self.number = int(extras["reward_spec"]["ground_truth"])
        self.max_turns = extras["max_turns"] if "max_turns" in extras else 3
        self.bonus = env_config.bonus if "bonus" in env_config else 0.0
        self.closed = False

    def init(self, prompt):
        return [*prompt, {"role": "user", "content": "Between 1 and 9."}], {"range": (1, 9)}

    def step(self, action):
        self.turns += 1
        try:
            guess = int(action)
        except ValueError:
            guess = -1
        right = guess == self.number
        done = right or self.turns >= self.max_turns
        said = "higher" if guess < self.number else "lower"
        return BaseTextEnvStepOutput(
            observations=[] if done else [{"role": "user", "content": said}],
            reward=np.float32(right) + self.bonus,
            done=done,
            metadata={"guess": np.int64(guess), "all": {guess}},
            postprocessed_action=action.strip(),
        )

    def get_metrics(self):
        return {"turns": self.turns, "lucky": self.turns == 1, "note": "no number"}

    @staticmethod
    def aggregate_metrics(metrics):
        n = len(metrics)
        return {"avg_turns": sum(m["turns"] for m in metrics) / n, "lucky": sum(m["lucky"] for m in metrics) / n}


class NeedsTurns(Guess):
    def __init__(self, env_config, extras):
        super().__init__(env_config, extras)
        self.max_turns = extras["max_turns"]


class Runs(BaseTextEnv):
    """Executes what the model wrote, in its own process: what nobody should do outside of a sandbox."""

    def __init__(self, env_config=None, extras={}):
        super().__init__()

    def step(self, action):
        space = {"seen": seen, "env": self}
        try:
            exec(action, space)
        except Exception as error:
            space["answer"] = f"{type(error).__name__}: {error}"
        print("a class may print what it likes")
        return BaseTextEnvStepOutput(
            observations=[], reward=0.0, done=True, metadata={"answer": space.get("answer")}
        )


class Looks(Guess):
    """Keeps the list that SkyRL continues, as skyrl-gym's rlm does."""

    def init(self, prompt):
        self.history, info = super().init(prompt)
        return self.history, info

    def step(self, action):
        self.max_turns = 9
        return {**super().step(action), "metadata": {"history": [m["content"] for m in self.history]}}


class Hangs(Guess):
    def step(self, action):
        if self.number == 0:
            time.sleep(600)
        return super().step(action)


def make_guess(env_config, extras):
    """An entry point may be a function."""
    return Guess(env_config, extras)


not_a_class = 3
'''

IDS = "import skyrl_gym\nskyrl_gym.register(id='guess_registered', entry_point='guessing:Guess')\n"


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the module ``guessing``, and ``guessing_ids``, which registers a class of it."""
    folder = tmp_path_factory.mktemp("users")
    folder.chmod(0o755)  # programs in the sandbox are another user
    (folder / "guessing.py").write_text(MODULE)
    (folder / "guessing_ids.py").write_text(IDS)
    return folder


@pytest.fixture(autouse=True)
def _leave_nothing() -> Iterator[None]:
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name.startswith("guessing"):
            del sys.modules[name]


@pytest.fixture(scope="session")
def bwrap() -> Iterator[str]:
    """Bubblewrap, or the test is skipped. A worker stays from test to test, as it does in a run."""
    path = shutil.which("bwrap", path=os.environ.get("PATH", "") + ":/usr/bin:/bin")
    if path is None:
        pytest.skip("bubblewrap is not installed: how classes run in the sandbox was not checked")
    yield path
    close_workers()


@pytest.fixture(params=["in process", "sandboxed"])
def kind(request: pytest.FixtureRequest) -> type[InProcessEnv] | type[SandboxedEnv]:
    """Each way in which a class runs."""
    if request.param == "in process":
        return InProcessEnv
    request.getfixturevalue("bwrap")
    return SandboxedEnv


@pytest.fixture
def recipe(folder: Path) -> Callable[..., Recipe]:
    """What the plugin makes of a name and of ``environment.skyrl_gym``."""

    def make(name: str, **settings: Any) -> Recipe:
        return Recipe.of(name, SkyrlGymConfig(**{"folders": [str(folder)], **settings}))

    return make
