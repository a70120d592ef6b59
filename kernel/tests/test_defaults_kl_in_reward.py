"""KL in the reward: what tokens pay, how the coefficient moves, and that a run remembers it."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyrl_kernel.config import AlgorithmConfig
from skyrl_kernel.config.algorithm import KLControllerConfig
from skyrl_kernel.defaults import kl_in_reward
from skyrl_kernel.defaults.kl_in_reward import KLController, with_kl
from skyrl_kernel.plan import make_plan
from skyrl_kernel.plugins import discover
from skyrl_kernel.protocols import Advantage, CreditedGroup
from skyrl_kernel.records import (
    Prompt,
    Reward,
    Scored,
    Scores,
    Segment,
    StopReason,
    TokenAdvantages,
    Trajectory,
    Turn,
)
from skyrl_kernel.score_metrics import kl_metrics
from skyrl_kernel.slots import PLUGINS
from skyrl_kernel.testing.distributions import make_distribution
from skyrl_kernel.testing.scripted import installed, read_metrics, run_scripted


def scored(
    old: Sequence[float], reference: Sequence[float], mask: Sequence[int], reward: float = 1.0
) -> Scored:
    """A trajectory of one turn and one row."""
    segment = Segment(
        tokens=np.zeros(len(mask), np.int32),
        num_prompt_tokens=0,
        loss_mask=np.array(mask, dtype=bool),
    )
    scores = Scores(
        old_logprobs=np.array(old, np.float32), ref_logprobs=np.array(reference, np.float32)
    )
    return Scored(
        trajectory=Trajectory(
            prompt=Prompt(uid="p", messages=(), env_class="e"),
            sample=0,
            segments=(segment,),
            turns=(Turn(segment=0, start=0, stop=len(mask), reward=reward, action=""),),
            stop_reason=StopReason.STOP,
            reward=Reward(turns=(reward,)),
        ),
        scores=(scores,),
    )


def by_token(groups: Sequence[Sequence[Scored]]) -> list[list[tuple[TokenAdvantages, ...]]]:
    """Credits each token with what it earned itself."""
    return [
        [
            tuple(
                TokenAdvantages(advantages=rewards, loss_mask=segment.loss_mask)
                for rewards, segment in zip(
                    one.rewards_by_token(), one.trajectory.segments, strict=True
                )
            )
            for one in group
        ]
        for group in groups
    ]


def controller(coefficient: float, kind: str = "fixed", **config: float) -> KLController:
    return KLController(coefficient, KLControllerConfig.model_validate({"type": kind, **config}))


INNER = Advantage(fn=by_token, measure=lambda groups: {"loss/inner": 1.0})

# --- what a token pays ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("estimator", "kl"),
    [
        ("k1", 0.1),  # log-prob -0.2 less -0.3
        ("abs", 0.1),
        ("k2", 0.005),  # 0.1² / 2
        ("k3", 0.00483742),  # e^-0.1 + 0.1 - 1
    ],
)
def test_each_trained_token_pays_its_kl(estimator: str, kl: float) -> None:
    one = scored([-0.2, -0.3, -0.5], [-0.3, -0.4, -0.9], [1, 1, 0])
    stage = with_kl(INNER, estimator, controller(0.5))
    ((entry,),) = stage([[one]])[0]
    # the reward stands on the turn's last token, which pays nothing: it is masked
    assert entry.advantages.tolist() == pytest.approx([-0.5 * kl, -0.5 * kl, 1.0], abs=1e-7)


def test_the_total_is_what_is_left() -> None:
    seen: list[float] = []

    def outcome(groups: Sequence[Sequence[Scored]]) -> list[list[tuple[TokenAdvantages, ...]]]:
        seen.extend(one.total_reward for group in groups for one in group)
        return by_token(groups)

    one = scored([-0.2, -0.3, 0.0], [-0.3, -0.4, -9.0], [1, 1, 0])
    with_kl(Advantage(fn=outcome), "k1", controller(0.5))([[one]])
    assert seen == pytest.approx([1 - 0.5 * (0.1 + 0.1)])
    assert one.total_reward == 1  # what came in is as it was


def test_penalties_of_several_plugins_add_up() -> None:
    one = scored([-0.2], [-0.3], [1])
    stage = with_kl(with_kl(INNER, "k1", controller(1.0)), "k1", controller(2.0))
    ((entry,),) = stage([[one]])[0]
    assert entry.advantages.tolist() == pytest.approx([1 - 0.1 - 0.2])


def test_it_asks_for_both_log_probs_and_reports_its_coefficient() -> None:
    stage = with_kl(INNER, "k3", controller(0.25))
    assert stage.needs == {"old_logprobs", "ref_logprobs"}
    stage([[scored([-1], [-1], [1])]])
    assert stage.measure([]) == {"loss/inner": 1.0, "loss/kl_loss_coef": 0.25}


def test_the_kl_that_a_run_reports_is_skyrl_s() -> None:
    """SkyRL's case: probabilities of policy and reference, k1."""
    policy = np.log([[0.1, 0.3, 0.2, 0.2, 0.2], [0.3, 0.3, 0.2, 0.1, 0.1]])
    base = np.log([[0.1, 0.2, 0.3, 0.2, 0.2], [0.25, 0.25, 0.25, 0.15, 0.1]])
    masks = [[1, 1, 0, 0, 0], [1, 1, 1, 0, 0]]
    rows = [scored(*row) for row in zip(policy.tolist(), base.tolist(), masks, strict=True)]
    credited: CreditedGroup = list(zip(rows, by_token([rows])[0], strict=True))
    got = kl_metrics([credited], "k1")
    # ln 1.5 / 2 = 0.2027 and (2 ln 1.2 - ln 1.25) / 3 = 0.0472; |·| at most 0.4055 and 0.2231
    assert got["loss/avg_kl"] == pytest.approx(0.1249, abs=1e-4)
    assert got["loss/avg_kl_max"] == pytest.approx(0.3143, abs=1e-4)


@pytest.mark.parametrize("far", [1e4, -1e4])
def test_extremes_stay_finite_where_the_estimate_is_bounded(far: float) -> None:
    one = scored([far], [0.0], [1])
    ((entry,),) = with_kl(INNER, "k3", controller(1.0))([[one]])[0]
    assert np.isfinite(entry.advantages).all()
    assert abs(entry.advantages[0]) <= 11


def test_a_batch_without_trained_tokens_moves_nothing() -> None:
    moving = controller(0.2, "adaptive")
    stage = with_kl(INNER, "k1", moving)
    assert stage([]) == []
    stage([[scored([-1], [-2], [0])], []])
    assert moving.coefficient == 0.2


# --- the coefficient ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kl", "count", "expected"),
    [
        (0.2, 10, 0.204),  # twice the target counts as 0.2 too much: 0.2 · (1 + 0.2 · 10 / 100)
        (0.1, 10, 0.2),  # at the target
        (0.11, 10, 0.202),  # a tenth too much: 0.2 · (1 + 0.1 · 0.1)
        (0.0, 10, 0.196),  # 0.2 too little at most
        (0.2, 1000, 0.6),  # 0.2 · (1 + 2)
        (0.0, 1000, 0.0),  # and never below 0, where KL would be paid for
    ],
)
def test_an_adaptive_coefficient_follows_the_target(kl: float, count: int, expected: float) -> None:
    moving = controller(0.2, "adaptive", kl_target=0.1, horizon=100)
    moving.update(kl, count)
    assert moving.coefficient == pytest.approx(expected)


def test_a_fixed_coefficient_stays() -> None:
    fixed = controller(0.1)
    fixed.update(5.0, 10)
    assert fixed.coefficient == 0.1


def test_a_step_is_credited_with_the_coefficient_that_it_began_with() -> None:
    moving = controller(0.2, "adaptive", kl_target=0.1, horizon=100)
    stage = with_kl(INNER, "k1", moving)
    group = [scored([-0.2], [-0.4], [1]) for _ in range(10)]  # KL 0.2
    assert [row[0].advantages.tolist() for row in stage([group])[0]] == [
        pytest.approx([1 - 0.2 * 0.2])
    ] * 10
    assert stage.measure([])["loss/kl_loss_coef"] == 0.2
    assert moving.coefficient == pytest.approx(0.204)  # each trajectory counts: 10 / 100


def test_the_kl_that_moves_it_is_the_mean_over_trajectories_of_their_means() -> None:
    # 0.3 twice, and 0: 0.15, half as much again as the target; by tokens it would be 0.2
    moving = controller(0.2, "adaptive", kl_target=0.125, horizon=100)
    long, short = scored([-0.2, -0.2], [-0.5, -0.5], [1, 1]), scored([-1], [-1], [1])
    with_kl(INNER, "k1", moving)([[long, short]])
    assert moving.coefficient == pytest.approx(0.2 * (1 + 0.2 * 2 / 100))  # 0.15 / 0.125 - 1 = 0.2
    moving = controller(0.2, "adaptive", kl_target=0.14, horizon=100)
    with_kl(INNER, "k1", moving)([[long, short]])
    assert moving.coefficient == pytest.approx(0.2 * (1 + (0.15 / 0.14 - 1) * 2 / 100))


@given(st.lists(st.floats(0, 10), max_size=20))
def test_the_coefficient_is_never_negative(kls: list[float]) -> None:
    moving = controller(0.2, "adaptive", horizon=1)
    for kl in kls:
        moving.update(kl, 4)
        assert moving.coefficient >= 0


def test_state_comes_back_where_it_moves() -> None:
    saved = json.loads(json.dumps(controller(0.7, "adaptive").state_dict()))
    again = controller(0.2, "adaptive")
    again.load_state_dict(saved)
    assert again.coefficient == 0.7
    fixed = controller(0.2)  # what the config says now counts
    fixed.load_state_dict(saved)
    assert fixed.coefficient == 0.2


# --- in a run -----------------------------------------------------------------------------

STOPS = """
from skyrl_kernel.errors import StopRun
from skyrl_kernel.hookspecs import hookimpl

@hookimpl
def on_step_end(step):
    if step.step == 2:
        raise StopRun("for now")
"""

ADAPTIVE = (
    "data.val_data=[]",
    "trainer.algorithm.use_kl_in_reward=true",
    "trainer.algorithm.kl_loss_coef=0.5",
    "trainer.algorithm.kl_ctrl.type=adaptive",
    "trainer.algorithm.kl_ctrl.horizon=40",
)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Path]:
    with installed(tmp_path / "site") as folder:
        make_distribution(
            folder,
            "skyrl-stops",
            modules={"skyrl_stops": STOPS},
            entry_points={PLUGINS: {"stops": "skyrl_stops"}},
        )
        discover(refresh=True)
        yield folder


@pytest.mark.usefixtures("site")
def test_the_coefficient_goes_on_after_a_resume(tmp_path: Path) -> None:
    for _ in range(2):
        result = run_scripted(tmp_path / "one", *ADAPTIVE, plugins=["stops"])
    interrupted = read_metrics(result)
    straight = read_metrics(run_scripted(tmp_path / "two", *ADAPTIVE))
    # a KL near 0 counts as 0.2 below the target: × (1 - 0.2 · 4 trajectories / 40) a step
    expected = [0.5 * 0.98**step for step in range(4)]
    for lines in (interrupted, straight):
        assert [line["loss/kl_loss_coef"] for line in lines] == pytest.approx(expected)


def test_the_switch_selects_it_and_both_kls_together_are_refused() -> None:
    plan = make_plan(["demo"], overrides=["trainer.algorithm.use_kl_in_reward=true"])
    assert [entry.name for entry in plan.stages["advantage"].wrappers] == ["kl_in_reward"]
    assert {"old_logprobs", "ref_logprobs"} <= plan.stages["advantage"].value.needs


def test_without_the_switch_the_advantage_stays_as_it_is() -> None:
    config = {AlgorithmConfig: AlgorithmConfig()}
    wrapper = kl_in_reward.advantage(config)
    next(wrapper)
    with pytest.raises(StopIteration) as stop:
        wrapper.send(INNER)
    assert stop.value.value is INNER
