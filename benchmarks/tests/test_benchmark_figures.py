"""What the benchmarks compute from what they measure."""

import bench
import layouts_report
import learning_report
import pytest
import text


@pytest.mark.parametrize(
    ("start", "rl", "random", "sft", "verdict"),
    [
        (0.40, 0.65, 0.45, 0.45, True),
        (0.40, 0.59, 0.30, 0.30, False),  # gains 0.19
        (0.40, 0.65, 0.51, 0.40, False),  # leads random rewards by 0.14
        (0.40, 0.65, 0.40, 0.51, False),  # leads SFT by 0.14
    ],
)
def test_a_seed_passes_with_both_gain_and_lead(
    start: float, rl: float, random: float, sft: float, verdict: bool
) -> None:
    numbers = {"start": start, "rl": rl, "random": random, "sft": sft}
    assert learning_report.passes(numbers, 0.2, 0.15) is verdict


def test_each_layout_is_held_against_one_process_of_its_own_comparison() -> None:
    def comparison(here: list[float], there: list[float]) -> dict[str, object]:
        ends = {"one process": here, "apart": there}
        return {
            "against": "one process",
            "most_difference": 0.03,
            "layouts": {
                layout: {str(seed): {"end": end} for seed, end in enumerate(of_layout)}
                for layout, of_layout in ends.items()
            },
        }

    near = comparison([0.90, 0.80], [0.88, 0.84])  # +0.01 in the mean
    far = comparison([0.90, 0.80], [0.82, 0.80])  # -0.04
    begun = {"against": "one process", "most_difference": 0.03, "layouts": {}}
    assert layouts_report.passes({"GRPO": near, "PPO": begun})
    assert not layouts_report.passes({"GRPO": near, "PPO": far})
    # of 0.82 and 0.80 the standard error is half their distance
    assert layouts_report.lines({"PPO": far})[1] == "MISSED PPO, apart: 0.810 ± 0.010, -0.040"


def test_the_parts_of_a_step_add_up_and_what_no_plugin_computes_is_the_kernels() -> None:
    lap = {
        "wall_s": 2.0,
        "engine_s": 0.3,
        "update_s": 0.5,
        "tokenizer_s": 0.02,
        "rollouts_s": 0.08,
        "batches_s": 0.05,
        "reports_s": 0.03,
        "files_s": 0.02,
        "trajectories": 16.0,
        "prompts": 2.0,
        "prompt_tokens": 100.0,
        "prompt_tokens_computed": 100.0,
        "tokens_generated": 600.0,
        "tokens": 1500.0,
    }
    replayed = {"agent_s": 0.03, "envs_s": 0.01}  # in rollouts_s
    numbers = bench.step_numbers([lap, lap], replayed)
    assert sum(numbers["parts"].values()) == pytest.approx(1.0)
    assert numbers["step_cpu_s"] == pytest.approx(1.0)
    assert numbers["kernel_share"] == pytest.approx(0.14)  # 0.08 - 0.03 - 0.01 + 0.05 + 0.03 + 0.02
    assert numbers["kernel_us_per_trajectory"] == pytest.approx(8750)  # 140 ms / 16
    assert numbers["outside_share"] == pytest.approx(0.2)  # 1 - 0.3 - 0.5
    assert numbers["generated_tokens_per_s"] == pytest.approx(2000)  # 600 / 0.3
    assert numbers["trained_tokens_per_s"] == pytest.approx(3000)  # 1500 / 0.5
    assert numbers["group_size"] == 8


def test_lists_of_numbers_stand_on_one_line() -> None:
    written = text.to_json({"curve": [[0, 0.5], [3, 0.75]], "names": ["a", "b"]})
    assert "[0, 0.5]" in written
    assert written.endswith("}\n")
