"""The loss on held-out rows."""

import math

import numpy as np
import pytest

from skyrl_kernel.records import Prompt, Scored, Scores, Segment, StopReason, Trajectory
from skyrl_sft.plugin import evaluate, held_out_loss


def scored(*rows: list[float]) -> Scored:
    """A trajectory whose rows have a prompt of one token, and these log-probs."""
    segments = tuple(
        Segment(
            tokens=np.arange(len(row) + 1, dtype=np.int32),
            num_prompt_tokens=1,
            loss_mask=np.arange(len(row) + 1) > 0,
        )
        for row in rows
    )
    return Scored(
        trajectory=Trajectory(
            prompt=Prompt(uid="0:0", messages=[], env_class="none"),
            sample=0,
            segments=segments,
            turns=(),
            stop_reason=StopReason.STOP,
        ),
        scores=tuple(
            Scores(old_logprobs=np.array([-99.0, *row], dtype=np.float32)) for row in rows
        ),
    )


def test_the_loss_is_the_mean_over_all_learned_tokens_whatever_their_row() -> None:
    # (1 + 2 + 3 + 6) / 4 = 3; the prompt's token does not count
    found = held_out_loss([scored([-1.0, -2.0, -3.0]), scored([-6.0])])
    assert found == {
        "loss": pytest.approx(3.0),
        "perplexity": pytest.approx(math.exp(3.0)),
        "num_tokens": 4.0,
        "num_trajectories": 2.0,
    }
    assert held_out_loss([scored([-1.0, -2.0], [-3.0]), scored([-6.0])]) == found


def test_a_hopeless_loss_has_a_finite_perplexity_and_nothing_has_none() -> None:
    assert math.isfinite(held_out_loss([scored([-5000.0])])["perplexity"])
    assert held_out_loss([]) == {}


def test_the_stage_asks_for_the_policy_s_log_probs() -> None:
    stage = evaluate("sft")
    assert stage is not None
    assert stage.needs == {"old_logprobs"}
    assert evaluate("accuracy") is None
