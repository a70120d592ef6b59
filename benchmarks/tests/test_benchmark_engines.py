"""What the benchmarks of engines compute from what they measure, and the simulation, without vLLM."""

from dataclasses import replace

import engines_report
import overlap
import pytest
import simulation
import weight_sync
from simulation import Workload, simulate

PLAIN = Workload(
    slots=8,
    groups=2,
    samples=4,
    tokens=10,
    token_s=0.1,  # 1 s a completion, a slot for each of a step's 8
    wait_s=1.0,
    train_s=2.5,
    sync_s=0.5,
    staleness=0,
    steps=6,
)


def lengths(work: Workload) -> list[float]:
    ends = simulate(work)
    return [after - before for before, after in zip([0.0, *ends], ends, strict=False)]


def test_synchronous_steps_take_the_sum_of_their_stages() -> None:
    assert lengths(PLAIN) == pytest.approx([1 + 1 + 2.5 + 0.5] * 6)


def test_one_step_ahead_the_trainer_waits_for_the_first_step_only() -> None:
    assert lengths(replace(PLAIN, staleness=1)) == pytest.approx([5, 3, 3, 3, 3, 3])  # train + sync


def test_a_sync_stops_generation_for_as_long_as_it_takes() -> None:
    # Groups of step 3 begin at 4, as version 1 is there, and need 3 + 1 s; the sync of step 2
    # stops them for 0.5 s, so that training begins at 8.5 and step 3 ends at 10.
    slow = replace(PLAIN, staleness=1, slots=16, token_s=0.3, wait_s=1.0, train_s=1.0, steps=3)
    ends = simulate(replace(slow, tokens=10))
    assert ends == pytest.approx([4 + 1.5, 5.5 + 1.5, 5.5 + 4.5 + 1.5])


def test_trajectories_without_a_slot_wait_for_one() -> None:
    halved = replace(PLAIN, slots=4)
    assert lengths(halved) == pytest.approx([2 + 1 + 2.5 + 0.5] * 6)


def test_engines_share_the_trajectories_evenly() -> None:
    assert lengths(replace(PLAIN, engines=2, slots=4)) == pytest.approx(lengths(PLAIN))


def test_more_staleness_and_less_waiting_do_not_lower_the_throughput() -> None:
    varied = replace(PLAIN, engines=4, groups=8, slots=8, varies=True)
    found = [simulation.throughput(replace(varied, staleness=ahead)) for ahead in (0, 1, 4)]
    assert found == sorted(found)
    assert found[0] < 0.6 < 0.95 < found[-1] <= 1.0 + 1e-9


def lines(step: float, generate: float, sync: float) -> list[dict[str, float]]:
    usual = {"timing/step": step, "timing/generate": generate, "timing/sync_weights": sync}
    first = {name: 100.0 for name in usual}  # is left out
    return [{**one, "async/staleness_max": 1.0} for one in (first, first, usual, usual, usual)]


def test_the_ideal_hides_the_shorter_of_generating_and_training() -> None:
    pair = overlap.compare(lines(5.0, 2.0, 0.5), lines(3.75, 0.0, 0.5))
    assert pair["sync"] == {"step_s": 5.0, "generate_s": 2.0, "sync_s": 0.5, "train_s": 2.5}
    assert pair["ideal_step_s"] == 3.0
    assert pair["of_ideal"] == pytest.approx(0.8)
    assert pair["speed_up"] == pytest.approx(4 / 3)


def test_the_simulation_is_checked_with_the_stages_of_the_synchronous_run_alone() -> None:
    pair = overlap.compare(lines(5.0, 2.0, 0.5), lines(3.75, 0.0, 0.5))
    measured = {
        "groups": 2,
        "samples": 4,
        "output_tokens": 10,
        "staleness": 1,
        "steps": 5,
        "generation_s": 1.0,
        "pairs": [pair],
    }
    (checked,) = simulation.check(measured)
    assert checked == {"measured_s": 3.75, "simulated_s": pytest.approx(3.0)}
    assert engines_report.likeness(checked) == pytest.approx(0.8)


def test_a_goal_that_is_missed_is_called_missed() -> None:
    results = {
        "overlap": {"of_ideal": 0.89},
        "serving": {"ratio": {"streamed": 0.95, "whole": 1.2}},
    }
    found = {goal.what: goal.is_met for goal in engines_report.goals(results)}
    assert list(found.values()) == [True, True, False]


def test_moving_has_a_goal_from_256_megabytes_on() -> None:
    def size(megabytes: int, of_copy: float) -> dict[str, object]:
        return {
            "bytes": megabytes * 10**6,
            "transports": {"shared memory": {"of_copy": of_copy}, "gloo": {"of_copy": 0.01}},
        }

    sizes = [size(64, 0.01), size(258, 0.25), size(515, 0.24)]
    found = [goal.is_met for goal in engines_report.goals({"sync": {"sizes": sizes}})]
    assert found == [True, False]


def test_without_numbers_the_page_says_what_was_not_run() -> None:
    assert "Not run" in engines_report.section({})


def test_what_an_update_costs_a_stream_is_told_by_its_tokens_alone() -> None:
    """A token each 0.1 s; from 0.4 to 1.5 there were 4, so that 1.1 - 4 x 0.1 s were lost."""
    before, after = [0.0, 0.1, 0.2, 0.3, 0.4], [1.5, 1.6, 1.7]
    found = weight_sync.loss([*before, 0.5, 1.2, 1.3, *after], began=0.45, ended=1.45)
    assert found == pytest.approx((0.7, 0.7, 0.1))
    twice = weight_sync.loss([*before, 0.7, 0.8, 1.2, *after], began=0.45, ended=1.45)
    assert twice == pytest.approx((0.7, 0.4, 0.1))  # stops that are not the longest count
    late = [*before, *[0.7] * 3, 0.8, *[1.9] * 4, 2.0, 2.1]  # read at once: of 1.6 to 1.9
    burst = weight_sync.loss(late, began=0.45, ended=1.45)
    assert burst.stopped_s == pytest.approx(0.7)
    none = weight_sync.loss([one / 10 for one in range(30)], began=0.45, ended=1.45)
    assert none == pytest.approx((0.0, 0.1, 0.1))
