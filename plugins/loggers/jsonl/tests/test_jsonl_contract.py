"""The jsonl logger keeps the contract of loggers."""

from typing import Any

import pytest

from skyrl_jsonl import plugin
from skyrl_kernel.testing.contracts import LoggerContract


class TestJsonl(LoggerContract):
    module = plugin

    @pytest.fixture(autouse=True)
    def _forget(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(plugin, "_write", None)  # what a test before left open

    def config(self) -> dict[str, Any]:
        return {"trainer": {"jsonl": {"path": "logs/events.jsonl"}}}
