"""Both estimators keep the contract of advantages."""

from skyrl_distillation import advantage as method
from skyrl_distillation import no_op
from skyrl_kernel.protocols import Advantage
from skyrl_kernel.testing.contracts import AdvantageContract


class TestDistillation(AdvantageContract):
    reads_rewards = False
    knows_groups = False
    ignores_reward_shift = True

    def advantage(self) -> Advantage:
        made = method.advantage("distillation")
        assert made is not None
        return made


class TestNoOp(AdvantageContract):
    knows_groups = False

    def advantage(self) -> Advantage:
        made = no_op.advantage("no_op")
        assert made is not None
        return made
