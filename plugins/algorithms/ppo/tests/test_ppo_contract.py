"""PPO keeps the contract of algorithms."""

import pytest

from skyrl_kernel.config import AlgorithmConfig
from skyrl_kernel.protocols import Advantage, Loss
from skyrl_kernel.testing.contracts import AdvantageContract, AlgorithmContract
from skyrl_kernel.torch import LossInputs, LossTerms
from skyrl_ppo import gae
from skyrl_ppo.value_loss import with_value_loss


class TestPpo(AlgorithmContract):
    knows_groups = False

    @pytest.fixture(autouse=True)
    def _needs_torch(self) -> None:
        pytest.importorskip("torch", reason="not checked: the loss needs torch")

    def advantage(self) -> Advantage:
        made = gae.advantage("gae", {AlgorithmConfig: AlgorithmConfig(gamma=0.9, lambd=0.8)})
        assert made is not None
        return made

    def loss(self) -> Loss:
        def fn(inputs: LossInputs) -> LossTerms:
            return LossTerms(terms={"policy": -inputs.logprobs * inputs.advantages})

        return with_value_loss(Loss(fn=fn), 0.2)


class TestGaeByItsDefaults(AdvantageContract):
    """γ = λ = 1: a reward more for everybody is a return more for every token."""

    knows_groups = False
    ignores_reward_shift = True

    def advantage(self) -> Advantage:
        made = gae.advantage("gae", {AlgorithmConfig: AlgorithmConfig()})
        assert made is not None
        return made
