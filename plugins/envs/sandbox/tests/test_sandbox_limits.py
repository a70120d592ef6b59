"""Attempts to use the machine up, and what the result says of each."""

import hashlib
import os
import resource
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skyrl_sandbox import Limit, Limits, Result, Sandbox, Worker
from skyrl_sandbox.usage import Usage

pytestmark = pytest.mark.skipif(
    shutil.which("bwrap") is None,
    reason="bubblewrap is not installed: that limits hold was not checked",
)

MIB = 2**20


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    return Sandbox(limits=Limits(wall_s=5, cpu_s=3, memory_mb=128, processes=16))


def num_processes() -> int:
    return sum(name.isdigit() for name in os.listdir("/proc"))


TOO_MUCH = 4096 * MIB
"""Of the whole machine's memory: tests that run beside these may take a GiB or two."""


def free_memory() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def test_output_input_and_exit_code_come_back(sandbox: Sandbox) -> None:
    result = sandbox.run_python(
        "import sys\n"
        "print(sys.stdin.read().upper(), sys.argv[1:])\n"
        "print('oh', file=sys.stderr)\n"
        "sys.exit(3)\n",
        stdin="größe",
        arguments=["a b", "--c"],
    )
    assert (result.stdout, result.stderr) == ("GRÖSSE ['a b', '--c']\n", "oh\n")
    assert (result.exit_code, result.limit, result.is_fine) == (3, None, False)
    assert 0 < result.wall_s < 5


def test_a_signal_is_told_as_a_shell_tells_it(sandbox: Sandbox) -> None:
    assert sandbox.run(["sh", "-c", "kill -SEGV $$"]).exit_code == 128 + 11


def test_a_command_that_does_not_exist_is_the_commands_fault(sandbox: Sandbox) -> None:
    result = sandbox.run(["no-such-command"])
    assert result.exit_code == 127
    assert "no-such-command" in result.stderr


def test_bytes_that_are_no_text_are_replaced(sandbox: Sandbox) -> None:
    result = sandbox.run_python("import os; os.write(1, b'a\\xffb')")
    assert result.stdout == "a\ufffdb"


@pytest.mark.parametrize("program", ["print('\ud800')", "\0", "print(1", ""])
def test_a_program_that_is_no_program_fails_by_itself(sandbox: Sandbox, program: str) -> None:
    result = sandbox.run_python(program)
    assert result.limit is None
    assert result.is_fine == (program == "")


@settings(max_examples=8, deadline=None)
@given(st.binary(max_size=300_000))
def test_any_input_passes_through_unchanged(data: bytes) -> None:
    program = (
        "import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest(), end='')"
    )
    assert Sandbox().run_python(program, stdin=data).stdout == hashlib.sha256(data).hexdigest()


def test_input_that_nobody_reads_holds_nothing_up(sandbox: Sandbox) -> None:
    result = sandbox.run_python("print('done')", stdin=b"x" * 10 * MIB)
    assert result.stdout == "done\n"
    assert result.is_fine


def test_sleeping_past_the_deadline_is_ended(sandbox: Sandbox) -> None:
    result = sandbox.run_python(
        "import time; print('on', flush=True); time.sleep(60)", limits=Limits(wall_s=0.5)
    )
    assert (result.limit, result.exit_code, result.stdout) == (Limit.WALL, None, "on\n")
    assert 0.5 <= result.wall_s < 2


def test_ignoring_signals_does_not_help(sandbox: Sandbox) -> None:
    result = sandbox.run_python(
        "import signal, time\n"
        "for number in range(1, 65):\n"
        "    try: signal.signal(number, signal.SIG_IGN)\n"
        "    except (OSError, ValueError): pass\n"
        "while True: pass\n",
        limits=Limits(wall_s=5, cpu_s=0.3),
    )
    assert result.limit is Limit.CPU
    assert result.wall_s < 3


def test_an_endless_loop_is_ended_by_its_processor_time(sandbox: Sandbox) -> None:
    result = sandbox.run_python("while True: pass", limits=Limits(wall_s=20, cpu_s=0.5))
    assert result.limit is Limit.CPU
    assert result.wall_s >= 0.5


def test_processor_time_counts_over_all_processes(sandbox: Sandbox) -> None:
    # Eight processes, of which none reaches half a second alone.
    result = sandbox.run_python(
        "import os\nfor _ in range(3): os.fork()\nwhile True: pass\n",
        limits=Limits(wall_s=20, cpu_s=0.5, memory_mb=512),
    )
    assert result.limit is Limit.CPU


def test_processor_time_of_children_that_are_gone_counts(sandbox: Sandbox) -> None:
    result = sandbox.run_python(
        "import os, time\n"
        "while True:\n"
        "    if os.fork() == 0:\n"
        "        end = time.process_time() + 0.1\n"
        "        while time.process_time() < end: pass\n"
        "        os._exit(0)\n"
        "    os.wait()\n",
        limits=Limits(wall_s=20, cpu_s=0.4),
    )
    assert result.limit is Limit.CPU


def test_an_allocation_beyond_the_limit_fails_inside(sandbox: Sandbox) -> None:
    result = sandbox.run_python("try: bytearray(900_000_000)\nexcept MemoryError: print('refused')")
    assert (result.stdout, result.is_fine) == ("refused\n", True)


def test_memory_counts_over_all_processes(sandbox: Sandbox) -> None:
    before = free_memory()
    result = sandbox.run_python(
        "import os, time\n"
        "for _ in range(15):\n"
        "    if os.fork() == 0: break\n"
        "hoard = []\n"
        "while True:\n"
        "    hoard.append(bytearray(os.urandom(1_000_000)))\n"
        "    time.sleep(0.002)\n"
    )
    assert result.limit is Limit.MEMORY
    assert before - free_memory() < TOO_MUCH


def test_memory_that_children_share_counts_once(sandbox: Sandbox) -> None:
    # 60 MB seen by ten processes are 600 MB for who adds up, 60 MB on the machine.
    result = sandbox.run_python(
        "import os, time\n"
        "data = b'x' * 60_000_000\n"
        "for _ in range(9):\n"
        "    if os.fork() == 0:\n"
        "        time.sleep(0.5); os._exit(0)\n"
        "for _ in range(9): os.wait()\n"
        "print(len(data))\n"
    )
    assert result.stdout == "60000000\n"
    assert result.is_fine


def test_memory_is_shared_only_through_files_that_are_counted(sandbox: Sandbox) -> None:
    # Of a shared mapping without a file all pages stay when all but one is unmapped.
    result = sandbox.run_python(
        "import mmap\n"
        "def attempt(make):\n"
        "    try: print('TAKEN', make())\n"
        "    except OSError as error: print(type(error).__name__)\n"
        "attempt(lambda: mmap.mmap(-1, 2**20))\n"
        "attempt(lambda: mmap.mmap(-1, 2**20, flags=3 | mmap.MAP_ANONYMOUS))\n"
        "attempt(lambda: open('/dev/zero', 'r+b'))\n"
        "mmap.mmap(-1, 2**20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).write(b'x')\n"
        "with open('/dev/shm/shared', 'w+b') as file:\n"
        "    file.truncate(2**20); mmap.mmap(file.fileno(), 2**20).write(b'x')\n"
        "print('fine')\n"
    )
    assert result.stdout.split() == ["PermissionError"] * 3 + ["fine"], result.stderr


QUEUES = """
import socket
listener = socket.socket(socket.{family}); listener.bind({address}); listener.listen(4096)
while True:
    client = socket.socket(socket.{family})
    client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**24)
    client.connect(listener.getsockname()); client.setblocking(False)
    try:
        while True: client.send(bytes(32768))
    except BlockingIOError:
        client.close()  # what it sent stays in the queue
"""


@pytest.mark.parametrize(
    ("family", "address"),
    [("AF_UNIX", r"'\0queue'"), ("AF_INET", "('127.0.0.1', 0)"), ("AF_INET6", "('::1', 0)")],
)
def test_what_waits_in_sockets_that_nobody_has_open_counts(
    sandbox: Sandbox, family: str, address: str
) -> None:
    before, stop = free_memory(), threading.Event()
    low = [before]

    def look() -> None:
        while not stop.wait(0.01):
            low.append(free_memory())

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        result = sandbox.run_python(QUEUES.format(family=family, address=address))
    finally:
        stop.set()
        watcher.join()
    if "Errno 97" in result.stderr or "Errno 99" in result.stderr:
        pytest.skip("this machine has no IPv6")
    assert result.limit is Limit.MEMORY, result.stderr
    assert before - min(low) < TOO_MUCH


def test_a_fork_bomb_stays_small(sandbox: Sandbox) -> None:
    counts, stop = [num_processes()], threading.Event()

    def watch() -> None:
        while not stop.wait(0.01):
            counts.append(num_processes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    result = sandbox.run_python(
        "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass\n",
        limits=Limits(wall_s=0.7, cpu_s=None, processes=16),
    )
    stop.set()
    watcher.join()
    assert result.limit is Limit.WALL
    assert max(counts) - counts[0] <= 16 + 20  # 20 for what else begins here meanwhile


def test_processes_and_threads_are_bounded_and_the_program_is_told(sandbox: Sandbox) -> None:
    forks = sandbox.run_python(
        "import os, time\n"
        "n = 0\n"
        "try:\n"
        "    while n < 3000:\n"
        "        if os.fork() == 0: time.sleep(3); os._exit(0)\n"
        "        n += 1\n"
        "except BlockingIOError: print(n, flush=True)\n"
        "os._exit(0)\n",
        limits=Limits(processes=16),
    )
    threads = sandbox.run_python(
        "import threading, time, os\n"
        "n = 0\n"
        "try:\n"
        "    while n < 3000:\n"
        "        threading.Thread(target=time.sleep, args=(3,), daemon=True).start(); n += 1\n"
        "except RuntimeError: print(n, flush=True)\n"
        "os._exit(0)\n",
        limits=Limits(processes=16),
    )
    assert forks.stdout == threads.stdout == "15\n"  # and the program itself


def test_two_sandboxes_do_not_share_their_processes(sandbox: Sandbox) -> None:
    program = (
        "import os, time\n"
        "for _ in range(12):\n"
        "    if os.fork() == 0: time.sleep(0.4); os._exit(0)\n"
        "for _ in range(12): os.wait()\n"
        "print('all')\n"
    )
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(lambda _: sandbox.run_python(program), range(3)))
    assert [result.stdout for result in results] == ["all\n"] * 3


@pytest.mark.parametrize("output", ["stdout", "stderr"])
def test_endless_output_is_ended_and_kept_to_the_limit(sandbox: Sandbox, output: str) -> None:
    result = sandbox.run_python(
        f"import sys\nwhile True: sys.{output}.write('x' * 4096)", limits=Limits(output_kb=64)
    )
    assert result.limit is Limit.OUTPUT
    assert result.truncated
    assert getattr(result, output) == "x" * 64 * 1024


def test_output_up_to_the_limit_is_fine(sandbox: Sandbox) -> None:
    result = sandbox.run_python("print('x' * 1023)", limits=Limits(output_kb=1))
    assert result.is_fine
    assert len(result.stdout) == 1024


@pytest.mark.parametrize("folder", ["/tmp", "/dev/shm"])
def test_a_full_disk_is_the_programs_alone(sandbox: Sandbox, folder: str) -> None:
    result = sandbox.run_python(
        "import errno\n"
        "n = 0\n"
        "try:\n"
        "    for i in range(400):\n"
        f"        with open(f'{folder}/{{i}}', 'wb') as file: n += file.write(bytes(1_000_000))\n"
        "except OSError as error: print(errno.errorcode[error.errno], n <= 16 * 2**20)\n",
        limits=Limits(files_mb=16),
    )
    assert result.stdout == "ENOSPC True\n"


def test_one_large_file_is_refused(sandbox: Sandbox) -> None:
    result = sandbox.run_python(
        "import os\n"
        "with open('/tmp/x', 'wb') as file:\n"
        "    try: os.truncate('/tmp/x', 10**12)\n"
        "    except OSError as error: print(error.strerror)\n"
    )
    assert result.stdout == "File too large\n" or result.exit_code == 128 + 25  # SIGXFSZ


@pytest.mark.parametrize("folder", ["/tmp", "/dev/shm"])
def test_many_empty_files_are_ended(sandbox: Sandbox, folder: str) -> None:
    # Each costs the kernel a kilobyte that no size limit counts.
    result = sandbox.run_python(
        f"for i in range(10**7): open('{folder}/' + str(i), 'w').close()",
        limits=Limits(wall_s=20, cpu_s=10, num_files=1000),
    )
    assert result.limit is Limit.FILES


def test_open_files_are_bounded(sandbox: Sandbox) -> None:
    result = sandbox.run_python(
        "import os\n"
        "n = 0\n"
        "try:\n"
        "    while True: os.dup(0); n += 1\n"
        "except OSError as error: print(n, error.strerror)\n",
        limits=Limits(open_files=32),
    )
    assert result.stdout == "29 Too many open files\n"


def test_no_core_is_written(sandbox: Sandbox) -> None:
    result = sandbox.run_python("import resource; print(resource.getrlimit(resource.RLIMIT_CORE))")
    assert result.stdout == "(0, 0)\n"


def test_limits_cannot_be_raised_from_inside(sandbox: Sandbox) -> None:
    result = sandbox.run_python(
        "import resource\n"
        "for name in ('NPROC', 'AS', 'CPU', 'FSIZE', 'NOFILE', 'CORE'):\n"
        "    number = getattr(resource, 'RLIMIT_' + name)\n"
        "    soft, hard = resource.getrlimit(number)\n"
        "    try: resource.setrlimit(number, (hard + 1, hard + 1)); print('ESCAPED', name)\n"
        "    except ValueError: pass\n"
    )
    assert (result.stdout, result.is_fine) == ("", True)


def test_equal_programs_print_equal_sets(sandbox: Sandbox) -> None:
    program = "print(set('abcdefghij'))"
    assert sandbox.run_python(program).stdout == sandbox.run_python(program).stdout


def test_nothing_is_left_open_here(sandbox: Sandbox) -> None:
    sandbox.run(["true"])
    before = set(os.listdir("/proc/self/fd"))
    for _ in range(5):
        sandbox.run(["true"])
        sandbox.run(["sleep", "9"], limits=Limits(wall_s=0.05))
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_process_with_many_open_files_can_still_run_programs() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2048:
        pytest.skip("fewer than 2048 files may be open here: numbers above 1023 were not tried")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
    opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        assert Sandbox().run_python("print(input())", stdin="1").stdout == "1\n"
        with Worker(Sandbox(), "operator:neg") as worker:
            assert worker.call(2) == -2
    finally:
        for number in opened:
            os.close(number)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_usage_of_a_process_that_is_gone_is_nothing() -> None:
    assert Usage(2**22 - 1, Limits()).exceeded() is None


def test_watching_costs_little(sandbox: Sandbox) -> None:
    began = time.process_time()
    sandbox.run(["sleep", "1"])
    assert time.process_time() - began < 0.15


@pytest.mark.parametrize("field", ["wall_s", "cpu_s", "memory_mb", "processes", "output_kb"])
def test_a_limit_of_nothing_is_refused(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field}=0 lets nothing run; it must be above 0"):
        Limits(**{field: 0})


def test_a_result_says_whether_all_went_well() -> None:
    ended = {"stdout": "", "stderr": "", "wall_s": 1.0}
    assert Result(exit_code=0, limit=None, **ended).is_fine
    assert not Result(exit_code=1, limit=None, **ended).is_fine
    assert not Result(exit_code=None, limit=Limit.WALL, **ended).is_fine
