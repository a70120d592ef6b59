"""The multiply env keeps the contract of envs."""

from skyrl_kernel.env import Env
from skyrl_kernel.testing.contracts import EnvContract
from skyrl_multiply.env import MultiplyEnv


class TestMultiply(EnvContract):
    prompt = ({"role": "user", "content": "6 * 7"},)
    actions = (r"\boxed{42}", r"\boxed{41}", "42", r"\boxed{", r"\boxed{4}2}")

    def make(self, cap: int | None = None) -> Env:
        return MultiplyEnv({"reward_spec": {"ground_truth": "42"}}, cap=cap)
