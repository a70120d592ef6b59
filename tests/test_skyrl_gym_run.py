"""A class that a user wrote for skyrl-gym, in a module of a folder, trained on by the command."""

import os
import shutil

import pytest
from running import Lab, skyrl

MODULE = '''
from skyrl_gym.envs.base_text_env import BaseTextEnv, BaseTextEnvStepOutput


class Digits(BaseTextEnv):
    """Rewards the share of digits; asks once more."""

    def __init__(self, env_config=None, extras={}):
        super().__init__()
        self.max_turns = extras["max_turns"]
        self.goal = extras["reward_spec"]["ground_truth"]

    def step(self, action):
        self.turns += 1
        self.share = sum(c in "0123456789" for c in action) / max(1, len(action))
        done = self.turns >= self.max_turns
        return BaseTextEnvStepOutput(
            observations=[] if done else [{"role": "user", "content": "More digits"}],
            reward=self.share if done else 0.0,
            done=done,
            metadata={"goal": self.goal},
        )

    def get_metrics(self):
        return {"share": self.share}
'''

HAS_SANDBOX = shutil.which("bwrap", path=os.environ["PATH"] + ":/usr/bin:/bin") is not None


@pytest.fixture
def lab(random_model, tmp_path, monkeypatch):
    (tmp_path / "digits_gym.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)  # as `python -m` would, the command finds modules of this folder
    return Lab(random_model, tmp_path)


def train(lab, name, **changes):
    rows = lab.rows("rows", 4, reward_spec={"method": "rule", "ground_truth": "digits"})
    return lab.run(
        name,
        *("--plugin", "skyrl-gym"),
        **{
            "environment__env_class": "digits_gym:Digits",
            "environment__max_env_workers": 2,
            "generator__max_turns": 2,
            "data__train_data": [str(rows)],
            "data__val_data": [str(rows)],
            "trainer__epochs": 1,
            "trainer__train_batch_size": 2,
            "trainer__eval_before_train": False,
            "trainer__eval_interval": 0,
        }
        | changes,
    )


def played(lab, name):
    return [one for step in (1, 2) for one in lab.at(name).read_trajectories(step, timings=False)]


def said(trajectories):
    """What was said and earned; log-probs are rounded otherwise where fewer share a round."""
    return [
        (one["uid"], one["sample"], [(turn["action"], turn["reward"]) for turn in one["turns"]])
        for one in trajectories
    ]


def test_in_this_process_and_in_the_sandbox_a_run_is_the_same(lab):
    harmless = train(lab, "free", environment__skyrl_gym__harmless=["digits_gym:Digits"])
    assert harmless.code == 0, harmless.err
    trajectories = played(lab, "free")
    assert len(trajectories) == 2 * 2 * 4
    for one in trajectories:
        first, last = one["turns"]
        assert first["reward"] == 0
        assert last["reward"] == one["env_metrics"]["share"] == one["reward"]
    numbers = lab.at("free").read_metrics()
    assert [line["step"] for line in numbers if "policy/policy_loss" in line] == [1, 2]
    assert 0 < numbers[-1]["environment/share"] < 1
    assert numbers[-1]["eval/all/failed"] == numbers[-1]["failures/trajectories"] == 0

    if not HAS_SANDBOX:
        pytest.skip("bubblewrap is not installed: the run in the sandbox was not checked")
    sandboxed = train(lab, "boxed")
    assert sandboxed.code == 0, sandboxed.err
    assert said(played(lab, "boxed")) == said(trajectories)


def test_what_the_class_misses_costs_trajectories_and_says_why(lab):
    changes = {"environment__skyrl_gym__harmless": ["digits_gym:Digits"], "generator__max_turns": None}  # fmt: skip
    outcome = train(lab, "limitless", **changes)
    assert outcome.code == 1
    assert "the class reads extras['max_turns'], which SkyRL always sets" in outcome.err
    assert "set generator.max_turns" in outcome.err


@pytest.mark.skipif(not HAS_SANDBOX, reason="bubblewrap is not installed: no class was looked for")
def test_a_class_that_is_not_there_refuses_the_run(lab):
    outcome = train(lab, "typo", environment__env_class="digits_gym:Digit")
    complaint = outcome.complaint
    assert "row 0 (from 0) names the env 'digits_gym:Digit'" in complaint
    assert "has no class 'Digit'. Did you mean 'Digits'?" in complaint
    assert not lab.at("typo").path.exists()


def test_a_dry_run_names_the_adapter(lab):
    words = lab.words(
        "dry", "--plugin", "skyrl-gym", "--dry-run", environment__env_class="digits_gym:Digits"
    )
    outcome = skyrl(*words)
    assert outcome.code == 0, outcome.err
    assert "skyrl-gym" in outcome.out
