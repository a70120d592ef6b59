"""The searchcode env keeps the contract of envs."""

from skyrl_kernel.env import Env
from skyrl_kernel.testing.contracts import EnvContract
from skyrl_searchcode.env import SearchcodeEnv


class TestSearchcode(EnvContract):
    prompt = ({"role": "user", "content": "6 * 7?"},)
    actions = (
        "<tool><echo>6 * 7</echo></tool>",
        "<tool><missing>x</missing></tool>",
        "<solution>#### 42</solution>",
        "#### 41",
        "",
    )

    def make(self, cap: int | None = None) -> Env:
        row = {"reward_spec": {"ground_truth": "42"}}
        return SearchcodeEnv(row, {"echo": lambda text: f"{text}!"}, max_turns=3, cap=cap)
