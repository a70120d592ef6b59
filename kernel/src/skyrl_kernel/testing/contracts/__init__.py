"""What every plugin of a kind must keep, as test classes to subclass.

A subclass says how to make the thing; the tests come with the class::

    class TestFoo(EnvContract):
        actions = ("wrong", "right")

        def make(self, cap=None):
            return FooEnv({"reward_spec": {"ground_truth": "right"}}, cap=cap)

They check what the kernel relies on and cannot check at run time without paying
for it at every call.
"""

# ruff: noqa: E402
import pytest

for _kind in ("algorithm", "engine", "env", "observer", "parity", "sink", "trainer"):
    pytest.register_assert_rewrite(f"{__name__}.{_kind}")  # a failed assert shows its two sides

from skyrl_kernel.testing.contracts.algorithm import (
    AdvantageContract,
    AlgorithmContract,
    LossContract,
)
from skyrl_kernel.testing.contracts.engine import (
    EngineContract,
    LogProbContract,
    ModelEngineContract,
    ServedEngineContract,
)
from skyrl_kernel.testing.contracts.env import EnvContract
from skyrl_kernel.testing.contracts.observer import LoggerContract, ObserverContract
from skyrl_kernel.testing.contracts.parity import ParityContract
from skyrl_kernel.testing.contracts.sink import SinkContract
from skyrl_kernel.testing.contracts.trainer import CriticContract, TrainerContract

__all__ = [
    "AdvantageContract",
    "AlgorithmContract",
    "CriticContract",
    "EngineContract",
    "EnvContract",
    "LogProbContract",
    "LoggerContract",
    "LossContract",
    "ModelEngineContract",
    "ObserverContract",
    "ParityContract",
    "ServedEngineContract",
    "SinkContract",
    "TrainerContract",
]
