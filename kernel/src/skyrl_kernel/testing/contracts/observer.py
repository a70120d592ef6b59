"""What an observer must keep: loggers, trackers, and whatever else only watches."""

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from skyrl_kernel.plugins.validation import HOOKS, check_hooks, implementations
from skyrl_kernel.protocols import EvalInfo, RunEnd, RunInfo, StepInfo
from skyrl_kernel.records import Failure, Prompt, Reward, Segment, StopReason, Trajectory

OBSERVED = tuple(hook for hook in HOOKS if hook.startswith("on_"))
METRICS = {
    "reward/avg_raw_reward": 0.5,
    "policy/final_loss": float("nan"),
    "policy/grad_norm": float("inf"),
    "timing/step": 1.25,
    "environment/ünusual name with spaces": -1e-30,
}
"""What an observer must bear: no numbers, huge ones, and names it has never heard of."""


class ObserverContract:
    """Subclass and set `module`."""

    module: ModuleType
    """The plugin's module, with its hook implementations."""

    @pytest.fixture(autouse=True)
    def _in_a_folder_of_its_own(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        self._folder = tmp_path

    def config(self) -> dict[str, Any]:
        """The resolved config that the run reports; override it where the observer reads some."""
        return {"trainer": {"run_name": "run", "api_key": "***"}}

    def test_it_observes_something_and_every_hook_fits(self) -> None:
        """Names and arguments are those of `skyrl_kernel.hookspecs`."""
        check_hooks(self.module, "the observer")
        assert set(OBSERVED) & {hook for hook, _, _ in implementations(self.module).values()}

    def test_a_whole_run_passes(self) -> None:
        """Events in the order of a run, with numbers that are not finite among them."""
        self._life()

    def test_a_second_run_in_one_process_passes(self) -> None:
        """As when a notebook or a test calls `skyrl_kernel.runner.run` twice."""
        self._life(name="first")
        self._life(name="second")

    def test_a_continued_run_passes(self) -> None:
        """It begins after some steps, in a folder that the observer may have written to."""
        self._life(status="interrupted")
        self._life(start_step=1)

    @pytest.mark.parametrize("status", ["finished", "stopped", "interrupted", "failed"])
    def test_every_end_passes_right_after_the_start(self, status: Any) -> None:
        """A run may fail before its first step."""
        self._tell("on_run_start", run=self._run())
        self._tell("on_run_end", end=RunEnd(step=0, status=status, message="it ended"))

    def test_events_before_the_start_are_no_error(self) -> None:
        """A run may end before it began."""
        self._tell("on_run_end", end=RunEnd(step=0, status="failed", message="no model"))

    def test_it_changes_nothing_that_it_is_shown(self) -> None:
        """Others are shown the same objects."""
        metrics = dict(METRICS)
        self._tell("on_run_start", run=self._run())
        self._tell("on_step_end", step=StepInfo(step=1, total_steps=2, metrics=metrics))
        self._tell("on_eval_end", evaluation=EvalInfo(step=1, metrics=metrics))
        self._tell("on_run_end", end=RunEnd(step=1, status="finished", message=""))
        assert repr(metrics) == repr(METRICS)

    def _life(self, *, name: str = "run", start_step: int = 0, status: Any = "finished") -> None:
        self._tell("on_run_start", run=self._run(name, start_step))
        self._tell("on_eval_end", evaluation=EvalInfo(step=start_step, metrics={}))
        for step in (start_step + 1, start_step + 2):
            failure = Failure(
                step=step, uid="0:1", sample=0, kind="task", plugin=None, message="a\nb"
            )
            self._tell("on_failure", failure=failure)
            info = StepInfo(
                step=step,
                total_steps=start_step + 2,
                metrics=METRICS,
                trajectories=[_trajectory()],
            )
            self._tell("on_step_end", step=info)
            evaluation = {"eval/all/avg_score": 0.5, "eval/gsm8k/avg_score": 0.25}
            self._tell(
                "on_eval_end",
                evaluation=EvalInfo(step=step, metrics=evaluation, trajectories=[_trajectory()]),
            )
            self._tell("on_checkpoint", step=step, folder=self._folder / f"global_step_{step}")
        end = RunEnd(step=start_step + 2, status=status, message="done", warnings=("careful",))
        self._tell("on_run_end", end=end)

    def _run(self, name: str = "run", start_step: int = 0) -> RunInfo:
        folder = self._folder / name
        folder.mkdir(exist_ok=True)
        return RunInfo(
            name=name,
            project="skyrl",
            folder=folder,
            total_steps=start_step + 2,
            start_step=start_step,
            config=self.config(),
            plugins=("scripted skyrl-scripted 0.1.0",),
        )

    def _tell(self, hook: str, **event: Any) -> None:
        for name, function, _ in implementations(self.module).values():
            if name == hook:
                wanted = function.__code__.co_varnames[: function.__code__.co_argcount]
                function(**{key: event[key] for key in wanted})


LoggerContract = ObserverContract
"""A logger is an observer."""


def _trajectory() -> Trajectory:
    import numpy as np

    return Trajectory(
        prompt=Prompt(uid="0:0", messages=({"role": "user", "content": "x"},), env_class="any"),
        sample=0,
        segments=(
            Segment(
                tokens=np.array([1], dtype=np.int32),
                num_prompt_tokens=1,
                loss_mask=np.array([False]),
            ),
        ),
        turns=(),
        stop_reason=StopReason.STOP,
        reward=Reward(turns=()),
    )
