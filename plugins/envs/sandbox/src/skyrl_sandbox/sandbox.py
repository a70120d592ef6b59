"""Runs one program to its end: `Sandbox.run` and `Sandbox.run_python`."""

import copy
import math
import os
import selectors
import signal
import stat
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from skyrl_kernel.errors import UsageError
from skyrl_sandbox.check import require_sandbox
from skyrl_sandbox.command import PROGRAM, bwrap_command
from skyrl_sandbox.interpreter import Interpreter, package_folders
from skyrl_sandbox.launch import Launched, sandbox_failed
from skyrl_sandbox.limits import Limit, Limits, Result
from skyrl_sandbox.seccomp import seccomp_filter
from skyrl_sandbox.usage import Usage

TICK_S = 0.02
"""Between two looks at what is used; what a program can take meanwhile is memory's real slack."""
END_S = 20.0
"""For all processes to be gone after the end; it takes milliseconds."""
_PIECE = 65536


class Sandbox:
    r"""A place to run programs that nobody has read.

    A program sees ``/usr`` and its interpreter, read-only, an empty ``/tmp`` and
    ``/dev/shm`` of its own, no network, no process of the host, no variable of this
    process, and no file of the host beside those in ``readable``. It runs as a user that
    is nobody, without capabilities, under a filter of system calls. When it ends, or a
    limit ends it, everything that it started ends with it.

    One object may run any number of programs, from any number of threads.

    Args:
        limits: For programs that are run without limits of their own.
        python: Interpreter of `run_python` and of workers.
        readable: Folders and files of the host that appear inside, read-only, at the same
            path. Name as little as possible.
        python_path: Folders that Python programs may import from; they are readable too.
        packages: Installed packages of this process that Python programs may import, for an
            interpreter of the same version. What they depend on must be named too.
        environment: Variables for the programs, beside PATH, HOME, USER and LANG.
        bwrap: Path of bubblewrap; default: found and tried once per process.

    Raises:
        UsageError: No sandbox can be had here (see `require_sandbox`), or one of the
            folders or packages is not there or would be unreadable inside.

    Example:
        >>> Sandbox().run_python("print(6 * 7)").stdout  # doctest: +SKIP
        '42\n'
    """

    def __init__(
        self,
        *,
        limits: Limits | None = None,
        python: Interpreter | None = None,
        readable: Iterable[Path] = (),
        python_path: Iterable[Path] = (),
        packages: Iterable[str] = (),
        environment: Mapping[str, str] | None = None,
        bwrap: str | None = None,
    ) -> None:
        self.limits = limits or Limits()
        self.python = python or Interpreter.default()
        importable = tuple(python_path)
        installed, imported_from = package_folders(packages)
        self._readable = (*self.python.folders, *readable, *importable, *installed)
        for path in self._readable:
            _refuse_unreadable(path)
        self._environment = dict(environment or {})
        if importable or imported_from:
            self._environment["PYTHONPATH"] = os.pathsep.join(
                map(str, (*importable, *imported_from))
            )
        self._bwrap = require_sandbox() if bwrap is None else bwrap

    def with_limits(self, limits: Limits) -> "Sandbox":
        """The same sandbox with other limits."""
        other = copy.copy(self)
        other.limits = limits
        return other

    def run(
        self, command: Sequence[str], *, stdin: str | bytes = b"", limits: Limits | None = None
    ) -> Result:
        """Run a command that is installed under /usr or in a readable folder.

        Args:
            command: Its name or path, and its arguments.
            stdin: What it reads; a text as UTF-8.
            limits: Instead of the sandbox's.

        Raises:
            TrajectoryError: The sandbox failed, of the kind infrastructure: this says
                nothing about the program.
        """
        limits = limits or self.limits
        launched = self.launch(command, limits)
        return run_to_the_end(launched, _encoded(stdin), limits)

    def run_python(
        self,
        program: str,
        *,
        stdin: str | bytes = b"",
        arguments: Sequence[str] = (),
        limits: Limits | None = None,
    ) -> Result:
        """Run a Python program, which lies at /program/main.py; see `run`."""
        limits = limits or self.limits
        launched = self.launch_python(program, arguments, limits)
        return run_to_the_end(launched, _encoded(stdin), limits)

    def launch_python(self, program: str, arguments: Sequence[str], limits: Limits) -> Launched:
        """Start a Python program and leave it running; see `launch`."""
        command = [str(self.python.path), "-s", PROGRAM, *arguments]
        return self.launch(command, limits, program=program)

    def launch(
        self, command: Sequence[str], limits: Limits, *, program: str | None = None
    ) -> Launched:
        """Start a command and leave it running: whoever calls this closes what it returns."""
        if any("\0" in word for word in command):
            raise ValueError("a command cannot hold the character NUL")
        files = {"seccomp": seccomp_filter()}
        if program is not None:
            files["program"] = _encoded(program)
        return Launched(
            lambda status, opened: bwrap_command(
                command,
                limits,
                bwrap=self._bwrap,
                readable=self._readable,
                environment=self._environment,
                program_fd=opened.get("program"),
                seccomp_fd=opened["seccomp"],
                status_fd=status,
            ),
            files,
        )


def _refuse_unreadable(path: Path) -> None:
    """The program is another user: what only its owner may read is of no use to it."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise UsageError(f"the sandbox cannot show '{path}': {error.strerror}") from error
    wanted = 0o5 if stat.S_ISDIR(mode) else 0o4
    if mode & wanted != wanted and os.geteuid() == 0:
        raise UsageError(
            f"the sandbox cannot show '{path}': its mode is {stat.filemode(mode)}, and programs run "
            f"as a user that is nobody. To let them read it: chmod -R o+rX '{path}'"
        )


def _encoded(text: str | bytes) -> bytes:
    # Half a surrogate pair, which a model can write, becomes bytes that the reader refuses.
    return text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")


def run_to_the_end(launched: Launched, stdin: bytes, limits: Limits) -> Result:
    """Feed what was started, watch it, and tell how it ended."""
    try:
        return _Run(launched, stdin, limits).result()
    finally:
        launched.close()


class _Run:
    """Feeds a program, reads what it writes, and watches over its limits."""

    def __init__(self, launched: Launched, stdin: bytes, limits: Limits) -> None:
        self._launched = launched
        self._limits = limits
        self._usage = None if launched.init is None else Usage(launched.init, limits)
        self._stdin = memoryview(stdin)
        self._outputs = {"stdout": bytearray(), "stderr": bytearray()}
        self._limit: Limit | None = None
        self._began = time.monotonic()
        self._next_look = self._began + TICK_S

    def result(self) -> Result:
        """Run to the end."""
        with selectors.DefaultSelector() as selector:
            self._serve(selector)
        exit_code = self._launched.wait()
        wall_s = time.monotonic() - self._began
        stdout, stderr = (_text(output) for output in self._outputs.values())
        if exit_code is None and self._limit is None:
            raise sandbox_failed(f"bubblewrap said: {stderr.strip() or 'nothing'}")
        if exit_code == 128 + signal.SIGXCPU:  # what the kernel counted, of one process
            self._limit = Limit.CPU
        return Result(
            exit_code=exit_code if self._limit is None else None,
            stdout=stdout,
            stderr=stderr,
            limit=self._limit,
            wall_s=wall_s,
        )

    def _serve(self, selector: selectors.BaseSelector) -> None:
        """Until the program has ended and both outputs were read to their end."""
        process = self._launched.process
        stdin, stdout, stderr = process.stdin, process.stdout, process.stderr
        assert stdin is not None
        assert stdout is not None
        assert stderr is not None
        selector.register(self._launched.end_handle, selectors.EVENT_READ, "end")
        selector.register(stdout, selectors.EVENT_READ, "stdout")
        selector.register(stderr, selectors.EVENT_READ, "stderr")
        os.set_blocking(stdin.fileno(), False)
        selector.register(stdin, selectors.EVENT_WRITE, "stdin")
        awaited = {"end", "stdout", "stderr"}
        gone_at = math.inf
        while awaited:
            now = time.monotonic()
            if gone_at == math.inf and now >= self._next_look:
                self._look(now)
            if gone_at == math.inf and ("end" not in awaited or self._limit is not None):
                gone_at = now
            if now > gone_at + END_S:
                raise sandbox_failed(f"its processes were still there {END_S:g} s after its end")
            wait_s = TICK_S if gone_at < math.inf else max(0.0, self._next_look - now)
            for key, _ in selector.select(wait_s):
                if key.data == "stdin":
                    is_done = self._feed(key.fd)
                elif key.data == "end":
                    is_done = True
                else:
                    is_done = self._collect(key.data, key.fd)
                if is_done:
                    awaited.discard(key.data)
                    selector.unregister(key.fileobj)
                    if key.data == "stdin":
                        stdin.close()

    def _look(self, now: float) -> None:
        """End the program if it exceeds a limit."""
        self._next_look = now + TICK_S
        if now - self._began >= self._limits.wall_s:
            self._end(Limit.WALL)
        elif self._usage is not None and (limit := self._usage.exceeded()) is not None:
            self._end(limit)

    def _end(self, limit: Limit) -> None:
        if self._limit is None:
            self._limit = limit
            self._launched.kill()

    def _feed(self, number: int) -> bool:
        """Write a piece of the input; True if no more is wanted."""
        if self._stdin:
            try:
                self._stdin = self._stdin[os.write(number, self._stdin[:_PIECE]) :]
            except BlockingIOError:
                return False
            except BrokenPipeError:  # it does not read on
                return True
        return not self._stdin

    def _collect(self, name: str, number: int) -> bool:
        """Read a piece of an output; True at its end."""
        data = os.read(number, _PIECE)
        output = self._outputs[name]
        room = self._limits.output_kb * 1024 - len(output)
        output += data[:room]
        if len(data) > room:
            self._end(Limit.OUTPUT)
        return not data


def _text(output: bytearray) -> str:
    return output.decode("utf-8", "replace")
