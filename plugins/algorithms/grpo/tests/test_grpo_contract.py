"""GRPO keeps the contract of algorithms."""

import pytest

from skyrl_grpo import advantage, clip
from skyrl_kernel.config import AlgorithmConfig
from skyrl_kernel.protocols import Advantage, Loss
from skyrl_kernel.testing.contracts import AdvantageContract, AlgorithmContract

SETTINGS = {AlgorithmConfig: AlgorithmConfig()}


class TestGrpo(AlgorithmContract):
    ignores_reward_shift = True
    equal_rewards_give_nothing = True

    @pytest.fixture(autouse=True)
    def _needs_torch(self) -> None:
        pytest.importorskip("torch", reason="not checked: the loss needs torch")

    def advantage(self) -> Advantage:
        made = advantage.advantage("grpo", SETTINGS)
        assert made is not None
        return made

    def loss(self) -> Loss:
        made = clip.loss("regular", SETTINGS)
        assert made is not None
        return made


class TestDrGrpo(AdvantageContract):
    ignores_reward_shift = True
    equal_rewards_give_nothing = True

    def advantage(self) -> Advantage:
        config = AlgorithmConfig(grpo_norm_by_std=False)
        made = advantage.advantage("grpo", {AlgorithmConfig: config})
        assert made is not None
        return made
