"""Attempts to get out, to look outside, and to stay. Each is a program that would succeed outside."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from skyrl_sandbox import Limits, Result, Sandbox, Worker

pytestmark = pytest.mark.skipif(
    shutil.which("bwrap") is None,
    reason="bubblewrap is not installed: that the sandbox holds was not checked",
)

SECRET = "hunter2-of-the-host"


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    return Sandbox(limits=Limits(wall_s=10, cpu_s=5, memory_mb=512))


def refused(result: Result) -> str:
    """What the program said; it must have ended by itself, with every attempt refused."""
    assert result.limit is None
    assert "ESCAPED" not in result.stdout, result.stdout
    assert result.is_fine, result.stderr
    return result.stdout


TRY = """
import contextlib, os, sys
def attempt(name, function):
    try:
        print("ESCAPED", name, function())
    except Exception as error:
        print(name, type(error).__name__, error)
"""


@pytest.mark.parametrize(
    "path",
    [
        *("/etc/shadow", "/etc/passwd", "/etc/hostname"),
        *(str(Path.home() / ".bashrc"), str(Path.home() / ".ssh" / "id_rsa")),
        *("/var/log/dpkg.log", "/home", "/mnt", "/opt", "/srv", "/sys/kernel", "/run", "/boot"),
        *("/proc/kcore", "/proc/1/environ", "/proc/1/mem", "/proc/1/root/etc", "/proc/1/cwd/etc"),
        *("/dev/mem", "/dev/kmsg", "/dev/sda", "/dev/vda", "/dev/fuse", "/dev/kvm"),
    ],
)
def test_no_file_of_the_host_can_be_read(sandbox: Sandbox, path: str) -> None:
    refused(
        sandbox.run_python(
            f"{TRY}attempt('open', lambda: open({path!r}, 'rb').read(1))\n"
            f"attempt('list', lambda: [os.listdir({path!r})[0]])\n"
        )
    )


def test_this_repository_is_not_there(sandbox: Sandbox) -> None:
    here = str(Path(__file__).resolve())
    refused(sandbox.run_python(f"{TRY}attempt('open', lambda: open({here!r}).read())"))


def test_links_lead_nowhere(sandbox: Sandbox) -> None:
    refused(
        sandbox.run_python(
            TRY + "os.symlink('/etc/shadow', '/tmp/link')\n"
            "os.symlink('/proc/1/root', '/tmp/root')\n"
            "os.symlink('../../../../../../../etc/shadow', '/tmp/up')\n"
            "for name in ('link', 'root/etc/shadow', 'up'):\n"
            "    attempt(name, lambda: open('/tmp/' + name).read())\n"
            "attempt('hard', lambda: os.link('/usr/bin/env', '/tmp/env'))\n"
        )
    )


def test_a_named_folder_can_be_read_and_not_written(tmp_path: Path) -> None:
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "note").write_text("for everybody")
    (tmp_path / "other").write_text(SECRET)
    sandbox = Sandbox(readable=[tmp_path / "given"])
    said = refused(
        sandbox.run_python(
            f"{TRY}print(open('{tmp_path}/given/note').read(), os.listdir('{tmp_path}'))\n"
            f"attempt('write', lambda: open('{tmp_path}/given/note', 'w'))\n"
            f"attempt('remove', lambda: os.remove('{tmp_path}/given/note'))\n"
            f"attempt('other', lambda: open('{tmp_path}/other').read())\n"
        )
    )
    assert said.startswith("for everybody ['given']\n")
    assert (tmp_path / "given" / "note").read_text() == "for everybody"


def test_nothing_can_be_written_but_in_tmp(sandbox: Sandbox) -> None:
    folders = ["/", "/usr", "/usr/bin", "/etc", "/dev", "/program", "/root", "/proc/sys/kernel"]
    folders += [str(folder) for folder in sandbox.python.folders]
    said = refused(
        sandbox.run_python(
            f"{TRY}for folder in {folders!r}:\n"
            "    attempt(folder, lambda: open(folder + '/x', 'w'))\n"
            "    attempt(folder, lambda: os.mkdir(folder + '/y'))\n"
            "attempt('program', lambda: open('/program/main.py', 'a'))\n"
            "attempt('hostname', lambda: open('/proc/sys/kernel/hostname', 'w').write('x'))\n"
            "attempt('sysrq', lambda: open('/proc/sysrq-trigger', 'w').write('b'))\n"
            "for folder in ('/tmp', '/dev/shm'):\n"
            "    print(open(folder + '/x', 'w').write('abc'))\n"
        )
    )
    assert said.endswith("3\n3\n")


def test_what_one_program_writes_the_next_does_not_see(sandbox: Sandbox) -> None:
    assert sandbox.run_python("open('/tmp/x', 'w').write('1')").is_fine
    assert sandbox.run_python("import os; print(os.listdir('/tmp'))").stdout == "[]\n"


def test_variables_of_this_process_are_nowhere(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    result = sandbox.run_python(
        "import os, glob\n"
        "print(sorted(os.environ))\n"
        "for file in glob.glob('/proc/[0-9]*/environ') + glob.glob('/proc/[0-9]*/cmdline'):\n"
        "    try: print(open(file).read())\n"
        "    except OSError: pass\n"
    )
    assert result.is_fine
    assert SECRET not in result.stdout
    assert "WANDB" not in result.stdout
    variables = "HOME', 'LANG', 'OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'PATH', 'PWD"
    assert variables in result.stdout


def test_there_is_no_network(sandbox: Sandbox) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        refused(
            sandbox.run_python(
                f"{TRY}import socket\n"
                "def connect(place): socket.create_connection(place, 1)\n"
                f"attempt('loopback of the host', lambda: connect(('127.0.0.1', {port})))\n"
                "attempt('outside', lambda: connect(('1.1.1.1', 53)))\n"
                "attempt('names', lambda: connect(('example.com', 80)))\n"
            )
        )
    interfaces = sandbox.run(["cat", "/proc/net/dev"]).stdout.splitlines()[2:]
    assert [line.split(":")[0].strip() for line in interfaces] == ["lo"]


def test_no_socket_reaches_past_the_network_namespace(sandbox: Sandbox) -> None:
    # AF_VSOCK (40) talks to the hypervisor whatever the namespace; AF_PACKET (17),
    # AF_NETLINK (16), AF_ALG (38), AF_KEY (15), AF_BLUETOOTH (31) are not for programs.
    said = refused(
        sandbox.run_python(
            f"{TRY}import socket\n"
            "for family in (40, 17, 16, 38, 15, 31):\n"
            "    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW):\n"
            "        attempt(str(family), lambda: socket.socket(family, kind))\n"
        )
    )
    assert said.count("Address family not supported") == 18


def test_sockets_between_its_own_processes_work(sandbox: Sandbox) -> None:
    result = sandbox.run_python(
        "import socket, threading\n"
        "a, b = socket.socketpair(); a.send(b'hi'); print(b.recv(9))\n"
        "server = socket.create_server(('127.0.0.1', 0))\n"
        "client = socket.create_connection(server.getsockname()); client.send(b'ho')\n"
        "print(server.accept()[0].recv(9))\n"
    )
    assert result.stdout == "b'hi'\nb'ho'\n"


def test_unix_sockets_of_the_host_cannot_be_reached(sandbox: Sandbox, tmp_path: Path) -> None:
    # A path needs the file; an abstract name needs the network namespace.
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("\0skyrl-sandbox-test")
        server.listen()
        refused(
            sandbox.run_python(
                f"{TRY}import socket\n"
                "attempt('abstract', lambda: socket.socket(socket.AF_UNIX)"
                ".connect('\\0skyrl-sandbox-test'))\n"
            )
        )


def test_no_process_of_the_host_is_seen_or_signalled(sandbox: Sandbox) -> None:
    with subprocess.Popen(["sleep", "60"]) as neighbour:
        said = refused(
            sandbox.run_python(
                f"{TRY}import signal\n"
                "print(sorted(int(name) for name in os.listdir('/proc') if name.isdigit()))\n"
                f"for pid in ({os.getpid()}, {neighbour.pid}):\n"
                "    attempt('kill', lambda: os.kill(pid, signal.SIGKILL))\n"
                "with contextlib.suppress(OSError): os.kill(-1, 0)\n"
            )
        )
        assert neighbour.poll() is None
        neighbour.kill()
    assert len(said.splitlines()[0].split(",")) <= 3  # bubblewrap's own, and this program


def test_no_namespace_is_shared_with_the_host(sandbox: Sandbox) -> None:
    names = ["cgroup", "ipc", "mnt", "net", "pid", "uts"]
    program = f"import os\nfor name in {names}: print(os.readlink('/proc/self/ns/' + name))"
    theirs = sandbox.run_python(program).stdout.split()
    assert len(theirs) == len(names)
    assert not set(theirs) & {os.readlink(f"/proc/self/ns/{name}") for name in names}
    assert sandbox.run(["uname", "-n"]).stdout == "sandbox\n"


def test_killing_the_parent_ends_only_the_sandbox(sandbox: Sandbox) -> None:
    result = sandbox.run_python(
        "import os, signal\n"
        "for pid in (os.getppid(), 1):\n"
        "    try: os.kill(pid, signal.SIGKILL)\n"
        "    except OSError as error: print(error)\n"
        "try: os.kill(-1, signal.SIGKILL)\n"
        "except OSError as error: print(error)\n"
    )
    # Signal -1 goes to all that it may signal: the program itself is not among them.
    assert result.limit is None
    assert result.exit_code is not None
    assert sandbox.run(["true"]).is_fine


SYSCALLS = """
import ctypes, errno, os, sys
libc = ctypes.CDLL(None, use_errno=True)
def call(name, number, *arguments):
    ctypes.set_errno(0)
    answer = libc.syscall(number, *arguments)
    print(name, "ESCAPED" if answer >= 0 else errno.errorcode[ctypes.get_errno()])
"""


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers below are of x86_64")
def test_calls_that_go_past_namespaces_and_limits_are_refused(sandbox: Sandbox) -> None:
    calls = [
        ("ptrace", 101, 0, 0, 0, 0), ("memfd_create", 319, "b'x'", 0), ("shmget", 29, 0, 4096, 0o1600),
        ("msgget", 68, 0, 0o1600), ("semget", 64, 0, 1, 0o1600), ("mq_open", 240, "b'x'", 0o102, 0o600, 0),
        ("keyctl", 250, 0, -3, 1), ("add_key", 248, "b'user'", "b'x'", "b'y'", 1, -4),
        ("io_uring_setup", 425, 8, "ctypes.create_string_buffer(120)"), ("bpf", 321, 0, 0, 0),
        ("perf_event_open", 298, "ctypes.create_string_buffer(128)", 0, -1, -1, 0),
        ("userfaultfd", 323, 1), ("unshare", 272, 0x10000000), ("setns", 308, 0, 0),
        ("mount", 165, "b'tmpfs'", "b'/tmp'", "b'tmpfs'", 0, 0), ("chroot", 161, "b'/tmp'"),
        ("pivot_root", 155, "b'/tmp'", "b'/tmp'"), ("fsopen", 430, "b'tmpfs'", 0),
        ("clone newuser", 56, 0x10000011, 0, 0, 0, 0), ("personality", 135, 0x40000),
        ("process_vm_readv", 310, 1, 0, 0, 0, 0, 0), ("open_by_handle_at", 304, 0, 0, 0),
        ("init_module", 175, 0, 0, 0), ("kexec_load", 246, 0, 0, 0, 0), ("iopl", 172, 3),
    ]  # fmt: skip
    result = sandbox.run_python(
        SYSCALLS
        + "".join(f"call({name!r}, {', '.join(map(str, rest))})\n" for name, *rest in calls)
        + "call('clone3', 435, ctypes.create_string_buffer(88), 88)\n"
        "call('x32 getpid', 0x40000000 + 39)\n"
    )
    assert result.is_fine, result.stderr
    said = dict(line.rsplit(" ", 1) for line in result.stdout.splitlines())
    assert said == {name: "EPERM" for name, *_ in calls} | {
        "clone3": "ENOSYS",
        "x32 getpid": "ENOSYS",
    }


def test_calls_of_another_architecture_end_the_program(sandbox: Sandbox) -> None:
    if os.uname().machine != "x86_64":
        pytest.skip("int 0x80 is of x86")
    # mov eax, 20 (getpid of 32 bits); int 0x80; ret
    result = sandbox.run_python(
        "import ctypes, mmap\n"
        "code = mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=7); code.write(bytes.fromhex('b814000000cd80c3'))\n"
        "address = ctypes.addressof(ctypes.c_char.from_buffer(code))\n"
        "print('ESCAPED', ctypes.CFUNCTYPE(ctypes.c_int)(address)())\n"
    )
    assert result.exit_code == 128 + signal.SIGSYS
    assert result.stdout == ""


def test_it_is_nobody_without_rights(sandbox: Sandbox) -> None:
    result = sandbox.run_python(
        TRY + "print(os.getuid() > 0 and os.geteuid() > 0, os.getgroups() in ([], [os.getgid()]))\n"
        "for line in open('/proc/self/status'):\n"
        "    if line.startswith(('CapPrm', 'CapEff', 'CapInh', 'CapAmb', 'NoNewPrivs', 'Seccomp:')):\n"
        "        print(*line.split())\n"
        "attempt('root', lambda: os.setuid(0))\n"
        "attempt('device', lambda: os.mknod('/tmp/vda', 0o60666, os.makedev(254, 0)))\n"
        "attempt('owner', lambda: (open('/tmp/x', 'w'), os.chown('/tmp/x', 0, 0)))\n"
    )
    said = refused(result)
    zero = "0" * 16
    assert said.splitlines()[:7] == [
        "True True",
        *(f"Cap{name}: {zero}" for name in ("Inh", "Prm", "Eff")),
        f"CapAmb: {zero}",
        "NoNewPrivs: 1",
        "Seccomp: 2",
    ]


def test_setuid_programs_give_nothing(sandbox: Sandbox) -> None:
    result = sandbox.run(["su", "-c", "id"], stdin="\n")
    assert "uid=0" not in result.stdout
    assert not result.is_fine


def test_only_its_own_three_files_are_open(sandbox: Sandbox) -> None:
    # A file that this process has open, inheritable on top, must not be there.
    with open(__file__) as mine:
        os.set_inheritable(mine.fileno(), True)
        result = sandbox.run_python(
            TRY + "listed = sorted(map(int, os.listdir('/proc/self/fd')))\n"
            "print(listed[:-1])\n"  # the last is the listing itself
            "for number in range(3, 64):\n"
            "    attempt(str(number), lambda: os.write(number, b'{\"exit-code\": 0}\\n'))\n"
            "sys.exit(7)\n"
        )
    assert result.stdout.startswith("[0, 1, 2]\n")
    assert "ESCAPED" not in result.stdout
    assert result.exit_code == 7


def test_what_it_leaves_behind_ends_with_it(sandbox: Sandbox) -> None:
    mark = f"skyrl-daemon-{os.getpid()}"
    began = time.monotonic()
    result = sandbox.run_python(
        "import os, subprocess, sys\n"
        f"subprocess.Popen(['sh', '-c', 'while :; do sleep 1; done', '{mark}'])\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork() == 0:\n"
        f"        os.execvp('sh', ['sh', '-c', 'trap \"\" TERM HUP; sleep 60; :', '{mark}'])\n"
        "    os._exit(0)\n"
        "print('done')\n"
    )
    assert result.stdout == "done\n"
    assert result.is_fine
    assert time.monotonic() - began < 5
    assert not _running(mark)


def test_a_program_with_closed_outputs_is_still_watched(sandbox: Sandbox) -> None:
    mark = f"skyrl-quiet-{os.getpid()}"
    result = sandbox.run(
        ["sh", "-c", "exec >&- 2>&-; sleep 60; :", mark], limits=Limits(wall_s=0.5)
    )
    assert result.limit == "wall"
    assert not _running(mark)


def test_a_call_returns_only_when_all_processes_are_gone(sandbox: Sandbox) -> None:
    mark = f"skyrl-crowd-{os.getpid()}"
    program = (
        "import os\n"
        "for _ in range(10):\n"
        "    if os.fork() == 0:\n"
        "        os.closerange(0, 3)\n"
        f"        os.execvp('sh', ['sh', '-c', 'while :; do :; done', '{mark}'])\n"
        "print('done')\n"
    )
    for _ in range(3):
        assert sandbox.run_python(program, limits=Limits(cpu_s=60)).stdout == "done\n"
        assert not _running(mark)


def test_the_sandbox_ends_with_the_process_that_made_it(tmp_path: Path) -> None:
    mark = f"skyrl-orphan-{os.getpid()}"
    program = (
        f"from skyrl_sandbox import Sandbox\nSandbox().run(['sh', '-c', 'sleep 60; :', '{mark}'])\n"
    )
    with subprocess.Popen([sys.executable, "-c", program]) as parent:
        _until(lambda: _running(mark))
        parent.kill()
    _until(lambda: not _running(mark))


AS_FIRST_PROCESS = """
import os, sys, time
from skyrl_sandbox import Limits, Sandbox, Worker

assert os.getpid() == 1
sandbox = Sandbox()
for _ in range(3):
    sandbox.run(["true"])
    sandbox.run(["sleep", "9"], limits=Limits(wall_s=0.05))
    sandbox.run(["sh", "-c", "sleep 9 &"])
    Worker(sandbox, "operator:neg").close()
time.sleep(0.1)
print([name for name in os.listdir("/proc") if name.isdigit()])
"""


@pytest.mark.skipif(
    os.geteuid() != 0, reason="not root: that process 1 keeps nothing was not checked"
)
def test_the_first_process_of_a_container_is_left_with_nothing() -> None:
    ended = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", AS_FIRST_PROCESS],
        capture_output=True,
        text=True,
    )
    assert ended.stdout == "['1']\n", ended.stderr


def test_a_sandbox_outlives_the_thread_that_asked_for_it() -> None:
    made = []
    thread = threading.Thread(target=lambda: made.append(Worker(Sandbox(), "operator:neg")))
    thread.start()
    thread.join()
    time.sleep(0.1)
    with made[0] as worker:
        assert worker.call(3) == -3


def _running(mark: str) -> bool:
    """Whether a process on this machine has the mark as its own argument."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                words = (folder / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if words[-2:-1] == [mark.encode()] and words[0].endswith((b"sh", b"sleep")):
                return True
    return False


def _until(condition, timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
