"""`kill -9` at any moment, then the same command: as if nothing had happened."""

import hashlib
import json
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from running import Lab, Outcome, ended, install_probe, start, without_times
from sabotage import MOMENTS, armed, install_sabotage

CHANGES = {
    "trainer__algorithm__use_kl_loss": True,
    "trainer__ckpt_interval": 2,
    "trainer__max_ckpts_to_keep": 2,
}
"""The reference of the KL term, and the pruning of checkpoints, must survive too."""


class Experiment:
    """One command, run undisturbed and killed; 8 prompts by 4 make 2 steps per epoch."""

    def __init__(self, lab: Lab, *, epochs: int, **changes: Any) -> None:
        self.lab = lab
        self.site = lab.folder / "site"
        self.steps = 2 * epochs
        self.changes = {**CHANGES, "trainer__epochs": epochs, **changes}
        install_probe(self.site)
        install_sabotage(self.site)
        rows = [
            {"prompt": [{"role": "user", "content": f"Digits please {number}"}]}
            for number in range(8)
        ]
        rows[5] |= {"trouble": "raises", "always": True}  # its groups are replaced by others
        rows[6] |= {"trouble": "constant", "always": True}  # nothing to learn: all rewards equal
        self.changes["data__train_data"] = [str(lab.write("kill", rows))]

    def once(self, name: str) -> Outcome:
        words = self.lab.words(name, "--plugin", "sabotage", **self.changes)
        return ended(start(*words, site=self.site))

    def killed(self, name: str, moment: str, count: int) -> None:
        """Run until the kill."""
        order = armed(self.site, moment, count, signal.SIGKILL)
        outcome = self.once(name)
        assert outcome.code == -signal.SIGKILL, f"{moment} {count}: {outcome}"
        assert not order.exists()

    def finished(self, name: str) -> dict[str, Any]:
        """Run to the end; all that is left behind, times aside: text, numbers and bytes."""
        outcome = self.once(name)
        assert outcome.code == 0, outcome.err
        run = self.lab.at(name)
        files = sorted(path for path in run.path.rglob("*") if path.is_file())
        return {
            "metrics": without_times(run.read_metrics()),
            "failures": run.read_failures(),
            "trajectories": [
                run.read_trajectories(step, timings=False) for step in range(1, self.steps + 1)
            ],
            "names": [str(path.relative_to(run.path)) for path in files],
            "states": [state_of(path) for path in files if path.name == "state.json"],
            "bytes": {
                str(path.relative_to(run.path)): hashlib.sha256(path.read_bytes()).hexdigest()
                for path in files
                if path.suffix == ".safetensors"
            },
        }


def state_of(path: Path) -> dict[str, Any]:
    """The controller's state; not the plugin lock, which tells of edits while this test runs."""
    return {key: value for key, value in json.loads(path.read_text()).items() if key != "lock"}


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for part in expected:
        assert found[part] == expected[part], f"{part} differ"


def test_killed_in_a_rollout_a_checkpoint_and_the_export_a_run_ends_as_if_undisturbed(
    random_model, tmp_path
):
    experiment = Experiment(Lab(random_model, tmp_path), epochs=3)
    undisturbed = experiment.finished("undisturbed")
    assert undisturbed["failures"]
    weights = [
        digest
        for name, digest in undisturbed["bytes"].items()
        if name.endswith("weights.safetensors")
    ]
    assert len(set(weights)) == 2  # something was learned between the two, so can be lost

    experiment.killed("killed", "generate", 50)  # 16 rollouts a step: in the fourth
    experiment.killed("killed", "checkpoint", 1)
    experiment.killed("killed", "export", 1)  # the last thing before the last checkpoint
    assert_same(experiment.finished("killed"), undisturbed)


ALGORITHM = "trainer__algorithm__"
KEEPING = {
    "dapo": {
        f"{ALGORITHM}use_kl_loss": False,
        f"{ALGORITHM}dynamic_sampling__type": "filter",
        f"{ALGORITHM}overlong_buffer_len": "auto",
        f"{ALGORITHM}eps_clip_high": 0.28,
    },
    "ppo": {
        f"{ALGORITHM}advantage_estimator": "gae",
        f"{ALGORITHM}lambd": 0.9,
        f"{ALGORITHM}dynamic_sampling__type": "replace",
        f"{ALGORITHM}use_kl_loss": False,
        f"{ALGORITHM}use_kl_in_reward": True,
        f"{ALGORITHM}kl_loss_coef": 0.5,
        f"{ALGORITHM}kl_ctrl__type": "adaptive",
        f"{ALGORITHM}kl_ctrl__kl_target": 0.01,
        f"{ALGORITHM}kl_ctrl__horizon": 100,
    },
}
"""What has more to lose: prompts drawn beyond the epoch; a critic, its optimizer, a KL's coefficient."""


@pytest.mark.parametrize("algorithm", KEEPING)
def test_what_an_algorithm_remembers_survives_a_kill_in_an_update(
    algorithm: str, random_model: Path, tmp_path: Path
) -> None:
    """The file of the step's trajectories may be there by then; it is written beside the updates."""
    experiment = Experiment(Lab(random_model, tmp_path), epochs=3, **KEEPING[algorithm])
    undisturbed = experiment.finished("undisturbed")
    lines = [line for line in undisturbed["metrics"] if line["step"] > 0]
    assert sum(line["generate/groups_dropped"] for line in lines) >= 2
    if algorithm == "ppo":
        assert "checkpoints/global_step_6/value/optimizer.safetensors" in undisturbed["bytes"]
        assert len({line["loss/kl_loss_coef"] for line in lines}) == experiment.steps

    experiment.killed(
        "killed", "loss", 6
    )  # 2 a step: in the last update before the second checkpoint
    experiment.killed("killed", "loss", 3)
    assert_same(experiment.finished("killed"), undisturbed)


@pytest.mark.slow
def test_killed_at_ten_random_moments_a_run_ends_as_if_undisturbed(random_model, tmp_path):
    """Every kind of moment comes; how late, and in which order, is drawn anew each time."""
    experiment = Experiment(Lab(random_model, tmp_path), epochs=25)
    undisturbed = experiment.finished("undisturbed")
    seed = time.time_ns() % 1_000_000
    rng = random.Random(seed)
    moments = [moment for moment in MOMENTS if moment != "export"]
    moments += [*rng.choices(("generate", "loss", "checkpoint"), k=9 - len(moments))]
    rng.shuffle(moments)
    latest = {"generate": 64, "loss": 8, "evaluate": 6, "sync_weights": 4, "step": 4, "saved": 2}
    plan = [(moment, rng.randint(1, latest.get(moment, 1))) for moment in moments]
    print(f"seed {seed}: {plan}")  # none gets further than 4 steps, so all come in 50
    for moment, count in [*plan, ("export", 1)]:
        experiment.killed("killed", moment, count)
    assert_same(experiment.finished("killed"), undisturbed)
