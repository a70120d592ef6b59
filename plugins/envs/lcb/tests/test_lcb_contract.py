"""The lcb env keeps the contract of envs."""

import json
import shutil

import pytest

from skyrl_kernel.env import Env
from skyrl_kernel.testing.contracts import EnvContract
from skyrl_lcb.config import LcbConfig
from skyrl_lcb.env import LcbEnv, make_sandbox

pytestmark = pytest.mark.skipif(
    shutil.which("bwrap") is None,
    reason="bubblewrap is not installed: the contract of lcb was not checked",
)


class TestLcb(EnvContract):
    prompt = ({"role": "user", "content": "Add the two numbers."},)
    actions = (
        "```python\nprint(sum(map(int, input().split())))\n```",
        "```\nprint(1\n```",
        "no",
        "",
    )

    def make(self, cap: int | None = None) -> Env:
        tests = [{"input": "1 2", "output": "3", "testtype": "stdin", "metadata": {}}]
        row = {"reward_spec": {"ground_truth": json.dumps(tests)}}
        return LcbEnv(row, make_sandbox(LcbConfig()), LcbConfig(), 60.0)
