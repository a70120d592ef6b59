"""``gsm8k_multi_turn``: a reward for each turn, replies in between, and its data."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from skyrl_gsm8k.multi_turn import Gsm8kMultiTurnEnv
from skyrl_gsm8k.plugin import make_env
from skyrl_gsm8k.problems import MultiTurnOptions, write_data
from skyrl_kernel.cli.data import data
from skyrl_kernel.env import Env
from skyrl_kernel.errors import UsageError
from skyrl_kernel.json_lines import read_lines
from skyrl_kernel.run.trajectory_file import read_trajectories
from skyrl_kernel.testing.contracts import EnvContract
from skyrl_kernel.testing.scripted import Ask, Script, installed, run_scripted

CHECKOUT = Path(__file__).parents[4]
ORIGINAL = [
    folder
    for place in (CHECKOUT, CHECKOUT.parent)
    if (folder := place / "shared" / "data" / "gsm8k").is_dir()
]
"""Where the published files are, in or beside the checkout; they are not part of it."""
ROW = {"reward_spec": {"method": "rule", "ground_truth": "42"}}


class TestGsm8kMultiTurn(EnvContract):
    prompt = ({"role": "user", "content": "How many?"},)
    actions = ("#### 42", "#### 41", "42", "#### 4,2", "####")

    def make(self, cap: int | None = None) -> Env:
        return Gsm8kMultiTurnEnv(ROW, cap=cap)


def play(*actions: str, cap: int | None = None, **columns: object) -> list[dict[str, object]]:
    env = Gsm8kMultiTurnEnv(ROW | columns, cap=cap)
    return [dict(env.step(action)) for action in actions]


def test_each_turn_is_paid_by_itself_and_a_right_answer_ends() -> None:
    # 0.2 / 4 turns = 0.05 for a number that is wrong
    steps = play("#### 41", "no idea", "#### 42", max_turns=4)
    assert [step["reward"] for step in steps] == [0.05, 0.0, 1.0]
    assert [step["done"] for step in steps] == [False, False, True]
    assert [step["metadata"] for step in steps] == [
        {"parsed_answer": "41"},
        {"parsed_answer": None},
        {"parsed_answer": "42"},
    ]


def test_wrong_answers_of_a_whole_episode_earn_a_fifth_together() -> None:
    for turns in range(1, 9):
        rewards = [step["reward"] for step in play(*["#### 1"] * turns, max_turns=turns)]
        assert sum(rewards) == pytest.approx(0.2)


def test_the_replies_ask_for_reasoning_and_at_last_for_the_number_only() -> None:
    replies = [step["observations"] for step in play("a", "b", "c", max_turns=3)]
    reasoning, number, nothing = replies
    assert "step-by-step reasoning, and also include a tentative" in reasoning[0]["content"]
    assert number == [
        {
            "role": "user",
            "content": "Now provide only the final numeric answer in the exact format: "
            "'#### ANSWER'.",
        }
    ]
    assert nothing == []


@pytest.mark.parametrize(
    ("columns", "cap", "turns"),
    [
        ({}, None, 5),
        ({"extra_info": {"max_turns": 3}}, None, 3),
        ({"extra_info": {"max_turns": 3}, "max_turns": 4}, None, 4),
        ({"extra_info": {"max_turns": 3}}, 2, 2),
        ({"extra_info": {"max_turns": 3}}, 9, 3),
        ({"extra_info": None}, None, 5),
    ],
)
def test_the_row_says_how_many_turns_there_are_and_the_generator_caps_them(
    columns: dict[str, object], cap: int | None, turns: int
) -> None:
    steps = play(*["#### 1"] * turns, cap=cap, **columns)
    assert [step["done"] for step in steps] == [False] * (turns - 1) + [True]
    assert steps[0]["reward"] == 0.2 / turns


@given(wrong=st.integers(0, 6), turns=st.integers(1, 5))
def test_steps_and_the_last_answer_are_reported(wrong: int, turns: int) -> None:
    env = Gsm8kMultiTurnEnv(ROW | {"max_turns": turns})
    done = False
    while not done:
        done = env.step("#### 42" if env.turns == wrong else "#### 41")["done"]
    assert env.get_metrics() == {
        "exact_match": float(wrong < turns),
        "avg_steps": float(min(wrong + 1, turns)),
    }


def test_a_row_without_an_answer_is_refused_by_this_name() -> None:
    with pytest.raises(ValueError, match="'gsm8k_multi_turn' needs the column reward_spec"):
        Gsm8kMultiTurnEnv({})


def test_a_number_of_turns_that_is_none_is_refused_by_its_column() -> None:
    # Of -1 turns the format's share would be negative: a fine for every well-formed answer.
    with pytest.raises(ValueError, match=r"this row's extra_info\.max_turns is -1; it must be"):
        Gsm8kMultiTurnEnv(ROW | {"extra_info": {"max_turns": -1}})


def test_the_plugin_makes_it_with_the_generators_cap() -> None:
    env = make_env("gsm8k_multi_turn", ROW, 2)
    assert isinstance(env, Gsm8kMultiTurnEnv)
    assert env.max_turns == 2


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "original"
    folder.mkdir()
    line = '{"question": "What is %d + 1?", "answer": "One more.\\n#### %d"}'
    for split, count in (("train", 6), ("test", 3)):
        lines = [line % (n, n + 1) for n in range(count)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    return folder


@pytest.mark.parametrize("option", ["--max_turns", "--max-turns"])
def test_the_command_writes_the_turns_into_every_row(
    tmp_path: Path, source: Path, option: str
) -> None:
    out = tmp_path / "out"
    words = ["gsm8k_multi_turn", "--source", str(source), "--output-dir", str(out), option, "3"]
    result = CliRunner().invoke(data, [*words, "--max_train_dataset_length", "4"])
    assert result.output == (f"{out}/train.parquet: 4 rows\n{out}/validation.parquet: 3 rows\n")
    rows = pq.read_table(out / "validation.parquet").to_pylist()
    assert rows[2] == {
        "data_source": "openai/gsm8k",
        "prompt": [
            {
                "role": "user",
                "content": "What is 2 + 1? Let's think step by step and output a tentative "
                'numeric answer after "####".',
            }
        ],
        "env_class": "gsm8k_multi_turn",
        "reward_spec": {"method": "rule", "ground_truth": "3"},
        "extra_info": {
            "split": "test",
            "index": 2,
            "answer": "One more.\n#### 3",
            "question": "What is 2 + 1?",
            "max_turns": 3,
        },
    }


def test_no_turn_at_all_is_refused(source: Path) -> None:
    words = ["gsm8k_multi_turn", "--source", str(source), "--max_turns", "0"]
    error = CliRunner().invoke(data, words).exception
    assert isinstance(error, UsageError)
    assert "--max_turns=0: Input should be greater than or equal to 1" in str(error)


@pytest.mark.skipif(not ORIGINAL, reason="not checked: the published files are not here")
def test_the_published_answers_are_right_at_the_first_turn(tmp_path: Path) -> None:
    files = write_data(MultiTurnOptions(max_turns=4), tmp_path, ORIGINAL[0])
    rows = {split: pq.read_table(file).to_pylist() for split, file in files.items()}
    assert {split: len(some) for split, some in rows.items()} == {
        "train": 7473,
        "validation": 1319,
    }
    for row in rows["validation"]:
        env = Gsm8kMultiTurnEnv(row)
        assert env.max_turns == 4
        step = env.step(row["extra_info"]["answer"])
        assert (step["reward"], step["done"]) == (1.0, True)


def test_a_run_keeps_the_reward_of_each_turn(tmp_path: Path, source: Path) -> None:
    """From the original files to the trained trajectories, on the kernel's fakes."""
    words = ["gsm8k_multi_turn", "--source", str(source), "--output_dir", str(tmp_path)]
    assert CliRunner().invoke(data, [*words, "--max_turns", "3"]).exit_code == 0

    def reply(ask: Ask) -> str:
        if "exact format" not in ask.text:
            return "hm"
        return "#### 1" if "only the final" not in ask.text else "#### 2"

    with installed(tmp_path / "site"):
        result = run_scripted(
            tmp_path,
            "environment.env_class=gsm8k_multi_turn",
            f"data.train_data=['{tmp_path}/train.parquet']",
            f"data.val_data=['{tmp_path}/validation.parquet']",
            "data.shuffle=false",
            "trainer.eval_before_train=false",
            "trainer.max_training_steps=1",
            script=Script(reply=reply),
        )
    rows = read_trajectories(result.folder / "trajectories" / "step_1.parquet")
    # "What is 0 + 1?": "hm", then right. "What is 1 + 1?": "hm", 0.2 / 3 turns, then right.
    assert {row["uid"]: row["turn_rewards"] for row in rows} == {
        "0:0": [0.0, 1.0],
        "0:1": [0.0, pytest.approx(0.2 / 3), 1.0],
    }
    assert [row["env_metrics"]["avg_steps"] for row in rows] == [2, 2, 3, 3]
    assert next(read_lines(result.folder / "metrics.jsonl"))[1]["environment/avg_steps"] == 2.5
