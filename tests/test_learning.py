"""Runs that must learn, beside runs that must not: each way of training, through the command line.

The small ones take seconds: a random model of one layer whose every token is a character.
"""

import json
from pathlib import Path

import pytest
from running import settings, skyrl, without_times

from skyrl_kernel.run import RunFolder
from skyrl_kernel.testing.distributions import make_distribution, on_path

SMALL = {
    "trainer.train_batch_size": 4,
    "trainer.policy_mini_batch_size": 4,
    "trainer.micro_train_batch_size_per_gpu": 64,
    "trainer.bf16": False,
    "trainer.gradient_checkpointing": False,
    "trainer.ckpt_interval": -1,
    "trainer.eval_interval": -1,
    "trainer.dump_trajectories": False,
}

# --- reinforcement: one answer is right ---------------------------------------------------

FIRST_LETTER = '''
"""Reward 1 if the answer begins with Q, 0 otherwise. Five prompts, all alike in that."""

import pyarrow as pa

from skyrl_kernel.env import EnvStep, TextEnv
from skyrl_kernel.hookspecs import hookimpl


class Env(TextEnv):
    def step(self, action):
        reward = float(action.startswith("Q"))
        return EnvStep(observations=[], reward=reward, done=True, metadata={})


@hookimpl
def load_dataset(source):
    prompts = [[{"role": "user", "content": f"number {n}"}] for n in range(120)]
    return pa.table({"prompt": prompts}) if source == "first:train" else None


@hookimpl
def make_env(name, extras):
    return Env(extras) if name == "first" else None
'''

BACKWARDS = '''
"""Turns every advantage around: reward is punished."""

from dataclasses import replace

from skyrl_kernel.hookspecs import hookimpl


@hookimpl(wrapper=True)
def advantage():
    inner = yield

    def backwards(groups):
        return [
            [tuple(replace(x, advantages=-x.advantages) for x in one) for one in group]
            for group in inner(groups)
        ]

    return replace(inner, fn=backwards)
'''

GRPO = SMALL | {
    "data.train_data": ["first:train"],
    "data.val_data": [],
    "environment.env_class": "first",
    "generator.n_samples_per_prompt": 32,
    "generator.sampling_params.max_generate_length": 2,
    "trainer.policy.optimizer_config.lr": 0.01,
    "trainer.eval_before_train": False,
}


@pytest.fixture
def toys(tmp_path: Path):
    """The env ``first`` and the wrapper ``backwards`` are installed."""
    site = tmp_path / "site"
    make_distribution(
        site,
        "skyrl-toys",
        modules={"skyrl_toys.first": FIRST_LETTER, "skyrl_toys.backwards": BACKWARDS},
        entry_points={
            "skyrl.envs": {"first": "skyrl_toys.first"},
            "skyrl.plugins": {"backwards": "skyrl_toys.backwards"},
        },
    )
    with on_path(site):
        yield


def metrics_of(folder: Path, name: str, *plugins: str, **values: object) -> list[dict[str, float]]:
    """Run it; what each step measured."""
    chosen = [word for plugin in plugins for word in ("--plugin", plugin)]
    values |= {"trainer.ckpt_path": str(folder), "trainer.run_name": name}
    outcome = skyrl("run", *chosen, *settings(values))
    assert outcome.code == 0, outcome.err
    lines = RunFolder(folder / name).metrics.read_text().splitlines()
    return [line for line in map(json.loads, lines) if line["step"] > 0]


def rewards(metrics: list[dict[str, float]]) -> list[float]:
    return [line["reward/avg_raw_reward"] for line in metrics]


def test_grpo_learns_the_one_right_token_and_unlearns_it_turned_around(
    toys: None, random_model: Path, tmp_path: Path
) -> None:
    values = GRPO | {"trainer.policy.model.path": str(random_model)}
    forward = rewards(metrics_of(tmp_path, "forward", "grpo", **values))
    backward = rewards(metrics_of(tmp_path, "backward", "grpo", "backwards", **values))
    # at random, 1 answer of 68 begins with the right character
    assert forward[0] == backward[0] < 0.1
    assert sum(forward[-5:]) / 5 > 0.9
    assert sum(backward[-5:]) / 5 < 0.02


def test_the_same_seed_gives_the_same_metrics_and_another_one_others(
    toys: None, random_model: Path, tmp_path: Path
) -> None:
    values = GRPO | {
        "trainer.policy.model.path": str(random_model),
        "trainer.max_training_steps": 4,
    }
    first = metrics_of(tmp_path, "first", "grpo", **values)
    again = metrics_of(tmp_path, "again", "grpo", **values)
    other = metrics_of(tmp_path, "other", "grpo", **values, **{"trainer.seed": 7})
    assert without_times(first) == without_times(again)
    assert without_times(first) != without_times(other)


# --- supervised fine-tuning ---------------------------------------------------------------

SFT = SMALL | {"trainer.policy.optimizer_config.lr": 0.01, "trainer.epochs": 5}


def write_rows(file: Path, responses: list[object]) -> str:
    lines = [
        {"prompt": [{"role": "user", "content": f"double {n}"}], "response": response}
        for n, response in enumerate(responses)
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(file)


def test_sft_lowers_its_loss(random_model: Path, tmp_path: Path) -> None:
    values = SFT | {
        "trainer.policy.model.path": str(random_model),
        "data.train_data": [write_rows(tmp_path / "rows.jsonl", [str(2 * n) for n in range(40)])],
    }
    steps = metrics_of(tmp_path, "sft", "sft", **values)
    losses = [step["policy/policy_loss"] for step in steps]
    assert len(losses) == 50
    assert losses[0] == pytest.approx(4.2, abs=0.2)  # ln 68: it knows nothing
    assert sum(losses[-10:]) / 10 < 1.6  # one of ten digits for each token, and the end for sure


def test_a_row_without_a_response_is_found_before_the_run(
    random_model: Path, tmp_path: Path
) -> None:
    values = SFT | {
        "trainer.policy.model.path": str(random_model),
        "trainer.ckpt_path": str(tmp_path / "runs"),
        "data.train_data": [write_rows(tmp_path / "rows.jsonl", ["0", None, "4", "6"])],
    }
    complaint = skyrl("run", "--plugin", "sft", *settings(values)).complaint
    assert "rows.jsonl', row 1 (from 0): supervised training needs the columns" in complaint
    assert complaint.endswith("the row has: prompt")
    assert not (tmp_path / "runs").exists()


# --- the demo -----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_demo_gains_a_fifth_of_held_out_accuracy(tmp_path: Path) -> None:
    """One seed; benchmarks/RESULTS.md has five, and the controls."""
    outcome = skyrl("run", "--plugin", "demo", f"trainer.ckpt_path={tmp_path}")
    assert outcome.code == 0, outcome.err
    lines = map(json.loads, RunFolder(tmp_path / "demo").metrics.read_text().splitlines())
    accuracy = [line[key] for line in lines if (key := "eval/all/exact_match") in line]
    assert accuracy[-1] - accuracy[0] >= 0.2
