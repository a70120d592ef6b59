"""What the benchmark of algorithms counts as learned, what it repeats, and what it writes."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import algorithms
import algorithms_report as reported
import commands
import learning
import pytest
import report
from curves import draw_algorithms
from effective import effective
from sources import source_digest

from skyrl_kernel.plan import make_plan
from skyrl_kernel.testing.distributions import on_path

LIMITS = reported.Limits(gain=0.2, rescue_rise=0.1)


def run(
    start: float, final: float, rescued: tuple[float, float] | None = None, **more: Any
) -> dict[str, Any]:
    """What is kept of one run."""
    curves = {"exact_match": [(0, start), (15, (start + final) / 2), (30, final)]}
    if rescued is not None:
        curves["rescued"] = [(0, rescued[0]), (15, rescued[1]), (30, rescued[1])]
        curves["exact_match_first_turn"] = curves["exact_match"]
    numbers = {
        "start": start,
        "final": final,
        "problems": 512,
        "steps": 30,
        "trained_trajectories": 7680,
        "dropped_groups": [0] * 30,
        "seconds": 40.0,
        "cpu_seconds": 55.0,
        "curves": curves,
        "training_reward": [start, final],
    }
    return numbers | more


def row(expect: str, *runs: dict[str, Any], turns: int = 1, title: str = "GRPO") -> dict[str, Any]:
    return {
        "title": title,
        "typed": "--plugin demo --plugin grpo",
        "turns": turns,
        "expect": expect,
        "digest": "0" * 12,
        "seeds": {str(seed): one for seed, one in enumerate(runs)},
    }


# --- what counts as passed ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("expect", "runs", "passes"),
    [
        ("learns", [run(0.4, 0.61), run(0.4, 0.9)], True),
        ("learns", [run(0.4, 0.59), run(0.4, 0.9)], False),  # one seed gains 0.19
        ("learns", [], False),
        ("rescues", [run(0.4, 0.9, (0.1, 0.21))], True),
        ("rescues", [run(0.4, 0.9, (0.1, 0.19))], False),  # the rate rises by 0.09
        ("rescues", [run(0.4, 0.59, (0.1, 0.9))], False),
        ("fails", [run(0.4, 0.1), run(0.4, 0.59)], True),
        ("fails", [run(0.4, 0.1), run(0.4, 0.61)], False),  # a control that passes on one seed
        ("fails", [], False),
        ("reported", [run(0.4, 0.1)], True),
    ],
)
def test_a_row_passes_if_every_seed_does_what_is_promised(
    expect: str, runs: list[dict[str, Any]], passes: bool
) -> None:
    assert reported.row_passes(row(expect, *runs), LIMITS) is passes


def test_a_seed_that_was_not_measured_fails_the_row() -> None:
    (entry,) = algorithms.choose("grpo")
    results = {"rows": {"grpo": row("learns", run(0.4, 0.9))}}
    assert algorithms.verdict(entry, results, ["0"])[0]
    ok, line = algorithms.verdict(entry, results, ["0", "1"])
    assert not ok
    assert line == "FAIL grpo: not measured on seed 1"
    assert not algorithms.verdict(entry, {"rows": {}}, ["0"])[0]


def test_numbers_are_read_from_what_a_run_left_behind() -> None:
    step = {"timing/step": 1.5, "generate/batch_num_seq": 256.0, "reward/avg_raw_reward": 0.25}
    lines = [
        {"eval/all/exact_match": 0.3, "eval/all/rescued": 0.1, "eval/all/num_trajectories": 512.0},
        {"trainer/global_step": 1, **step, "generate/groups_dropped": 3.0},
        {"trainer/global_step": 2, **step, "eval/all/exact_match": 0.6},  # all right at first
    ]
    found = algorithms.numbers_of(lines)
    assert (found["start"], found["final"], found["seconds"]) == (0.3, 0.6, 3.0)
    assert (found["steps"], found["trained_trajectories"], found["dropped_groups"]) == (
        2,
        512,
        [3, 0],
    )
    assert found["curves"] == {"exact_match": [(0, 0.3), (2, 0.6)], "rescued": [(0, 0.1)]}


def test_a_command_tells_its_own_cpu_seconds() -> None:
    spin = "import time; end = time.process_time() + 0.3\nwhile time.process_time() < end: pass"
    said, seconds = commands.timed_call(
        [sys.executable, "-c", f"{spin}\nprint('done')"], os.environ
    )
    assert said == "done\n"
    assert 0.3 <= seconds < 3
    with pytest.raises(commands.FailedError, match=r"exit code 3 from: .*\noh"):
        commands.call([sys.executable, "-c", "import sys; print('oh'); sys.exit(3)"], os.environ)


# --- what is repeated ---------------------------------------------------------------------


def test_every_row_can_be_typed_and_has_a_digest_of_its_own(tmp_path: Path) -> None:
    metadata, modules = commands.install_controls(tmp_path)
    with on_path(metadata), on_path(modules):
        digests = [algorithms.digest(entry) for entry in algorithms.ENTRIES]
        assert digests == [algorithms.digest(entry) for entry in algorithms.ENTRIES]
    assert len(set(digests)) == len(algorithms.ENTRIES)


def test_a_name_that_is_no_row_is_refused_with_those_there_are() -> None:
    with pytest.raises(Exception, match=r"no row named ppoo; there are grpo, "):
        algorithms.choose("grpo,ppoo")


def test_a_setting_is_what_differs_from_the_defaults_however_it_is_written() -> None:
    def setting(plugins: list[str], **values: Any) -> dict[str, Any]:
        return effective(make_plan(plugins, overrides=commands.words(values)), plugins, values)

    demo = setting(["demo"])
    assert setting(["demo", "grpo"]) == demo  # grpo is the default
    assert (
        setting(["demo"], **{"trainer.gradient_checkpointing": False}) == demo
    )  # as the demo says
    assert setting(["demo"], **{"trainer.seed": 7}) == demo | {"trainer.seed": 7}
    lr = "trainer.critic.optimizer_config.lr"
    assert lr not in setting(["demo"], **{lr: 0.5})  # there is no critic
    assert setting(["demo", "ppo"], **{lr: 0.5})[lr] == 0.5


def test_the_recorded_results_of_the_demo_are_those_of_its_recipe_and_setting() -> None:
    assert json.loads(report.LEARNING.read_text())["key"] == learning.key()


PLUGIN = '''
"""What it does."""
from made_up import maths

def advantage(name):
    """Says how."""
    return maths.ONE  # one
'''
MATHS = '''
ONE = 1
"""A number."""
'''


def digest_of(folder: Path, plugin: str, maths: str = MATHS) -> str:
    package = folder / "made_up"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "plugin.py").write_text(plugin)
    (package / "maths.py").write_text(maths)
    with on_path(folder):
        return source_digest("made_up.plugin")


def test_a_digest_of_code_knows_no_words(tmp_path: Path) -> None:
    first = digest_of(tmp_path / "a", PLUGIN)
    reworded = PLUGIN.replace("Says how", "Says it better").replace("# one", "# 1")
    assert digest_of(tmp_path / "b", reworded, MATHS.replace("A number", "The one")) == first
    assert digest_of(tmp_path / "c", PLUGIN.replace("maths.ONE", "maths.ONE + 1")) != first


def test_a_digest_of_code_follows_what_it_imports_from_its_package(tmp_path: Path) -> None:
    first = digest_of(tmp_path / "a", PLUGIN)
    assert digest_of(tmp_path / "b", PLUGIN, MATHS.replace("1", "2")) != first


# --- what is written ----------------------------------------------------------------------


def some_results() -> dict[str, Any]:
    return {
        "machine": json.loads(report.LEARNING.read_text())["machine"],
        "group_size": 8,
        "least_gain": 0.2,
        "least_rescue_rise": 0.1,
        "rows": {
            "grpo": row("learns", run(0.4, 0.9), run(0.3, 0.8)),
            "dapo": row("learns", run(0.4, 0.5, dropped_groups=[32] * 30), title="DAPO"),
            "grpo_turns": row("rescues", run(0.3, 0.8, (0.05, 0.45)), turns=2),
            "flipped": row("fails", run(0.4, 0.0), title="GRPO, sign flipped"),
        },
    }


def test_the_page_says_what_passed_and_what_did_not() -> None:
    text = reported.page(some_results())
    assert "**2 of 3 pass**" in text
    assert "| GRPO | 0.900 | 0.800 | 0.850 | +0.500 | 40 | 55 | pass |" in text
    assert "| DAPO | 0.500 | – | 0.500 | +0.100 | 40 | 55 | **fail** |" in text
    assert "| *start* | *0.400* | *0.300* | *0.350* |" in text
    assert "0.050 → 0.450 | +0.400 | 40 | 55 | pass |" in text
    # Half of what it samples is dropped, so at step 15 it has sampled what others do in 30.
    assert "2.0 times as many answers" in text
    assert "its exact match was 0.450, a gain of at least 0.050." in text
    assert "| GRPO, sign flipped | 0.000 |" in text
    assert "fails, as it must" in text


def test_the_picture_is_drawn_of_any_number_of_rows(tmp_path: Path) -> None:
    rows = some_results()["rows"]
    for count in range(1, len(rows) + 1):
        file = tmp_path / f"{count}.png"
        draw_algorithms(dict(list(rows.items())[:count]), file)
        assert file.read_bytes().startswith(b"\x89PNG")


def test_the_page_in_the_docs_is_the_one_of_the_recorded_numbers() -> None:
    results = json.loads(report.ALGORITHMS.read_text())
    assert report.ALGORITHMS_PAGE.read_text() == reported.page(results)
    assert report.ALGORITHMS_PICTURE.exists()


def test_every_recorded_row_has_five_seeds_and_does_what_is_promised() -> None:
    results = json.loads(report.ALGORITHMS.read_text())
    for entry in algorithms.ENTRIES:
        ok, line = algorithms.verdict(entry, results, algorithms.SEEDS.split(","))
        assert ok, line
