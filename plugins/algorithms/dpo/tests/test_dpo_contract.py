"""DPO's loss keeps the contract of losses; its sides do not depend on rewards."""

from skyrl_dpo.config import DpoConfig
from skyrl_dpo.loss import make_loss
from skyrl_kernel.protocols import Loss
from skyrl_kernel.testing.contracts import LossContract


class TestDpo(LossContract):
    is_policy_gradient = False
    group_size = 2

    def loss(self) -> Loss:
        return make_loss(DpoConfig())
