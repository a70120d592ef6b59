"""What a start waits for is said."""

import threading
import time

import pytest

pytest.importorskip("ray")

from skyrl_kernel.ray.waits import waiting_for


def test_a_long_wait_is_said_now_and_then_and_a_short_one_not(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with waiting_for("engine 0 to load"):
        pass
    assert capsys.readouterr().out == ""
    with waiting_for("engine 1 to load", first_s=0.01, every_s=0.1):
        time.sleep(0.3)
    lines = capsys.readouterr().out.splitlines()
    assert 2 <= len(lines) <= 4
    assert set(lines) == {"waiting for engine 1 to load: 0 s"}
    assert "waiting" not in {thread.name for thread in threading.enumerate()}
