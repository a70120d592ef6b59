"""Adapted classes keep the contract of envs, in this process and in the sandbox."""

from collections.abc import Callable
from typing import Any

import pytest

from skyrl_gym_adapter.config import SkyrlGymConfig
from skyrl_gym_adapter.envs import InProcessEnv, SandboxedEnv
from skyrl_gym_adapter.plugin import with_max_turns
from skyrl_gym_adapter.recipe import Recipe
from skyrl_kernel.env import Env
from skyrl_kernel.testing.contracts import EnvContract


class TestAClassOfSkyrlGym(EnvContract):
    actions = ("#### 72", "#### 71", "72", "#### 7,2", "####")

    def make(self, cap: int | None = None) -> Env:
        row = {"reward_spec": {"ground_truth": "72"}, "extra_info": {}, "max_turns": 3}
        recipe = Recipe.of("gsm8k_multi_turn", SkyrlGymConfig())
        return InProcessEnv(recipe, with_max_turns(row, cap))


class TestAClassOfAUser(EnvContract):
    actions = ("7", "3", "", "seven")

    @pytest.fixture(autouse=True)
    def _take(self, kind: type[InProcessEnv] | type[SandboxedEnv], recipe: Callable[..., Recipe]) -> None:  # fmt: skip
        self.kind, self.recipe = kind, recipe("guessing:Guess")

    def make(self, cap: int | None = None) -> Env:
        row: dict[str, Any] = {"reward_spec": {"ground_truth": "7"}, "max_turns": 3}
        return self.kind(self.recipe, with_max_turns(row, cap))
