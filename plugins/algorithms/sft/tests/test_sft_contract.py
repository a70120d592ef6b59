"""SFT's advantage and loss keep the contract of algorithms."""

from skyrl_kernel.protocols import Advantage, Loss
from skyrl_kernel.testing.contracts import AlgorithmContract
from skyrl_sft import cross_entropy, uniform


class TestSft(AlgorithmContract):
    reads_rewards = False
    knows_groups = False
    is_policy_gradient = False
    needs_advantages = False

    def advantage(self) -> Advantage:
        made = uniform.advantage("uniform")
        assert made is not None
        return made

    def loss(self) -> Loss:
        made = cross_entropy.loss("cross_entropy")
        assert made is not None
        return made
