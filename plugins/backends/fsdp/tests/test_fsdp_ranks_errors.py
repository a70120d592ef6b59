"""What one rank finds wrong is raised on all, with the rank; a rank that is gone or hangs is named."""

import os
import resource
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from skyrl_fsdp.ranks import Ranks, join
from skyrl_fsdp.trainer import FsdpTrainer
from skyrl_kernel.config.trainer import TrainerConfig
from skyrl_kernel.errors import ConfigError, NonFiniteError, RankError, is_disk_full
from skyrl_kernel.logs import logging_to
from skyrl_kernel.protocols import Loss
from skyrl_kernel.records import Scores, TrainingSample, UpdateResult
from skyrl_kernel.testing.ranks import RankEnded, RankPool, RanksFailed, on_ranks
from skyrl_kernel.testing.samples import policy_gradient
from skyrl_kernel.torch import LossInputs, LossTerms

SAMPLE = TrainingSample(
    trajectory_id="prompt/3",
    group=0,
    trajectory=0,
    tokens=np.arange(5, 11, dtype=np.int32),
    loss_mask=np.arange(6) > 2,
    advantages=np.ones(6, np.float32),
    returns=None,
    sampler_logprobs=None,
    scores=Scores(),
    loss_weights={"policy": np.full(6, 0.1, np.float32)},
)


def trainer(model: Path, *, timeout_s: float = 60, **sharding: object) -> FsdpTrainer:
    torch.set_num_threads(1)
    config = TrainerConfig(
        bf16=False,
        gradient_checkpointing=False,
        policy={"optimizer_config": {"lr": 1e-3}, "fsdp_config": sharding},
    )
    return FsdpTrainer({"policy": model}, config, device="cpu", timeout_s=timeout_s)


def updated(one: FsdpTrainer, sample: TrainingSample) -> UpdateResult:
    return one.update([sample], Loss(fn=policy_gradient), temperature=1.0)


def update_with_nan_on_rank_1(model: Path, logs: Path) -> tuple[str, bool, bool]:
    """What a user is told, whether the weights are as before, and whether the trainer goes on."""
    one = trainer(model)
    before = {name: tensor.clone() for name, tensor in one.weights()}
    bad = replace(SAMPLE, trajectory_id="bad/7", advantages=np.full(6, np.nan, np.float32))
    try:
        with logging_to(logs / str(one.share)):
            updated(one, bad if one.share == 1 else SAMPLE)
    except NonFiniteError as error:
        told = "\n".join([str(error), *getattr(error, "__notes__", ())])
    same = all(torch.equal(before[name], tensor) for name, tensor in one.weights())
    goes_on = updated(one, SAMPLE).weights_changed
    one.close()
    return told, same, goes_on


def test_nan_on_one_rank_stops_all_before_the_step_and_names_rank_and_trajectory(
    llama: Path, tmp_path: Path
) -> None:
    for told, same, goes_on in on_ranks(2, update_with_nan_on_rank_1, llama, tmp_path):
        assert told.startswith("rank 1 of 2: the loss terms 'policy' of 3 tokens are NaN")
        assert "bad/7" in told
        assert "\n" not in told
        assert same
        assert goes_on
    logged = [(tmp_path / rank / "log.jsonl").read_text() for rank in ("0", "1")]
    assert ["Traceback" in text for text in logged] == [False, True]


def score_a_bad_row_on_rank_0(model: Path) -> None:
    one = trainer(model)
    rows = [np.array([5, 999], np.int32)] if one.share == 0 else []
    try:
        one.score("policy", rows, temperature=1.0)
    finally:
        one.close()


def test_a_bad_row_on_one_rank_is_refused_on_all(llama: Path) -> None:
    with pytest.raises(RanksFailed) as failed:
        on_ranks(2, score_a_bad_row_on_rank_0, llama)
    for error in failed.value.outcomes:
        assert isinstance(error, ValueError)
        assert str(error).startswith("rank 0 of 2: row 0 has ids from 5 to 999, and the model's")


def save_where_rank_1_has_no_room(model: Path, folder: Path) -> tuple[bool, str, bool]:
    """Whether the error is one of a full disk, what it says, and whether the trainer goes on."""
    one = trainer(model)
    updated(one, SAMPLE)
    room = resource.getrlimit(resource.RLIMIT_FSIZE)
    if one.share == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, room[1]))
    try:
        one.save(folder)
    except Exception as error:
        found = is_disk_full(error), str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, room)
    goes_on = updated(one, SAMPLE).weights_changed
    one.close()
    return *found, goes_on


def test_a_full_disk_on_one_rank_is_raised_on_all(llama: Path, tmp_path: Path) -> None:
    for full, told, goes_on in on_ranks(2, save_where_rank_1_has_no_room, llama, tmp_path):
        assert full
        assert "rank 1 of 2" in told
        assert goes_on


class Dying:
    """A loss that ends its process, or hangs, on one rank, in the middle of an update."""

    def __init__(self, rank: int, how: str) -> None:
        self.here = os.environ["RANK"] == str(rank)
        self.how = how

    def __call__(self, inputs: LossInputs) -> LossTerms:
        if self.here and self.how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.here and self.how == "hangs":
            time.sleep(30)
        return policy_gradient(inputs)


def update_that_rank_2_does_not_survive(model: Path, how: str) -> tuple[float, str]:
    """Seconds until the others know, and what they say."""
    one = trainer(model, timeout_s=3)
    begun = time.monotonic()
    told = ""
    try:
        one.update([SAMPLE], Loss(fn=Dying(2, how)), temperature=1.0)
    except RankError as error:
        told = str(error)
    one.close()
    return time.monotonic() - begun, told


@pytest.mark.parametrize("how", ["killed", pytest.param("hangs", marks=pytest.mark.slow)])
def test_a_rank_that_is_killed_or_hangs_is_named_by_the_others_within_the_deadline(
    llama: Path, how: str
) -> None:
    with pytest.raises(RanksFailed) as failed:
        on_ranks(3, update_that_rank_2_does_not_survive, llama, how, deadline_s=20)
    first, second, lost = failed.value.outcomes
    assert isinstance(lost, RankEnded)
    for seconds, told in (first, second):
        assert told.startswith("rank 2 of 3 does not answer: its process has ended")
        assert (
            0 < seconds < 3 + 5 + 2
        )  # the deadline, the wait for last words, and some for a busy machine


def fail_inside_a_layer_on_rank_1(model: Path) -> None:
    """As memory that runs out does: between two collectives, where no rank asks the others."""
    one = trainer(model, timeout_s=3)
    if one.share == 1:

        def run_out(*_: object) -> None:
            raise MemoryError("17 GiB for the attention of row 4")

        one.module().model.layers[0].register_forward_pre_hook(run_out)
    try:
        one.score("policy", [SAMPLE.tokens], temperature=1.0)
    finally:
        one.close()


def test_an_error_between_two_collectives_reaches_the_others_with_their_deadline(
    llama: Path,
) -> None:
    with pytest.raises(RanksFailed) as failed:
        on_ranks(2, fail_inside_a_layer_on_rank_1, llama)
    other, own = failed.value.outcomes
    assert isinstance(own, MemoryError)
    assert isinstance(other, RankError)
    assert str(other) == "rank 1 of 2 failed: MemoryError: 17 GiB for the attention of row 4"


def join_where_nobody_comes() -> None:
    os.environ["WORLD_SIZE"] = "2"
    join("cpu", timeout_s=1)


def test_a_rank_that_waits_for_the_others_in_vain_says_so() -> None:
    pool = (
        RankPool()
    )  # torch counts the groups that it failed to make: its process is of no more use
    with pytest.raises(RanksFailed, match=r"rank 0 of 2 waited 1 s for the others at 127\.0\.0\.1"):
        pool.run(1, join_where_nobody_comes)
    pool.close()


def ask_for_sizes_that_do_not_divide(model: Path) -> None:
    trainer(model, fsdp_size=3)


def test_a_size_that_does_not_divide_the_ranks_is_refused_with_the_numbers(llama: Path) -> None:
    with pytest.raises(RanksFailed, match="fsdp_size=3 does not divide the 2 ranks") as failed:
        on_ranks(2, ask_for_sizes_that_do_not_divide, llama)
    assert all(isinstance(one, ConfigError) for one in failed.value.outcomes)


def agree_on_what_cannot_be_pickled() -> None:
    ranks = join("cpu", timeout_s=10)

    class Local(Exception):
        pass

    def raise_on_rank_1() -> None:
        if ranks.rank == 1:
            raise Local("lambda and all")

    try:
        ranks.agree(raise_on_rank_1)
    finally:
        ranks.close()


def test_an_error_that_cannot_be_pickled_is_told_in_words() -> None:
    with pytest.raises(RanksFailed, match="rank 1 of 2: Local: lambda and all"):
        on_ranks(2, agree_on_what_cannot_be_pickled)


def test_one_process_asks_nobody() -> None:
    alone = Ranks(torch.device("cpu"))
    assert alone.gather(5) == alone.of_shares(5) == [5]
    assert alone.most(3) == 3
    with pytest.raises(KeyError):
        alone.agree(lambda: {}["x"])
    alone.close()
