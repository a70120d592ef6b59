"""What becomes of a run under Ray when one of its processes fails, dies, hangs or has no disk left.

Two ranks of the trainer and an engine, or a rank of the policy and two of a critic, real processes
that meet over gloo. Each trouble ends the run within its deadline and with a line that says which
process and why; the same command goes on, and at last the run has the numbers of one that nothing
happened to.
"""

import os
import platform
import re
import signal
from pathlib import Path

import pytest
from running import Lab, ended
from trouble import Runs, complaint, process_ids

from skyrl_kernel.run.checkpoint import verify

pytest.importorskip("ray")
pytestmark = pytest.mark.slow

POLICY, CRITIC = (f"trainer.placement.{role}_num_gpus_per_node" for role in ("policy", "critic"))
STEPS_PER_EPOCH = 2
"""8 prompts, 4 a step."""


@pytest.fixture(scope="module")
def runs(random_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Two ranks of the policy."""
    lab = Lab(random_model, tmp_path_factory.mktemp("lab"))
    values = {"trainer.epochs": 3, POLICY: 2}
    return Runs(lab, tmp_path_factory.mktemp("site"), "grpo", values)


@pytest.mark.timeout(1800)
def test_whatever_happens_to_a_process_is_told_and_the_same_command_loses_nothing(
    runs: Runs,
) -> None:
    runs.whole("undisturbed")

    line = complaint(runs.after("raises"))
    assert re.search(
        r"plugin 'trouble' \(skyrl-trouble [\d.]+\) failed in hook 'loss', step 1, process trainer rank 1 "
        r"on \S+: RuntimeError: .*no such luck",
        line,
    )

    done = runs.after("dies", step=2)
    line = complaint(done)
    assert "trainer rank 1 on " in line
    assert "has died: its process ended without a word to Ray, as after kill -9" in line
    assert "The last it printed: 'these are my last words'" in line
    assert "the same command goes on after step 1" in done.err

    line = complaint(runs.after("hangs", rank=0, step=2))
    assert "trainer rank 0 on " in line
    assert "does not answer: it hangs" in line

    done = runs.after("has no disk")
    assert "trainer rank 1 on " in complaint(done)
    assert "File too large" in complaint(done)
    assert "the same command goes on after step 2" in done.err

    process = runs.start()
    runs.wait_for_step(process)
    os.kill(process_ids(runs.lab.at().path)["engine 0"], signal.SIGKILL)
    done = ended(process)
    assert done.code == 1
    assert "engine 0 on " in complaint(done)
    assert "has died" in complaint(done)
    runs.check_nothing_is_left()

    assert f"finished at step {3 * STEPS_PER_EPOCH}" in runs.whole().out
    assert runs.steps() == runs.steps("undisturbed")


@pytest.fixture
def with_critic(random_model: Path, tmp_path: Path) -> Runs:
    """A rank of the policy, and two of a critic."""
    values = {
        "trainer.epochs": 2,
        "trainer.critic.model.path": str(random_model),
        "trainer.critic.optimizer_config.lr": 0.01,
        CRITIC: 2,
    }
    folders = {name: tmp_path / name for name in ("lab", "site")}
    for folder in folders.values():
        folder.mkdir()
    return Runs(Lab(random_model, folders["lab"]), folders["site"], "ppo", values)


@pytest.mark.timeout(900)
def test_a_critic_that_dies_is_told_and_no_checkpoint_mixes_its_steps_with_the_policys(
    with_critic: Runs,
) -> None:
    runs, checkpoints = with_critic, with_critic.lab.at().checkpoints
    runs.whole("undisturbed")

    def check_told(line: str, rank: int) -> None:
        assert f"critic rank {rank} on {platform.node()}" in line
        assert "has died: its process ended without a word to Ray, as after kill -9" in line
        assert "The last it printed: 'these are my last words'" in line

    def check_step_1_is_the_newest_and_whole() -> None:
        assert [path.name for path in checkpoints.iterdir()] == ["global_step_1"]
        assert verify(checkpoints / "global_step_1") is None

    done = runs.after("dies", role="critic", step=2)
    check_told(complaint(done), 1)
    assert "the same command goes on after step 1" in done.err
    check_step_1_is_the_newest_and_whole()

    done = runs.after("dies in its checkpoint", role="critic", rank=0)
    check_told(complaint(done), 0)  # when the policy's files of step 2 were there
    assert "the same command goes on after step 1" in done.err
    check_step_1_is_the_newest_and_whole()

    # What the same command had done until then is what it would have done anyway …
    assert runs.steps() == runs.steps("undisturbed")[:2]
    # … and other ranks can go on with it, up to the order of sums.
    assert f"finished at step {2 * STEPS_PER_EPOCH}" in runs.whole(**{POLICY: 2, CRITIC: 1}).out
    for mine, theirs in zip(runs.steps(), runs.steps("undisturbed"), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-4)


@pytest.mark.timeout(400)
def test_a_ray_that_ends_under_a_run_is_told_in_a_line(runs: Runs) -> None:
    process = runs.start("without_ray")
    runs.wait_for_step(process, "without_ray")
    os.kill(raylet_of(process.pid), signal.SIGKILL)
    done = ended(process)
    assert done.code == 1
    assert "Traceback" not in done.out + done.err
    assert "the raylet" in complaint(done)
    runs.check_nothing_is_left()


def raylet_of(pid: int) -> int:
    """The process of Ray's that manages this machine, of the Ray that the command has started."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    names = {int(child): Path(f"/proc/{child}/comm").read_text() for child in children}
    (found,) = [child for child, name in names.items() if name.startswith("raylet")]
    return found
