"""The gsm8k env keeps the contract of envs."""

from skyrl_gsm8k.env import Gsm8kEnv
from skyrl_kernel.env import Env
from skyrl_kernel.testing.contracts import EnvContract


class TestGsm8k(EnvContract):
    prompt = ({"role": "user", "content": "How many?"},)
    actions = ("#### 72", "#### 71", "72", "#### 7,2", "####")

    def make(self, cap: int | None = None) -> Env:
        return Gsm8kEnv({"reward_spec": {"ground_truth": "72"}})  # one turn, so nothing to cap
