"""What a sink must keep: the store of a logger (`skyrl_kernel.feed.Sink`)."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from skyrl_kernel.feed import LogEnd, LogRecord, LogRun, Sink, Table

METRICS = {
    "reward/avg_raw_reward": 0.5,
    "policy/final_loss": float("nan"),
    "policy/grad_norm": float("inf"),
    "timing/step": 1.25,
    "environment/ünusual name: with spaces": -0.25,
    "step": 7.0,
}
"""What a sink must bear: no numbers, huge ones, and names it has never heard of."""
SHOWN = ("reward/avg_raw_reward", "timing/step")
"""Metrics that the store must show under their own names."""
TABLE = Table(
    name="trajectories/train",
    columns=("step", "prompt", "completion", "reward"),
    rows=((1, "2 * 3", "<b>6</b> | `six`\n\n✓", 1.0), (1, "ünd", "", None)),
)
TIME = 1_790_000_000.25
"""When step 0 ended; later steps end ten seconds after one another."""


class SinkContract:
    """Subclass and define `make` and `shown`."""

    @pytest.fixture(autouse=True)
    def _in_a_folder_of_its_own(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        self.folder = tmp_path / "runs" / "run"
        self.folder.mkdir(parents=True)

    def make(self) -> Sink:
        """A fresh sink, as the plugin's ``make_sink`` makes it."""
        raise NotImplementedError

    def shown(self, run: LogRun) -> Mapping[int, Mapping[str, float]]:
        """Step → metrics, read from the store by other means than the sink's.

        A step that the store shows twice must raise.
        """
        raise NotImplementedError

    def test_a_whole_run_is_shown_step_by_step(self) -> None:
        """Tables, numbers that are not finite, and strange names among the records."""
        run = self.run()
        self._deliver(run, [0, 1, 2])
        self._expect(run, [0, 1, 2])

    def test_a_run_that_goes_on_is_the_same_run(self) -> None:
        """Another process opens it again, after the end or a kill."""
        self._deliver(self.run(), [0, 1])
        again = self.run(resumed=True, last_step=1)
        self._deliver(again, [2])
        self._expect(again, [0, 1, 2])

    def test_a_step_that_comes_twice_is_shown_once(self) -> None:
        """As after a kill between the delivery and the note that it was done."""
        self._deliver(self.run(), [0, 1])
        again = self.run(resumed=True, last_step=0)
        self._deliver(again, [1, 2])
        self._expect(again, [0, 1, 2])

    def test_two_runs_of_one_name_stay_apart(self) -> None:
        """A run that was begun anew has the name of the old one and another id."""
        first, second = self.run(id="aaaa1111"), self.run(id="bbbb2222", name="run.2")
        self._deliver(first, [1])
        self._deliver(second, [1, 2])
        self._expect(first, [1])
        self._expect(second, [1, 2])

    @pytest.mark.parametrize("status", ["finished", "stopped", "interrupted", "failed"])
    def test_every_end_passes_right_after_the_start(self, status: Any) -> None:
        """A run may fail before its first step."""
        sink = self.make()
        sink.open(self.run())
        sink.close(LogEnd(status=status, message="it ended\n" * 1000))

    def test_it_changes_nothing_that_it_is_shown(self) -> None:
        """Others are shown the same objects."""
        run = self.run()
        before = repr((run, METRICS, TABLE))
        self._deliver(run, [1])
        assert repr((run, METRICS, TABLE)) == before

    def run(self, **changes: Any) -> LogRun:
        """The run, with changes."""
        values: dict[str, Any] = {
            "id": "abcd0123",
            "name": "run",
            "project": "skyrl",
            "folder": self.folder,
            "config": {"trainer": {"run_name": "run", "api_key": "***", "tags": None, "lr": 1e-6}},
            "tags": ("first", "second"),
            "plugins": ("scripted skyrl-scripted 0.1.0",),
            "resumed": False,
            "last_step": None,
        }
        return LogRun(**values | changes)

    def _deliver(self, run: LogRun, steps: list[int]) -> None:
        sink = self.make()
        held = sink.open(run)
        for step in steps:
            if held is not None and step <= held:
                continue  # as the feed does
            metrics = METRICS | {"reward/avg_raw_reward": step / 2}
            sink.log(LogRecord(step=step, time=TIME + 10 * step, metrics=metrics, tables=(TABLE,)))
        sink.close(LogEnd(status="finished", message="2 of 2 steps", step=steps[-1]))

    def _expect(self, run: LogRun, steps: list[int]) -> None:
        shown = self.shown(run)
        assert sorted(shown) == steps
        for step in steps:
            wanted = {"reward/avg_raw_reward": step / 2, "timing/step": 1.25}
            found = {name: shown[step][name] for name in SHOWN}
            assert all(math.isclose(found[n], wanted[n], rel_tol=1e-6) for n in SHOWN), found
