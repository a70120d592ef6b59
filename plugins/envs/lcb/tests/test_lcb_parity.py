"""Rewards equal those of the skyrl-gym package, on right and wrong programs of many shapes."""

import json
import random
import shutil

import pytest

from skyrl_lcb.config import LcbConfig
from skyrl_lcb.env import LcbEnv, make_sandbox

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("bwrap") is None,
        reason="bubblewrap is not installed: lcb was not compared with skyrl-gym",
    ),
]

READING = [
    "int(input())",
    "int(sys.stdin.readline())",
    "int(sys.stdin.read())",
    "int(open(0).read())",
]
EXPRESSIONS = ["n * n", "n ** 2", "n * n + 0.0", "float(n) * n", "n * n + (n > 4)", "n + n", "str(n * n)",
               "[n * n]", "n / 0", "undefined", "abs(n) * abs(n)", "sum([n] * n)", "math.prod([n, n])",
               "reduce(mul, [n, n])", "Counter([n])[n] * n * n", "np.int64(n) * n"]  # fmt: skip
SHAPES = [
    "n = {read}\nprint({value})",
    "def main():\n    n = {read}\n    print({value})\nmain()",
    "def main():\n    n = {read}\n    print({value})\nif __name__ == '__main__':\n    main()",
    "n = {read}\nprint(' ', {value}, '')",
    "n = {read}\nprint({value})\nprint()",
    "n = {read}\nprint({value}); print('extra')",
    "n = {read}\nprint({value})\nraise SystemExit",
    "n = {read}\nprint({value})\nexit(1)",
    "n = {read}\nprint({value})\nraise ValueError",
    "n = {read}\nsys.stdout.write(str({value}))",
    "n = {read}\nprint({value}, file=sys.stderr)",
    "n = {read}\nprint({value}",
]
FENCES = ["```python\n{code}\n```"] * 6 + [
    "```\n{code}\n```", "I think:\n```python\nprint(0)\n```\nNo:\n```python\n{code}\n```\nDone.",
    "```python\n{code}\n```\n```python\nprint(0)\n```", "```python\n{code}", "{code}", "``` python\n{code}\n```",
]  # fmt: skip
FUNCTIONS = [
    "def square(n, *rest):\n    return {value}",
    "class Solution:\n    def square(self, n: int, *rest) -> int:\n        return {value}",
    "class Solution:\n    def square(self, n: Optional[int], *rest):\n        print(n)\n        return {value}",
    "def square(n):\n    return {value}",
    "def cube(n):\n    return {value}",
    "class Solution:\n    def cube(self, n):\n        return {value}",
    "square = lambda n, *rest: ({value}, )[0]",
    "def square(n, *rest):\n    raise KeyError",
]


def answers(rng: random.Random) -> tuple[list[dict], str]:
    """Tests, and a completion that is meant to pass them more often than not."""
    numbers = [rng.randint(0, 9) for _ in range(rng.randint(1, 3))]
    right = ["n * n", "n ** 2", "abs(n) * abs(n)", "math.prod([n, n])"]
    value = rng.choice(rng.choice([right, right, EXPRESSIONS]))
    if rng.random() < 0.4:
        shape = rng.choice(FUNCTIONS[:3] * 2 + FUNCTIONS)
        tests = [
            {"input": f"{n}\n[]", "output": str(n * n), "testtype": "functional",
             "metadata": {"func_name": "square"}}
            for n in numbers
        ]  # fmt: skip
    else:
        shape = rng.choice(SHAPES[:5] * 2 + SHAPES).replace("{read}", rng.choice(READING))
        written = rng.choice(["{}", "{}\n", " {}", "{}.0"])
        tests = [
            {
                "input": f"{n}\n",
                "output": written.format(n * n),
                "testtype": "stdin",
                "metadata": {},
            }
            for n in numbers
        ]
    return tests, rng.choice(FENCES).replace("{code}", shape.replace("{value}", value))


# The package forks a judge, which Python 3.12 and later warn of in a process with threads.
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_rewards_are_those_of_skyrl_gym() -> None:
    skyrl_gym = pytest.importorskip("skyrl_gym", reason="skyrl-gym is not installed: not compared")
    config = LcbConfig()
    sandbox = make_sandbox(config)
    rng = random.Random(7)
    rewards = []
    for _ in range(400):
        tests, completion = answers(rng)
        row = {"reward_spec": {"ground_truth": json.dumps(tests)}}
        ours = LcbEnv(row, sandbox, config, 60.0).step(completion)
        theirs = skyrl_gym.make("lcb", extras=row).step(completion)
        assert ours["reward"] == theirs["reward"], (completion, tests)
        assert ours["metadata"]["parsed_code"] == theirs["metadata"]["parsed_code"]
        rewards.append(ours["reward"])
    assert 133 < sum(rewards) < 333, sum(rewards)
