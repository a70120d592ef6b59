"""Where a sandbox can be had, as whom, with which Python, and what is said where none can."""

import os
import shutil
import stat
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from skyrl_kernel.errors import UsageError
from skyrl_sandbox import Interpreter, Limit, Limits, Result, Sandbox, require_sandbox
from skyrl_sandbox.command import bwrap_command
from skyrl_sandbox.interpreter import package_folders
from skyrl_sandbox.launch import Launched
from skyrl_sandbox.sandbox import run_to_the_end
from skyrl_sandbox.seccomp import seccomp_filter

needs_bwrap = pytest.mark.skipif(
    shutil.which("bwrap") is None,
    reason="bubblewrap is not installed: that it starts for users and Pythons was not checked",
)


def without_cache(path: str) -> str:
    """What a fresh process says that has this PATH."""
    ended = subprocess.run(
        [sys.executable, "-c", "from skyrl_sandbox import Sandbox; Sandbox()"],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
    )
    return ended.stderr.strip().splitlines()[-1]


def test_without_bubblewrap_it_says_what_to_install(tmp_path: Path) -> None:
    said = without_cache(str(tmp_path))
    assert "runs only in a sandbox, and there is none here: no command bwrap is on the PATH" in said
    assert "To have one, install bubblewrap: apt-get install bubblewrap (Debian, Ubuntu)" in said


def test_a_bubblewrap_that_is_not_allowed_to_work_is_told_with_its_reason(tmp_path: Path) -> None:
    bwrap = tmp_path / "bwrap"
    bwrap.write_text(
        "#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n"
    )
    bwrap.chmod(0o755)
    said = without_cache(f"{tmp_path}:/usr/bin:/bin")
    assert "bubblewrap said: bwrap: No permissions to create new namespace" in said
    assert "To have one, let this user make namespaces (sysctl " in said


@needs_bwrap
def test_it_is_asked_once() -> None:
    assert require_sandbox() is require_sandbox()
    assert require_sandbox.cache_info().misses <= 1


def as_user(command: list[str], limits: Limits | None = None) -> Result:
    """Run as an ordinary user would, which this process is or can become."""
    limits = limits or Limits()
    user = ["/usr/bin/setpriv", "--reuid=12345", "--regid=12345", "--clear-groups", "--"]
    launched = Launched(
        lambda status, opened: [
            *(user if os.geteuid() == 0 else []),
            *bwrap_command(
                command,
                limits,
                bwrap=require_sandbox(),
                seccomp_fd=opened["seccomp"],
                status_fd=status,
                is_root=False,
            ),
        ],
        {"seccomp": seccomp_filter()},
    )
    return run_to_the_end(launched, b"", limits)


@needs_bwrap
def test_an_ordinary_user_has_the_same_walls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "hunter2")  # the first process is the user's own here
    result = as_user(
        ["sh", "-c", "id -u; grep -E 'Cap(Prm|Eff|Bnd)|Seccomp:|NoNewPrivs' /proc/self/status;"
         "cat /etc/shadow /proc/1/environ; touch /x /usr/x /dev/x; touch /tmp/x && echo yes;"
         "unshare -U true || echo no; ls /proc | grep -c '^[0-9]*$'; tail -n +3 /proc/net/dev"]
    )  # fmt: skip
    assert "hunter2" not in result.stdout
    words = result.stdout.split()
    assert words[0] == "65534"
    assert result.stdout.count("0" * 16) == 3
    assert "NoNewPrivs:\t1" in result.stdout
    assert "Seccomp:\t2" in result.stdout
    assert "yes\nno\n" in result.stdout
    assert result.stdout.splitlines()[-1].split(":")[0].strip() == "lo"
    assert result.stderr.count("Read-only file system") == 3


@needs_bwrap
@pytest.mark.skipif(shutil.which("perl") is None, reason="perl is not installed: limits as a user")
@pytest.mark.parametrize(
    ("program", "limits", "outcome"),
    [
        ("for (;;) { $p = fork(); if (!defined $p) { print $n; exit } if (!$p) { sleep 9; exit } $n++ }",
         Limits(processes=16), "15"),
        ("1 while 1", Limits(cpu_s=0.3), Limit.CPU),
        ("sleep 9", Limits(wall_s=0.3), Limit.WALL),
        ("for (1..7) { last if !fork() } for (;;) { push @x, 'x' x 1e6; select undef, undef, undef, 0.005 }",
         Limits(memory_mb=100), Limit.MEMORY),
        ("for (;;) { open F, '>', '/tmp/' . $i++ }", Limits(num_files=500), Limit.FILES),
    ],
)  # fmt: skip
def test_an_ordinary_user_has_the_same_limits(
    program: str, limits: Limits, outcome: Limit | str
) -> None:
    result = as_user(["perl", "-e", program], limits)
    assert (result.limit or result.stdout) == outcome


@needs_bwrap
def test_the_default_python_has_this_version_and_not_this_environment() -> None:
    program = "import sys; print(sys.version_info[:2], sys.prefix == sys.base_prefix)"
    assert Sandbox().run_python(program).stdout == f"{sys.version_info[:2]} True\n"
    assert "No module named 'skyrl_kernel'" in Sandbox().run_python("import skyrl_kernel").stderr


@needs_bwrap
def test_a_python_in_a_virtual_environment_brings_its_packages(tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    venv.create(tools, symlinks=True)
    tools.chmod(0o755)
    site = next(tools.glob("lib/python3*/site-packages"))
    (site / "trinket.py").write_text("shine = 42\n")
    sandbox = Sandbox(python=Interpreter.at(tools / "bin" / "python"))
    result = sandbox.run_python("import sys, trinket; print(trinket.shine, sys.prefix)")
    assert result.stdout == f"42 {tools}\n", result.stderr
    assert not sandbox.run_python(f"open('{site}/x', 'w')").is_fine


@needs_bwrap
def test_named_packages_can_be_imported_and_their_neighbours_cannot() -> None:
    sandbox = Sandbox(packages=["numpy"])
    assert sandbox.run_python("import numpy; print(numpy.arange(4).sum())").stdout == "6\n"
    assert "No module named 'skyrl_kernel'" in sandbox.run_python("import skyrl_kernel").stderr


def test_a_package_that_is_one_file_is_that_file() -> None:
    import typing_extensions

    readable, folders = package_folders(["typing_extensions"])
    assert readable == (Path(typing_extensions.__file__),)
    assert folders == (readable[0].parent,)


@pytest.mark.parametrize("name", ["nothing_at_all", "numpy.linalg", "../etc", ""])
def test_a_package_that_is_not_installed_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=r"for the sandbox: it is not installed beside this one"):
        package_folders([name])


def test_what_is_no_python_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "python"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    for path, reason in [
        (tmp_path / "none", "no such file"),
        (tmp_path / "file", "it cannot be executed"),
        (tmp_path, "it cannot be executed"),
        (script, "holds no lib/python3, so it is no installation of Python"),
    ]:
        with pytest.raises(UsageError, match=f"no Python for the sandbox at '{path}': .*{reason}"):
            Interpreter.at(path)


@needs_bwrap
def test_a_folder_that_programs_could_not_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match="cannot show '/no/such/folder': No such file or directory"
    ):
        Sandbox(readable=[Path("/no/such/folder")])
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    if os.geteuid() != 0:
        pytest.skip("not root: that a private folder is refused was not checked")
    with pytest.raises(UsageError, match=r"its mode is drwx------, .* chmod -R o\+rX"):
        Sandbox(readable=[private])


@needs_bwrap
def test_variables_are_given_and_only_these() -> None:
    sandbox = Sandbox(environment={"COLOUR": "blue green"})
    result = sandbox.run(["sh", "-c", 'echo "$COLOUR $HOME $USER"; env | wc -l'])
    assert result.stdout == "blue green /tmp sandbox\n10\n"


def test_a_machine_without_a_list_of_calls_is_refused() -> None:
    with pytest.raises(
        ValueError, match="no list of system calls for the machine 'riscv64'; it has"
    ):
        seccomp_filter("riscv64")


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_every_jump_of_the_filter_lands_inside(machine: str) -> None:
    import struct

    code = list(struct.iter_unpack("=HBBI", seccomp_filter(machine)))
    for at, (kind, if_true, if_false, _) in enumerate(code):
        if kind in (0x15, 0x35, 0x45):
            assert at + 1 + max(if_true, if_false) < len(code)
    assert code[-1][0] == 0x06  # the last returns
