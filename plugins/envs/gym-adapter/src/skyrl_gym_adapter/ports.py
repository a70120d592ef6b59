"""Single ports of this machine's loopback device, let into the sandbox, which has no network.

Outside, a socket file per port stands for the port; the sandbox shows the file. Inside,
whoever connects to the port of the sandbox's own loopback device is connected to the file.
Both ends pass bytes on and look at none. This file also runs in the sandbox, so it
imports the standard library alone.
"""

import contextlib
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

_LOOPBACK = "127.0.0.1"
_PIECE = 65536

Connect = Callable[[], socket.socket]


class Ports:
    """The outer ends.

    Args:
        ports: Of this machine.

    Example:
        >>> with Ports([8000]) as ports:
        ...     ports.files[8000].name
        '8000'
    """

    def __init__(self, ports: Iterable[int]) -> None:
        self._folder: Path | None = None
        self._listeners: list[socket.socket] = []
        self.files: dict[int, Path] = {}
        """Port → its socket file."""
        for port in ports:
            if self._folder is None:  # without ports there is none, which a kill would leave behind
                self._folder = Path(tempfile.mkdtemp(prefix="skyrl-ports-"))
                self._folder.chmod(0o711)
            self.files[port] = self._folder / str(port)
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(str(self.files[port]))
            self.files[port].chmod(0o666)  # who connects is another user
            self._listeners.append(listener)
            _listen(listener, lambda port=port: socket.create_connection((_LOOPBACK, port)))  # type: ignore[misc]

    def close(self) -> None:
        """Nothing gets through any more."""
        for listener in self._listeners:
            _shut(listener)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> "Ports":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_inside(port: int, file: str) -> None:
    """The inner end of one port; stays for the life of the process.

    Raises:
        OSError: The port is taken.
    """

    def connect() -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(file)
        return connection

    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((_LOOPBACK, port))
    _listen(listener, connect)


def _listen(listener: socket.socket, connect: Connect) -> None:
    listener.listen()
    threading.Thread(target=_accept, args=(listener, connect), daemon=True).start()


def _accept(listener: socket.socket, connect: Connect) -> None:
    while True:
        try:
            caller, _ = listener.accept()
        except OSError:  # it was closed
            return
        threading.Thread(target=_answer, args=(caller, connect), daemon=True).start()


def _answer(caller: socket.socket, connect: Connect) -> None:
    with caller:
        try:
            called = connect()
        except OSError:  # as if nobody listened: the caller's connection ends
            return
        with called:
            back = threading.Thread(target=_pass_on, args=(called, caller), daemon=True)
            back.start()
            _pass_on(caller, called)
            back.join()


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    """Until one side ends; then the other is told."""
    with contextlib.suppress(OSError):
        while data := source.recv(_PIECE):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def _shut(listener: socket.socket) -> None:
    with contextlib.suppress(OSError):
        listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits in accept
    listener.close()
