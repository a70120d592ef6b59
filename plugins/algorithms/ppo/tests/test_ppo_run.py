"""PPO in the whole loop, on the kernel's fakes: a trainer whose critic is one number."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from skyrl_kernel.errors import CapabilityError
from skyrl_kernel.plugins import discover
from skyrl_kernel.plugins.capabilities import check_capabilities
from skyrl_kernel.runner import RunResult
from skyrl_kernel.testing.scripted import Script, installed, read_metrics, run_scripted

GAE = "trainer.algorithm.advantage_estimator=gae"


def critic_lines(result: RunResult) -> list[dict[str, float]]:
    """What each step says of the critic."""
    return [
        {name: value for name, value in line.items() if name.startswith("critic/")}
        for line in read_metrics(result)
        if line["step"] > 0
    ]


@pytest.fixture(autouse=True)
def _site(tmp_path: Path) -> Iterator[None]:
    with installed(tmp_path / "site"):
        yield


def test_the_critic_is_asked_for_values_and_moves_towards_the_returns(tmp_path: Path) -> None:
    script = Script(reply=lambda ask: "1", rate=0.5)
    lines = critic_lines(run_scripted(tmp_path, GAE, script=script))
    assert ("value", 4) in script.trainer.scored
    losses = [line["critic/critic_loss"] for line in lines]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]
    assert lines[0]["critic/old_values_mean"] == 0
    assert lines[-1]["critic/returns_mean"] > lines[-1]["critic/old_values_mean"] > 0


def test_without_gae_no_critic_is_there(tmp_path: Path) -> None:
    script = Script()
    lines = critic_lines(run_scripted(tmp_path, script=script))
    assert "value" not in {role for role, _ in script.trainer.scored}
    assert not any(lines)


def test_a_run_that_goes_on_is_one_that_never_stopped(tmp_path: Path) -> None:
    straight = run_scripted(tmp_path / "a", GAE, "trainer.epochs=2", script=Script(rate=0.5))
    run_scripted(tmp_path / "b", GAE, "trainer.epochs=1", script=Script(rate=0.5))
    resumed = run_scripted(tmp_path / "b", GAE, "trainer.epochs=2", script=Script(rate=0.5))
    assert critic_lines(resumed) == critic_lines(straight)


def test_a_trainer_without_a_critic_is_refused_with_one_that_has_it() -> None:
    entries = [entry for entry in discover() if entry.name == "gae"]
    with pytest.raises(
        CapabilityError, match=r"gae.* needs 'trains_values'.*--plugin backend/fsdp"
    ):
        check_capabilities(entries, discover(), {})
