"""The console logger keeps the contract of loggers."""

from skyrl_console import plugin
from skyrl_kernel.testing.contracts import LoggerContract


class TestConsole(LoggerContract):
    module = plugin
