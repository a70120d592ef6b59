"""Whole runs whose generation is ahead of training, with a real engine and real updates."""

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from beside import ahead, install_beside
from running import COMMAND, Lab, install_probe, probe_installed

from skyrl_kernel.plugins import discover
from skyrl_kernel.testing.killing import check_each_prompt_once, consumed, killed_at_random

ALGORITHM = "trainer__algorithm__"
DIFFERENCE = "policy/rollout_train_logprobs_abs_diff_mean"


@pytest.fixture
def lab(random_model: Path, tmp_path: Path) -> Iterator[Lab]:
    site = tmp_path / "site"
    install_beside(site)
    with probe_installed(site):
        discover(refresh=True)
        yield Lab(random_model, tmp_path)


def steps_of(lab: Lab, name: str = "run") -> list[dict[str, Any]]:
    return [line for line in lab.at(name).read_metrics() if line["step"] > 0]


# --- learning -------------------------------------------------------------------------------------


def test_every_token_carries_its_version_and_none_is_older_than_allowed(lab: Lab) -> None:
    outcome = lab.run(**ahead(2, trainer__epochs=5))
    assert outcome.code == 0, outcome.err
    lines = steps_of(lab)
    assert len(lines) == 10
    assert 0 < max(line["async/staleness_max"] for line in lines) <= 2
    assert all(line["async/staleness_violation_count"] == 0 for line in lines)
    assert lines[0][DIFFERENCE] <= 1e-4  # nothing was trained when it was sampled
    assert max(line[DIFFERENCE] for line in lines) > 1e-4  # and later the policy had moved
    for line in lines:
        for row in lab.at().read_trajectories(line["step"]):
            (segment,) = row["segments"]
            versions = [one for one in segment["versions"] if one != -1]
            assert versions == sorted(versions)
            assert line["step"] - 1 - 2 <= versions[0] <= versions[-1] <= line["step"] - 1
    check_each_prompt_once(lab.at().path, prompts=8)


CORRECTED: list[dict[str, Any]] = [
    {f"{ALGORITHM}off_policy_correction__tis_ratio_type": "token"},
    {f"{ALGORITHM}off_policy_correction__sequence_mask_metric": "geometric"},
    {f"{ALGORITHM}policy_loss_type": "rollout_is"},
    {
        f"{ALGORITHM}policy_loss_type": "cispo",
        f"{ALGORITHM}cispo__cispo_anchor": "rollout",
    },
    {f"{ALGORITHM}policy_loss_type": "dppo"},
]


@pytest.mark.parametrize(
    "changes",
    CORRECTED,
    ids=lambda one: "=".join(map(str, *one.items())) if len(one) == 1 else "cispo",
)
def test_a_correction_is_chosen_by_config_and_every_step_tells_the_difference(
    lab: Lab, changes: dict[str, Any]
) -> None:
    outcome = lab.run(**ahead(2, **changes))
    assert outcome.code == 0, outcome.err
    lines = steps_of(lab)
    assert len(lines) == 4
    assert all(np.isfinite(line[DIFFERENCE]) for line in lines)
    if "sequence_mask_metric" in str(changes) or "tis_ratio_type" in str(changes):
        names = {name for line in lines for name in line}
        assert any("is_ratio" in name or "mask" in name for name in names), sorted(names)


@pytest.mark.parametrize("kind", ["filter", "replace"])
def test_dynamic_sampling_keeps_batches_whole_and_fresh(lab: Lab, kind: str) -> None:
    rows = [{"prompt": [{"role": "user", "content": f"Digits please {n}"}]} for n in range(8)]
    rows[2] |= {"trouble": "constant", "always": True}
    rows[5] |= {"trouble": "constant", "always": True}
    changes = {
        f"{ALGORITHM}dynamic_sampling__type": kind,
        "data__train_data": [str(lab.write("some", rows))],
    }
    outcome = lab.run(**ahead(2, trainer__epochs=4, **changes))
    assert outcome.code == 0, outcome.err
    lines = steps_of(lab)
    assert sum(line["generate/groups_dropped"] for line in lines) > 0
    for line in lines:
        assert line["async/staleness_max"] <= 2
        trained = lab.at().read_trajectories(line["step"])
        assert len(trained) == 16
        assert not {row["uid"] for row in trained} & {"0:2", "0:5"}


# --- kills and Ctrl-C -----------------------------------------------------------------------------


PROMPTS = 12


class Killed:
    """One command that generates two steps ahead, 8 prompts; 12 by 4 make 3 steps per epoch."""

    def __init__(self, lab: Lab, *, epochs: int) -> None:
        self.lab = lab
        self.changes = ahead(
            2,
            data__train_data=[str(lab.rows("twelve", PROMPTS))],
            trainer__epochs=epochs,
            trainer__ckpt_interval=1,
            trainer__eval_interval=4,
            # Few tokens and a high learning rate: two steps may be nats apart.
            trainer__logprobs_diff__stop_above=None,
        )
        install_probe(lab.folder / "site")

    def ended(self, name: str, *, kills: int, seed: int, how: signal.Signals) -> list[int]:
        """Exit codes of the repetitions that were ended; then the run is finished."""
        return killed_at_random(
            [str(COMMAND), *self.lab.words(name, **self.changes)],
            self.lab.at(name).path,
            kills=kills,
            rng=random.Random(seed),
            env=self.environment,
            how=how,
        )

    @property
    def environment(self) -> dict[str, str]:
        """Of the command: the distributions of the test are on its path."""
        added = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(self.lab.folder / "site")}
        return os.environ | added


def check_killed(killed: Killed, *, kills: int) -> None:
    lab = killed.lab
    assert lab.run("undisturbed", **killed.changes).code == 0
    seed = time.time_ns() % 1_000_000
    print(f"seed {seed}")
    codes = killed.ended("killed", kills=kills, seed=seed, how=signal.SIGKILL)
    assert codes == [-signal.SIGKILL] * kills
    check_each_prompt_once(lab.at("killed").path, prompts=PROMPTS)
    assert consumed(lab.at("killed").path) == consumed(lab.at("undisturbed").path)


def test_killed_at_random_moments_a_run_trains_on_each_prompt_once_per_epoch(lab: Lab) -> None:
    check_killed(Killed(lab, epochs=4), kills=2)


@pytest.mark.slow
def test_killed_at_ten_random_moments_a_run_trains_on_each_prompt_once_per_epoch(lab: Lab) -> None:
    check_killed(Killed(lab, epochs=15), kills=10)


def test_after_ctrl_c_the_same_command_goes_on(lab: Lab) -> None:
    killed = Killed(lab, epochs=4)
    assert killed.ended("run", kills=1, seed=5, how=signal.SIGINT) == [130]
    check_each_prompt_once(lab.at("run").path, prompts=PROMPTS)
