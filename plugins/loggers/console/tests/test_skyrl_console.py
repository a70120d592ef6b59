import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from skyrl_console import plugin
from skyrl_console.lines import by_source
from skyrl_console.plugin import ConsoleLogger
from skyrl_kernel.progress import Progress
from skyrl_kernel.protocols import EvalInfo, RunEnd, RunInfo, StepInfo
from skyrl_kernel.records import Prompt, Reward, Segment, StopReason, Trajectory, Turn
from skyrl_kernel.run import RunFolder

METRICS = {
    "reward/avg_raw_reward": 0.25,
    "environment/exact_match": 0.2,
    "generate/avg_num_tokens": 7.125,
    "policy/policy_loss": -1.23e-5,
    "policy/policy_kl": 3.2e-4,
    "policy/policy_entropy": 1.5,
    "policy/grad_norm": 9.0,
    "timing/step": 0.31,
}


def run_info(start_step: int = 0) -> RunInfo:
    return RunInfo(
        name="demo",
        project="skyrl",
        folder=Path("runs/demo"),
        total_steps=25,
        start_step=start_step,
        config={},
        plugins=["grpo skyrl-grpo 0.1.0", "console skyrl-console 0.1.0"],
    )


def finished(warnings: tuple[str, ...] = ()) -> RunEnd:
    return RunEnd(step=25, status="finished", message="25 of 25 steps", warnings=warnings)


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def logger(stream) -> ConsoleLogger:
    return ConsoleLogger(Console(file=stream, markup=False, width=100))


def test_the_start_names_run_steps_plugins_and_folder(logger, stream):
    logger.start(run_info())
    logger.start(run_info(start_step=10))
    assert stream.getvalue() == (
        "run demo: 25 steps, 2 plugins, folder runs/demo\n"
        "run demo: continues after step 10 of 25, 2 plugins, folder runs/demo\n"
    )


def test_a_step_is_one_line_and_its_numbers_stand_below_each_other(logger, stream):
    logger.step(StepInfo(step=9, total_steps=25, metrics=METRICS))
    logger.step(StepInfo(step=10, total_steps=25, metrics={**METRICS, "policy/policy_loss": 0.5}))
    first, second = stream.getvalue().splitlines()
    assert first == (
        "step  9/25  reward 0.250     exact_match 0.200     tokens 7.12      loss -1.2e-05  "
        "kl 3.2e-04   entropy 1.50      seconds 0.310"
    )
    for name in ("reward", "exact_match", "tokens", "loss", "kl", "entropy", "seconds"):
        assert first.index(f" {name} ") == second.index(f" {name} ")


def example() -> Trajectory:
    segment = Segment(
        tokens=np.array([1, 2, 3], dtype=np.int32),
        num_prompt_tokens=1,
        loss_mask=np.array([False, True, True]),
    )
    said = [("40 + 2\n= 43", 0.0), ("42", 1.0)]
    return Trajectory(
        prompt=Prompt(
            uid="7", messages=[{"role": "user", "content": "6 * 7?\nSay it."}], env_class="e"
        ),
        sample=1,
        segments=(segment,),
        turns=tuple(Turn(segment=0, start=1, stop=2, reward=r, action=text) for text, r in said),
        stop_reason=StopReason.STOP,
        reward=Reward(turns=(0.0, 1.0)),
    )


def test_an_example_is_printed_where_one_is_due(logger, stream):
    config = {"trainer": {"print_example_interval": 2}}
    logger.start(dataclasses.replace(run_info(), config=config))
    for step in (1, 2):
        logger.step(
            StepInfo(step=step, total_steps=25, metrics={"a": 1.0}, trajectories=[example()])
        )
    logger.step(StepInfo(step=4, total_steps=25, metrics={"a": 1.0}))  # SFT has none to show
    assert stream.getvalue().splitlines()[1:] == [
        "step  1/25  a 1.00",
        "step  2/25  a 1.00",
        "example of step 2: trajectory 7/1, reward 1.00, ended by stop",
        "  user: 6 * 7?",
        "    Say it.",
        "  assistant (0.000): 40 + 2",
        "    = 43",
        "  assistant (1.00): 42",
        "step  4/25  a 1.00",
    ]


def test_no_example_is_printed_unless_asked_for(logger, stream):
    logger.start(run_info())
    logger.step(StepInfo(step=1, total_steps=25, metrics={"a": 1.0}, trajectories=[example()]))
    assert "example" not in stream.getvalue()


def test_while_a_live_display_shows_the_steps_no_line_is_printed(logger, stream):
    screen = Console(file=io.StringIO(), force_terminal=True)
    with Progress("demo", 25, console=screen, live=True):
        logger.step(StepInfo(step=9, total_steps=25, metrics=METRICS))
    assert stream.getvalue() == ""


def test_one_data_source_is_one_line(logger, stream):
    logger.evaluation(
        EvalInfo(
            step=0,
            metrics={
                "eval/multiply/avg_score": 0.1,
                "eval/multiply/exact_match": 0.1,
                "eval/all/exact_match": 0.1,
                "eval/all/avg_score": 0.1,
                "eval/all/generate/avg_num_tokens": 7.0,
            },
        )
    )
    assert stream.getvalue() == (
        "evaluation at step 0, multiply: exact_match 0.100  avg_score 0.100\n"
    )


def test_several_data_sources_are_a_table_with_all_of_them_last(logger, stream):
    metrics = {
        "eval/all/avg_score": 0.25, "eval/all/pass_at_2": 0.5,
        "eval/b/avg_score": 0.5, "eval/b/pass_at_2": 1.0, "eval/a/avg_score": 0.0,
    }  # fmt: skip
    logger.evaluation(EvalInfo(step=5, metrics=metrics))
    assert [line.rstrip() for line in stream.getvalue().splitlines()] == [
        "evaluation at step 5:",
        "data source  avg_score  pass_at_2",
        "a                0.000",
        "b                0.500       1.00",
        "all              0.250      0.500",
    ]


def test_unknown_numbers_are_shown_where_no_known_one_is():
    assert by_source({"eval/all/loss": 1.0, "other": 2.0}) == {"all": {"loss": 1.0}}


def test_the_end_says_what_the_run_achieved_and_what_it_warns_of(logger, stream):
    for step, accuracy in ((0, 0.1), (5, 0.3), (25, 0.612)):
        logger.evaluation(EvalInfo(step=step, metrics={"eval/all/exact_match": accuracy}))
    logger.end(finished(warnings=("rewards are constant", "rewards are constant", "other")))
    assert stream.getvalue().splitlines()[3:] == [
        "finished at step 25: 25 of 25 steps",
        "held-out exact_match: 0.100 (step 0) -> 0.612 (step 25)".replace("->", "→"),
        "warning: rewards are constant (2 times)",
        "warning: other",
    ]


def test_the_end_falls_back_to_the_average_score_and_to_one_evaluation(logger, stream):
    logger.evaluation(EvalInfo(step=25, metrics={"eval/all/avg_score": 0.5}))
    logger.end(finished())
    assert stream.getvalue().splitlines()[1:] == [
        "finished at step 25: 25 of 25 steps",
        "held-out avg_score: 0.500 (step 25)",
    ]


def test_the_end_of_a_run_on_rows_that_were_read_says_its_loss(logger, stream):
    for step, loss in ((0, 0.0435), (25, 0.0143)):
        logger.evaluation(EvalInfo(step=step, metrics={"eval/all/loss": loss}))
    logger.end(finished())
    assert stream.getvalue().splitlines()[-1] == "held-out loss: 0.043 (step 0) → 0.014 (step 25)"


def test_a_continued_run_remembers_the_evaluation_before_training(logger, stream, tmp_path):
    folder = RunFolder(tmp_path)
    folder.append_metrics(0, {"eval/all/exact_match": 0.1})
    folder.append_metrics(5, {**METRICS, "eval/all/exact_match": 0.3})
    logger.start(dataclasses.replace(run_info(start_step=5), folder=tmp_path))
    logger.evaluation(EvalInfo(step=25, metrics={"eval/all/exact_match": 0.612}))
    logger.end(finished())
    assert "held-out exact_match: 0.100 (step 0) → 0.612 (step 25)" in stream.getvalue()


def test_a_stream_that_knows_no_arrow_gets_two_characters():
    raw = io.BytesIO()
    with io.TextIOWrapper(raw, encoding="ascii", write_through=True) as ascii_stream:
        logger = ConsoleLogger(Console(file=ascii_stream))
        for step, accuracy in ((0, 0.1), (25, 0.5)):
            logger.evaluation(EvalInfo(step=step, metrics={"eval/all/exact_match": accuracy}))
        logger.end(finished())
        assert b"0.100 (step 0) -> 0.500 (step 25)" in raw.getvalue()


def test_without_evaluations_the_end_is_one_line(logger, stream):
    logger.end(RunEnd(step=3, status="stopped", message="good enough"))
    assert stream.getvalue() == "stopped at step 3: good enough\n"


def test_what_the_command_tells_by_itself_is_not_told_twice(logger, stream):
    for status, step in (("failed", 3), ("interrupted", 0)):
        logger.end(RunEnd(step=step, status=status, message="the engine is gone"))
    assert stream.getvalue().splitlines() == [
        "failed after the checkpoint of step 3",
        "interrupted before the first checkpoint",
    ]


def test_the_hooks_print_a_whole_run_and_a_new_run_begins_afresh(capsys):
    for accuracy in (0.1, 0.2):
        plugin.on_run_start(run_info())
        plugin.on_eval_end(EvalInfo(step=0, metrics={"eval/all/exact_match": accuracy}))
        plugin.on_step_end(StepInfo(step=1, total_steps=25, metrics=METRICS))
        plugin.on_eval_end(EvalInfo(step=25, metrics={"eval/all/exact_match": 0.9}))
        plugin.on_run_end(finished())
    printed = capsys.readouterr().out
    assert "held-out exact_match: 0.100 (step 0)" in printed
    assert "held-out exact_match: 0.200 (step 0)" in printed
    assert printed.count("step  1/25") == 2
