"""What a teacher's opinion is worth, by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skyrl_distillation.advantage import advantage, distillation, measure
from skyrl_distillation.no_op import no_op
from skyrl_kernel.batch import credit
from skyrl_kernel.errors import NonFiniteError
from skyrl_kernel.protocols import Advantage
from skyrl_kernel.records import (
    Prompt,
    Reward,
    Scored,
    Scores,
    Segment,
    StopReason,
    Trajectory,
    Turn,
)


def scored(
    policy: list[float], teacher: list[float], mask: list[int], *, reward: float = 0.0
) -> Scored:
    """One row of one turn, whose log-probs are given at every place."""
    trained = np.array(mask, dtype=np.bool_)
    segment = Segment(
        tokens=np.arange(len(mask), dtype=np.int32), num_prompt_tokens=1, loss_mask=trained
    )
    return Scored(
        trajectory=Trajectory(
            prompt=Prompt(uid="0:0", messages=[], env_class="any"),
            sample=0,
            segments=(segment,),
            turns=(Turn(segment=0, start=1, stop=len(mask), reward=reward, action=""),),
            stop_reason=StopReason.STOP,
            reward=Reward(turns=(reward,)),
        ),
        scores=(
            Scores(
                old_logprobs=np.array(policy, dtype=np.float32),
                teacher_logprobs=np.array(teacher, dtype=np.float32),
            ),
        ),
    )


HALF, QUARTER, SURE = math.log(0.5), math.log(0.25), 0.0
ONE = scored([9.0, HALF, HALF, QUARTER, HALF], [-9.0, QUARTER, SURE, QUARTER, 7.0], [0, 1, 1, 1, 0])
"""Tokens that the teacher finds half as likely, twice as likely, and as likely."""


def test_a_token_is_credited_with_how_much_likelier_the_teacher_finds_it() -> None:
    (((entry,),),) = distillation([[ONE]])
    assert entry.advantages.tolist() == pytest.approx([0, -math.log(2), math.log(2), 0, 0])
    assert entry.advantages.dtype == np.float32
    assert entry.loss_mask.tolist() == [False, True, True, True, False]


def test_rewards_are_not_learned_from() -> None:
    other = scored([HALF] * 3, [QUARTER] * 3, [0, 1, 1], reward=5.0)
    same = scored([HALF] * 3, [QUARTER] * 3, [0, 1, 1])
    (((paid,), (unpaid,)),) = distillation([[other, same]])
    assert paid.advantages.tolist() == unpaid.advantages.tolist()


def test_the_kl_is_the_mean_over_trained_tokens() -> None:
    other = scored([0.0, 0.0], [0.0, -3.0], [0, 1])
    credited = credit(Advantage(fn=distillation), [[ONE, other]], masked=())
    # (ln 2 − ln 2 + 0 + 3) / 4
    assert measure(credited) == {
        "loss/teacher_kl": pytest.approx(0.75),
        "loss/teacher_kl_max": pytest.approx(3.0),
    }
    assert measure(credit(Advantage(fn=distillation), [[ONE]], masked={0})) == {}
    assert measure([]) == {}


def test_the_expected_gradient_is_that_of_the_reverse_kl() -> None:
    """Over all tokens that could have been sampled, the loss's gradient is that of KL(π ‖ teacher)."""
    from skyrl_policy_losses.importance_sampling import importance_sampling_loss

    logits = torch.tensor([0.3, -1.2, 0.8], dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64).log()
    now = logits.log_softmax(-1)
    old = now.detach()
    loss = importance_sampling_loss((now - old).exp(), teacher - old)
    (expected,) = torch.autograd.grad((old.exp() * loss).sum(), logits)
    now = logits.log_softmax(-1)
    (exact,) = torch.autograd.grad((now.exp() * (now - teacher)).sum(), logits)
    torch.testing.assert_close(expected, exact)


@given(st.lists(st.floats(-50, 0, width=32), min_size=1, max_size=8), st.floats(-5, 5))
@settings(max_examples=50, deadline=None)
def test_a_teacher_that_agrees_teaches_nothing(logprobs: list[float], paid: float) -> None:
    mask = [0] + [1] * (len(logprobs) - 1)
    (((entry,),),) = distillation([[scored(logprobs, logprobs, mask, reward=paid)]])
    assert not entry.advantages.any()


def test_an_infinite_log_prob_of_the_teacher_is_refused_by_name() -> None:
    bad = scored([0.0, -1.0], [0.0, -math.inf], [0, 1])
    with pytest.raises(NonFiniteError, match=r"trajectory 0:0/0: advantages"):
        credit(Advantage(fn=distillation), [[bad]], masked=())


def test_the_stage_asks_for_the_policy_s_and_the_teacher_s_log_probs() -> None:
    stage = advantage("distillation")
    assert stage is not None
    assert stage.needs == {"old_logprobs", "teacher_logprobs"}
    assert advantage("grpo") is None


def test_without_an_estimator_a_token_has_what_it_earned() -> None:
    one = scored([0.0] * 4, [0.0] * 4, [0, 1, 1, 1], reward=2.0)
    penalised = Scored(
        trajectory=one.trajectory,
        scores=one.scores,
        token_rewards=(np.array([9, -0.5, 0, -0.25], dtype=np.float32),),
    )
    (((entry,),),) = no_op([[penalised]])
    assert entry.advantages.tolist() == [0, -0.5, 0, 1.75]
    assert entry.returns is not None
    assert entry.returns.tolist() == entry.advantages.tolist()
