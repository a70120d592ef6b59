"""DAPO by its name alone: what it sets, and what a run of it does."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from skyrl_dapo import overlong
from skyrl_kernel.config import GeneratorConfig
from skyrl_kernel.errors import ConfigError, RunError
from skyrl_kernel.plan import make_plan
from skyrl_kernel.run import RunFolder
from skyrl_kernel.testing.scripted import Ask, Script, installed, read_metrics, run_scripted

FAKES = (  # on which the presets of fakes and DAPO differ
    "trainer.algorithm.advantage_estimator=scripted",
    "trainer.algorithm.policy_loss_type=scripted",
    "data.val_data=[]",
)


@pytest.fixture(autouse=True)
def fakes(tmp_path: Path) -> Iterator[None]:
    with installed(tmp_path / "site"):
        yield


def test_the_name_alone_is_the_paper_s_setting() -> None:
    plan = make_plan(["demo", "dapo"])
    algorithm, generator = plan.tree.trainer.algorithm, plan.tree.generator
    assert (algorithm.eps_clip_low, algorithm.eps_clip_high) == (0.2, 0.28)
    assert (algorithm.loss_reduction, algorithm.use_kl_loss) == ("token_mean", False)
    assert (algorithm.advantage_estimator, algorithm.policy_loss_type) == ("grpo", "regular")
    assert generator.apply_overlong_filtering
    assert plan.stages["select"].provider.name == "filter"
    assert [entry.name for entry in plan.stages["reward"].wrappers] == ["overlong_penalty"]
    assert [entry.name for entry in plan.stages["generate"].wrappers] == ["overlong_filtering"]


def test_a_buffer_longer_than_the_limit_is_refused() -> None:
    words = ["trainer.algorithm.overlong_buffer_len=512"]
    with pytest.raises(ConfigError, match=r"=512 is more than .*max_generate_length=48; lower it"):
        make_plan(["demo"], overrides=words)


@pytest.mark.parametrize("words", [[], ["trainer.algorithm.overlong_buffer_len=0"]])
def test_without_a_buffer_nothing_is_punished(words: list[str]) -> None:
    plan = make_plan(["demo", "overlong_penalty"] if words else ["demo"], overrides=words)
    inner = plan.stages["reward"].value
    assert plan.config[GeneratorConfig].sampling_params.max_generate_length == 48
    assert getattr(inner, "__qualname__", "") != overlong.with_penalty.__qualname__
    assert not [entry for entry in plan.entries if entry.name == "overlong_penalty"] or words


def test_data_that_cannot_fill_a_batch_ends_the_run_with_what_was_dropped(tmp_path: Path) -> None:
    words = [*FAKES, "trainer.algorithm.dynamic_sampling.max_sample_batches=3"]
    same = Script(reply=lambda ask: "no")
    with pytest.raises(RunError) as caught:
        run_scripted(tmp_path, *words, script=same, plugins=["dapo"])
    assert str(caught.value) == (
        "step 1: 3 rounds of generation left 0 of 2 groups to train on "
        "(6 dropped: all rewards equal); use other data, or raise "
        "trainer.algorithm.dynamic_sampling.max_sample_batches"
    )


def test_answers_that_are_all_cut_off_say_so_too(tmp_path: Path) -> None:
    words = [*FAKES, "trainer.algorithm.dynamic_sampling.max_sample_batches=2"]
    endless = Script(reply=lambda ask: "x" * 99)
    with pytest.raises(RunError, match=r"4 dropped: no token to train on"):
        run_scripted(tmp_path, *words, script=endless, plugins=["dapo"])


def mixed(ask: Ask) -> str:
    """By turns a group that is all 0, and one that is both; a group has two answers."""
    return "0" if ask.number % 4 < 2 else str(ask.number % 2)


def outcomes(folder: Path, step: int) -> dict[int, list[float]]:
    """Place in the file → rewards, group by group."""
    rows = RunFolder(folder).read_trajectories(step)
    return {place: [row["reward"] for row in rows[place : place + 2]] for place in (0, 2)}


def test_a_batch_is_filled_with_groups_that_differ(tmp_path: Path) -> None:
    words = [*FAKES, "trainer.max_training_steps=2"]
    result = run_scripted(
        tmp_path, *words, script=Script(reply=mixed, lockstep=True), plugins=["dapo"]
    )
    assert all(line["generate/groups_dropped"] == 2 for line in read_metrics(result))
    for step in (1, 2):
        assert all(len(set(rewards)) == 2 for rewards in outcomes(result.folder, step).values())


@pytest.mark.parametrize("filters", [False, True])
def test_a_group_that_stands_in_is_trained_on_twice(tmp_path: Path, filters: bool) -> None:
    """The zero-variance filter leaves it at that."""
    words = [
        *FAKES,
        "trainer.max_training_steps=2",
        f"trainer.algorithm.zero_variance_filter={str(filters).lower()}",
    ]
    script = Script(reply=mixed, lockstep=True)
    result = run_scripted(tmp_path, *words, script=script, plugins=["replace"])
    for step in (1, 2):
        rows = RunFolder(result.folder).read_trajectories(step)
        assert len(rows) == 4
        assert len({row["uid"] for row in rows}) == 1
    # no more was generated than two batches of two groups of two answers
    assert sum(event.startswith("ask") for event in script.events) == 8
