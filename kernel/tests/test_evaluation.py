"""What an evaluation says and leaves behind."""

import asyncio
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from skyrl_kernel.assemble import eval_sampling, training_sampling
from skyrl_kernel.cli import skyrl
from skyrl_kernel.config import GeneratorConfig, SamplingConfig
from skyrl_kernel.defaults.accuracy import accuracy
from skyrl_kernel.errors import RunError
from skyrl_kernel.evaluation import play
from skyrl_kernel.records import Prompt, Reward, Sampling, Segment, StopReason, Trajectory, Turn
from skyrl_kernel.run.eval_dump import write_eval_dump
from skyrl_kernel.success import any_success, is_success
from skyrl_kernel.testing.scripted import (
    CharTokenizer,
    Script,
    installed,
    perform,
    read_metrics,
    run_scripted,
)


def trajectory(
    reward: float, uid: str = "p", env: dict[str, float] | None = None, sample: int = 0
) -> Trajectory:
    return Trajectory(
        prompt=Prompt(uid=uid, messages=(), env_class="e"),
        sample=sample,
        segments=(
            Segment(
                tokens=np.array([1, 2], dtype=np.int32),
                num_prompt_tokens=1,
                loss_mask=np.array([False, True]),
            ),
        ),
        turns=(Turn(segment=0, start=1, stop=2, reward=reward, action="x"),),
        stop_reason=StopReason.STOP,
        reward=Reward(turns=(reward,)),
        env_metrics=env or {},
    )


# --- an error ---------------------------------------------------------------------------


def test_what_ends_the_run_in_one_group_ends_the_others() -> None:
    begun: list[asyncio.Task[Any]] = []

    class Rollouts:
        def start(self, prompt: Prompt, **_: Any) -> "asyncio.Task[Any]":
            begun.append(asyncio.create_task(end() if begun else asyncio.sleep(60)))
            return begun[-1]

    async def end() -> None:
        await asyncio.sleep(0)
        raise RunError("the engine is gone")

    async def main() -> None:
        rollouts: Any = Rollouts()
        prompts = [Prompt(uid=str(number), messages=(), env_class="e") for number in range(3)]
        with pytest.raises(RunError, match="the engine is gone"):
            await play(rollouts, prompts, size=1, sampling=Sampling(), batch_size=3, step=0)
        assert [task.done() for task in begun] == [True] * 3

    asyncio.run(main())


# --- success ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env", "outcome"),
    [
        ({"exact_match": 1.0}, True),
        ({"exact_match": 0.0}, False),
        ({"exact_match": 0.5}, False),
        ({"is_success": 1.0, "exact_match": 0.0}, True),
        ({"is_success": 0.0, "exact_match": 1.0}, False),
        ({"steps": 1.0}, None),
        ({}, None),
    ],
)
def test_the_env_says_whether_an_episode_succeeded(
    env: dict[str, float], outcome: bool | None
) -> None:
    assert is_success(trajectory(1.0, env=env)) is outcome


def test_partial_credit_passes_by_skyrl_s_rule_and_is_no_success() -> None:
    right, wrong = {"exact_match": 1.0}, {"exact_match": 0.0}
    found = accuracy(
        [
            trajectory(0.5, "a", wrong),  # boxed but wrong: half a point
            trajectory(0.0, "a", wrong),
            trajectory(1.0, "b", right),
            trajectory(0.0, "b", wrong),
            trajectory(0.0, "c", wrong),
            trajectory(0.0, "c", wrong),
            trajectory(0.0, "d", right),  # right, too long: its reward was taken away
            trajectory(0.5, "d", wrong),
        ]
    )
    assert found["pass_at_2"] == 0.75  # a, b and d
    assert found["success_at_2"] == 0.5  # b and d
    assert found["avg_score"] == 0.25


def test_success_is_counted_over_the_prompts_whose_env_says() -> None:
    found = accuracy([trajectory(1.0, "a", {"exact_match": 1.0}), trajectory(1.0, "b")])
    assert found["success_at_1"] == 1.0
    assert "success_at_1" not in accuracy([trajectory(1.0, "a")])


@given(
    outcomes=st.lists(st.tuples(st.booleans(), st.floats(-1, 1)), min_size=1, max_size=6),
    seed=st.randoms(use_true_random=False),
)
def test_success_depends_neither_on_rewards_nor_on_order(
    outcomes: Sequence[tuple[bool, float]], seed: Any
) -> None:
    played = [trajectory(r, env={"exact_match": float(ok)}) for ok, r in outcomes]
    shuffled = list(played)
    seed.shuffle(shuffled)
    assert any_success(played) == any_success(shuffled) == any(ok for ok, _ in outcomes)
    assert accuracy(played)[f"success_at_{len(played)}"] == float(any(ok for ok, _ in outcomes))


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Path]:
    with installed(tmp_path / "site"):
        yield tmp_path


# --- sampling ---------------------------------------------------------------------------


def test_evaluation_samples_by_its_own_settings() -> None:
    config = GeneratorConfig(
        sampling_params={"max_generate_length": 7, "stop": ["x"]},  # type: ignore[arg-type]
        eval_sampling_params={  # type: ignore[arg-type]
            "top_k": 3,
            "stop": ["</a>"],
            "additional_kwargs": {"stop_token_ids": [5, 6], "min_tokens": 3},
        },
    )
    assert eval_sampling(config) == Sampling(
        max_tokens=7,
        temperature=0.0,
        top_k=3,
        stop=("</a>",),
        stop_token_ids=(5, 6),
        extra={"min_tokens": 3},
    )
    longer = config.eval_sampling_params.model_copy(update={"max_generate_length": 9})
    assert eval_sampling(config.model_copy(update={"eval_sampling_params": longer})).max_tokens == 9
    assert training_sampling(config) == Sampling(max_tokens=7, stop=("x",))


def test_ids_that_end_a_completion_are_ids() -> None:
    with pytest.raises(ValueError, match=r"stop_token_ids='5': it is a list of token ids"):
        SamplingConfig(additional_kwargs={"stop_token_ids": "5"})


@pytest.mark.parametrize(("temperature", "is_told"), [(0.0, True), (0.5, False)])
def test_samples_that_are_all_the_same_are_warned_of(
    site: Path, temperature: float, is_told: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    run_scripted(
        site,
        "trainer.max_training_steps=1",
        "generator.eval_n_samples_per_prompt=3",
        f"generator.eval_sampling_params.temperature={temperature}",
    )
    told = "plays every held-out prompt the same way 3 times; set a temperature above 0"
    assert (told in "".join(capsys.readouterr())) is is_told


# --- dumped generations -----------------------------------------------------------------


def rows(path: Path) -> str:
    """Three rows of two sources and none, two turns each."""
    sources = ["set/a", "set/a", None]
    lines = [
        {
            "prompt": [{"role": "user", "content": f"say {i}"}],
            "data_source": source,
            "max_turns": 2,
            "answer": "0!",
            "replies": ["why"],
        }
        for i, source in enumerate(sources)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return f"data.val_data=['{path}']"


def say(ask: Any) -> str:
    return "ja" if "why" not in ask.text else "0!"


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_evaluation_of_a_run_is_dumped_as_skyrl_dumps_it(site: Path) -> None:
    result = run_scripted(
        site,
        rows(site / "val.jsonl"),
        "trainer.eval_interval=2",
        "trainer.max_training_steps=2",
        "generator.eval_n_samples_per_prompt=2",
        script=Script(reply=say),
    )
    dumps = result.folder / "dumped_evals"
    assert sorted(path.name for path in dumps.iterdir()) == [
        "global_step_0_evals",
        "global_step_2_evals",
    ]
    folder = dumps / "global_step_2_evals"
    assert sorted(path.name for path in folder.iterdir()) == [
        "aggregated_results.jsonl",
        "set_a.jsonl",
        "unknown.jsonl",
    ]
    (first, *others) = lines(folder / "set_a.jsonl")
    assert len(others) == 3  # two prompts, two samples
    assert first == {
        "input_prompt": "<user>say 0<end><assistant>",
        "output_response": "ja<end><user>why<end><assistant>0!<end>",
        "score": 1.0,
        "stop_reason": "stop",
        "env_class": "scripted",
        "env_extras": {
            "max_turns": 2,
            "answer": "0!",
            "replies": ["why"],
            "data_source": "set/a",
        },
        "data_source": "set/a",
    }
    (numbers,) = lines(folder / "aggregated_results.jsonl")
    measured = read_metrics(result)[-1]
    assert numbers == {name: x for name, x in measured.items() if name.startswith("eval/")}
    assert numbers["eval/set_a/success_at_2"] == 1.0
    assert numbers["eval/unknown/num_trajectories"] == 2


def test_dumps_follow_the_exports_and_can_be_left_out(site: Path) -> None:
    data = rows(site / "val.jsonl")
    words = ["trainer.max_training_steps=1", data]
    elsewhere = run_scripted(
        site, *words, f"trainer.export_path={site / 'out'}", "trainer.run_name=one"
    )
    none = run_scripted(site, *words, "trainer.dump_eval_results=false", "trainer.run_name=two")

    assert (site / "out" / "one" / "dumped_evals" / "global_step_1_evals").is_dir()
    assert not (elsewhere.folder / "dumped_evals").exists()
    assert not (none.folder / "dumped_evals").exists()


def test_the_command_dumps_where_it_is_told(site: Path) -> None:
    data = rows(site / "val.jsonl")
    folder = site / "texts"
    words = ["eval", "scripted:model", "--plugin", "scripted", data, "--dump", str(folder)]
    with perform(Script(reply=say)):
        done = CliRunner().invoke(skyrl, words)
        again = CliRunner().invoke(skyrl, words)
    assert done.exit_code == 0, done.output
    (line,) = lines(folder / "unknown.jsonl")
    assert line["output_response"] == "ja<end><user>why<end><assistant>0!<end>"
    assert "not empty; name a new one" in str(again.exception) + again.output


def test_the_response_of_rows_that_share_no_beginning_is_what_each_said(tmp_path: Path) -> None:
    tokenizer = CharTokenizer()

    def row(prompt: str, completion: str) -> Segment:
        tokens = np.concatenate([tokenizer.encode(prompt), tokenizer.encode(completion)])
        return Segment(
            tokens=tokens,
            num_prompt_tokens=len(prompt),
            loss_mask=np.arange(len(tokens)) >= len(prompt),
        )

    turn = Turn(segment=0, start=0, stop=0, reward=0.0, action="")
    for rest, response in [
        (row("abc", "d"), "cd"),
        (row("xyz", "d"), "cd"),
        (row("xb", "d"), "cd"),
    ]:
        one = Trajectory(
            prompt=Prompt(uid="p", messages=(), env_class="e"),
            sample=0,
            segments=(row("ab", "c"), rest),
            turns=(turn, turn),
            stop_reason=StopReason.STOP,
        )
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        write_eval_dump(folder, [one], {}, tokenizer)
        (line,) = lines(folder / "unknown.jsonl")
        assert (line["input_prompt"], line["output_response"]) == ("ab", response)
        assert line["score"] is None
