"""Programs on their tests, in the sandbox."""

import contextlib
import json
import os
import shutil
import threading
import time

import pytest

from skyrl_kernel.config import EnvironmentConfig
from skyrl_kernel.errors import FailureKind, TrajectoryError, UsageError
from skyrl_lcb.config import LcbConfig
from skyrl_lcb.env import LcbEnv, make_sandbox
from skyrl_lcb.plugin import check_env, make_env
from skyrl_sandbox import Sandbox, seat

pytestmark = pytest.mark.skipif(
    shutil.which("bwrap") is None,
    reason="bubblewrap is not installed: no program was judged",
)

CONFIG = LcbConfig(timeout_s=1, memory_mb=256, packages=["numpy"])
ADD = [
    {"input": f"{a} {b}\n", "output": f"{a + b}\n", "testtype": "stdin", "metadata": {}}
    for a, b in [(1, 2), (3, 4), (-5, 5)]
]
SCALE = [
    {
        "input": f"{xs}\n{k}",
        "output": json.dumps([x * k for x in xs]),
        "testtype": "functional",
        "metadata": {"func_name": "scale"},
    }
    for xs, k in [([1, 2], 2), ([], 3), ([5], -1)]
]


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    return make_sandbox(CONFIG)


def judge(
    sandbox: Sandbox, tests: list, code: str, budget_s: float = 60.0
) -> tuple[float, str, int]:
    row = {"reward_spec": {"ground_truth": json.dumps(tests)}}
    env = LcbEnv(row, sandbox, CONFIG, budget_s)
    step = env.step(f"Here it is:\n```python\n{code}\n```\n")
    assert step["done"]
    assert step["observations"] == []
    assert env.get_metrics()["exact_match"] == step["reward"]
    return step["reward"], step["metadata"]["verdict"], step["metadata"]["passed"]


@pytest.mark.parametrize(
    "code",
    [
        "a, b = map(int, input().split())\nprint(a + b)",
        "import sys\nprint(sum(map(int, sys.stdin.read().split())))",
        "import sys\nprint(sum(map(int, sys.stdin.buffer.read().split())))",
        "print(sum(map(int, open(0).read().split())))",
        "for line in __import__('sys').stdin: print(sum(map(int, line.split())))",
        "def main():\n    print(sum(map(int, input().split())))\nif __name__ == '__main__':\n    main()",
        "total = 0\ndef add():\n    global total\n    total = sum(map(int, input().split()))\nadd()\nprint(total)",
        "print(reduce(lambda x, y: x + y, map(int, input().split())))",  # named by the prelude
        "print(sum(map(int, input().split()))); exit()",
        "print(sum(map(int, input().split()))); sys.exit(3)",
        "import numpy as np\nprint(np.array(input().split(), dtype=int).sum())",
        "print(np.array(input().split(), dtype=int).sum())",
        "import threading\nt = threading.Thread(target=lambda: print(sum(map(int, input().split()))))\nt.start()",
        "import atexit\ntotal = sum(map(int, input().split()))\natexit.register(lambda: print(total))",
        "import sys\nsys.stdout.write(str(sum(map(int, input().split()))))",
        "import os\nos.write(1, str(sum(map(int, input().split()))).encode())",
        "from dataclasses import dataclass\n@dataclass\nclass P:\n    a: int\nprint(sum(map(int, input().split())))",
        "print(sum(map(int, input().split())), file=sys.stdout); print('debug', file=sys.stderr)",
    ],
)  # fmt: skip
def test_a_right_program_is_right_however_it_is_written(sandbox: Sandbox, code: str) -> None:
    assert judge(sandbox, ADD, code) == (1.0, "right", 3)


@pytest.mark.parametrize(
    ("code", "verdict", "passed"),
    [
        ("print(3)", "wrong answer", 1),
        ("a, b = map(int, input().split()); print(a + b if a > 0 else 7)", "wrong answer", 2),
        ("print(sum(map(int, input().split())) + 0.5)", "wrong answer", 0),
        ("", "wrong answer", 0),
        ("def main(): print(sum(map(int, input().split())))", "wrong answer", 0),
        ("print(sum(map(int, input().split()))); 1 / 0", "error", 0),
        ("print(1", "error", 0),
        ("import nothing", "error", 0),
        ("input(); input()", "error", 0),
        ("while True: pass", "timeout", 0),
        ("while True: print('x' * 10000)", "too much output", 0),
        ("x = []\nwhile True: x.append('x' * 1000000)", "error", 0),
        ("import os; os._exit(3)", "error", 0),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "error", 0),
        ("import os, signal; os.kill(os.getppid(), signal.SIGKILL)", "error", 0),
        ("import os, signal; os.kill(-1, signal.SIGKILL)", "error", 0),
        ("def f(): f()\nf()", "error", 0),
    ],
)
def test_a_wrong_program_is_told_by_what_went_wrong(
    sandbox: Sandbox, code: str, verdict: str, passed: int
) -> None:
    assert judge(sandbox, ADD, code) == (0.0, verdict, passed)


def test_a_test_has_its_own_processor_time(sandbox: Sandbox) -> None:
    code = (
        "import resource\n"
        "assert resource.getrlimit(resource.RLIMIT_CPU) == (1, 2)\n"
        "print(sum(map(int, input().split())))\n"
    )
    assert judge(sandbox, ADD, code) == (1.0, "right", 3)


def test_a_sleeper_ends_on_the_clock(sandbox: Sandbox) -> None:
    began = time.monotonic()
    assert judge(sandbox, ADD, "import time; time.sleep(60)", budget_s=1.5) == (0.0, "timeout", 0)
    assert time.monotonic() - began < 6


def test_all_tests_together_stay_within_the_deadline_of_a_call(sandbox: Sandbox) -> None:
    slow = "import time; time.sleep(0.5); print(sum(map(int, input().split())))"
    assert judge(sandbox, ADD, slow, budget_s=10) == (1.0, "right", 3)
    reward, verdict, passed = judge(sandbox, ADD * 10, slow, budget_s=2.5)  # 2 s for 15 s of sleep
    assert (reward, verdict) == (0.0, "timeout")
    assert 1 <= passed <= 4


def test_waiting_for_a_processor_is_not_the_programs_fault(sandbox: Sandbox) -> None:
    with contextlib.ExitStack() as neighbours:
        for _ in os.sched_getaffinity(0):
            neighbours.enter_context(seat(1))
        with pytest.raises(TrajectoryError, match=r"no processor was free within 0\.5 s") as caught:
            judge(sandbox, ADD, "print(1)", budget_s=1.25)
        assert caught.value.kind is FailureKind.INFRASTRUCTURE
        threading.Timer(1.2, neighbours.pop_all().close).start()
        with pytest.raises(TrajectoryError, match="of which it had waited 1 s for a processor"):
            judge(sandbox, ADD, "import time; time.sleep(60)", budget_s=4)


def test_no_code_earns_nothing(sandbox: Sandbox) -> None:
    env = LcbEnv({"reward_spec": {"ground_truth": json.dumps(ADD)}}, sandbox, CONFIG, 60.0)
    assert env.step("I do not know.") == {
        "observations": [], "reward": 0.0, "done": True,
        "metadata": {"parsed_code": None, "verdict": "no code", "passed": 0},
    }  # fmt: skip
    assert env.get_metrics() == {"exact_match": 0.0, "passed_frac": 0.0}


@pytest.mark.parametrize(
    "code",
    [
        "class Solution:\n    def scale(self, xs: List[int], k: int) -> List[int]:\n        return [x * k for x in xs]",
        "def scale(xs, k):\n    return tuple(x * k for x in xs)",
        "def scale(xs, k):\n    print('debug')\n    return [x * k for x in xs]",
        "def scale(xs, k):\n    return [float(x * k) for x in xs]",
        "def scale(xs, k): return list(np.array(xs, dtype=int).dot(k).tolist())",
        "def scale(xs, k): return [x * k for x in xs]\nif __name__ == '__main__': input()",
    ],
)  # fmt: skip
def test_a_right_function_is_right(sandbox: Sandbox, code: str) -> None:
    assert judge(sandbox, SCALE, code) == (1.0, "right", 3)


@pytest.mark.parametrize(
    ("code", "verdict"),
    [
        ("def scale(xs, k): return xs", "wrong answer"),
        ("def scale(xs, k): return {x * k for x in xs}", "wrong answer"),
        ("def scale(xs, k): return (x * k for x in xs)", "wrong answer"),
        ("def scale(xs): return xs", "error"),
        ("def other(xs, k): return [x * k for x in xs]", "error"),
        ("class Solution:\n    pass", "error"),
        ("class Solution:\n    def scale(self, xs, k): return exit()", "error"),
        ("def scale(xs, k):\n    while True: pass", "timeout"),
    ],
)
def test_a_wrong_function_is_wrong(sandbox: Sandbox, code: str, verdict: str) -> None:
    assert judge(sandbox, SCALE, code)[:2] == (0.0, verdict)


@pytest.mark.parametrize(
    "code",
    [
        # equals everything
        "class Yes(list):\n    def __eq__(self, other): return True\ndef scale(xs, k): return Yes()",
        "class Yes:\n    __eq__ = lambda self, other: True\ndef scale(xs, k): return Yes()",
        # writes an answer of its own to whatever it finds
        "import os\ndef scale(xs, k):\n    for n in range(64):\n        try: os.write(n, b'[\"list\"]')\n"
        "        except OSError: pass\n    os._exit(0)",
        # takes over the process that reports
        "import os, signal\ndef scale(xs, k):\n    os.kill(os.getppid(), signal.SIGSTOP)\n    os._exit(0)",
        "import os\ndef scale(xs, k):\n    for n in os.listdir(f'/proc/{os.getppid()}/fd'):\n"
        "        try: os.write(os.open(f'/proc/{os.getppid()}/fd/{n}', 1), b'[1, {\"status\": \"ended\"}, null]\\n')\n"
        "        except OSError: pass\n",
        # patches what judges
        "import json\njson.dumps = lambda value: '[\"list\", 2, 4]'\ndef scale(xs, k): return 1",
    ],
)  # fmt: skip
def test_cheating_earns_nothing(sandbox: Sandbox, code: str) -> None:
    assert judge(sandbox, SCALE, code, budget_s=2)[0] == 0.0


def test_one_test_leaves_nothing_for_the_next(sandbox: Sandbox) -> None:
    code = """
import os, time

assert not {"mark", "link"} & set(os.listdir("/tmp")) and not os.listdir("/dev/shm")
open("/tmp/mark", "w").close()
os.makedirs("/dev/shm/a/b")
os.symlink("/", "/tmp/link")

def states():
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError), open(f"/proc/{name}/stat") as file:
            yield file.read().rpartition(")")[2].split()[0]

from contextlib import suppress
for _ in range(500):  # what was killed takes a moment to go: here are bubblewrap's first, the judge, this
    if sum(state != "Z" for state in states()) == 3:
        break
    time.sleep(0.01)
else:
    raise SystemError("something is still running")
if os.fork() == 0:
    time.sleep(60)
print(sum(map(int, input().split())))
"""
    assert judge(sandbox, ADD, code) == (1.0, "right", 3)


def test_long_inputs_and_outputs_pass(sandbox: Sandbox) -> None:
    numbers = " ".join(["123456789"] * 300_000)  # 3 MB
    tests = [{"input": numbers, "output": numbers, "testtype": "stdin"}]
    assert judge(sandbox, tests, "print(*input().split())") == (1.0, "right", 1)


def test_a_sandbox_that_fails_is_not_the_programs_fault(sandbox: Sandbox) -> None:
    broken = Sandbox(bwrap="/usr/bin/false")
    with pytest.raises(TrajectoryError, match="the sandbox failed") as caught:
        judge(broken, ADD, "print(1)")
    assert caught.value.kind is FailureKind.INFRASTRUCTURE


def test_the_plugin_makes_its_env_and_refuses_what_it_cannot_have() -> None:
    settings = {LcbConfig: CONFIG, EnvironmentConfig: EnvironmentConfig()}
    row = {"reward_spec": {"ground_truth": json.dumps(ADD)}}
    check_env("lcb", settings)
    env = make_env("lcb", settings, row)
    assert env is not None
    assert env.step("```\nprint(sum(map(int, input().split())))\n```")["reward"] == 1.0
    assert make_env("gsm8k", settings, row) is None
    for config, message in [
        (LcbConfig(packages=["nothing_at_all"]), "no package 'nothing_at_all' for the sandbox"),
        (LcbConfig(python="/no/python"), "no Python for the sandbox at '/no/python': no such file"),
    ]:
        check_env("gsm8k", {LcbConfig: config})
        with pytest.raises(UsageError, match=message):
            check_env("lcb", {LcbConfig: config})
