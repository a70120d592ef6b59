"""A run ahead of training with all that may come together, killed and repeated; the server of `test_vllm_run`."""

import itertools
import json
import os
import random
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from skyrl_kernel.plan import make_plan
from skyrl_kernel.prepared import Prepared, prepare
from skyrl_kernel.run import RunFolder, latest_checkpoint
from skyrl_kernel.run.eval_dump import AGGREGATED
from skyrl_kernel.testing.killing import consumed
from skyrl_tiny.plugin import tiny
from skyrl_transformers.loading import load_causal_lm
from skyrl_vllm.testing import PROMPTS, attached, demo

AHEAD = 2
STEPS = 8
INTERVAL = 2
"""Of evaluations, checkpoints and exports, in steps."""
SAMPLES = 8
HELD_OUT = 12


def command(url: str, folder: Path) -> list[str]:
    """DAPO, two steps to an epoch; of its groups many are all right or all wrong."""
    return demo(
        folder,
        *("--plugin", "dapo"),
        *attached(url),
        f"environment.multiply.train_size={2 * PROMPTS}",
        f"environment.multiply.test_size={HELD_OUT}",
        f"generator.n_samples_per_prompt={SAMPLES}",
        "trainer.epochs=4",
        "trainer.fully_async.enabled=true",
        f"trainer.fully_async.max_staleness_steps={AHEAD}",
        f"trainer.eval_interval={INTERVAL}",
        "trainer.dump_eval_results=true",
        f"trainer.ckpt_interval={INTERVAL}",
        "trainer.max_ckpts_to_keep=2",
        f"trainer.hf_save_interval={INTERVAL}",
        steps=STEPS,
    )


def ended(words: Sequence[str], run: RunFolder, *, killed_after: int = STEPS) -> tuple[int, str]:
    """Exit code and output of the command, killed at a random moment after it has done a step."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        while killed_after < STEPS and process.poll() is None and done(run) < killed_after:
            time.sleep(0.01)
        if killed_after < STEPS:
            time.sleep(random.uniform(0, 0.5))
            process.kill()
        try:
            out, _ = process.communicate(timeout=300)
        finally:
            process.kill()
        return process.returncode, out


def done(run: RunFolder) -> int:
    """The last step that is written down."""
    return int(run.read_metrics()[-1]["step"]) if run.metrics.exists() else 0


@pytest.mark.slow
def test_killed_twice_dapo_ahead_of_training_ends_as_its_config_says(
    servers: Any, tmp_path: Path
) -> None:
    pytest.importorskip("skyrl_dapo", reason="`make test-engines` installs it")
    words = command(servers.start(tiny(0)).url, tmp_path)
    run = RunFolder(tmp_path / "demo")
    prepared = prepare(make_plan(*plugins_and_overrides(words)))

    newest = 0
    for step in (3, 5):
        code, out = ended(words, run, killed_after=step)
        assert code == -9, out
        assert (f"going on after step {newest} of {STEPS}" in out) == bool(newest), out
        found, damaged = latest_checkpoint(run.checkpoints, clean=False)
        assert found is not None
        assert damaged == []
        assert found.step >= done(run) - INTERVAL  # no more is lost than lies between two
        newest = found.step
    code, out = ended(words, run)
    assert code == 0, out
    assert f"going on after step {newest} of {STEPS}" in out

    check_steps(run)
    check_prompts(run, prepared)
    check_evaluations(run, prepared)
    kept = sorted(path.name for path in run.checkpoints.iterdir())
    assert kept == [f"global_step_{STEPS - INTERVAL}", f"global_step_{STEPS}"]


def plugins_and_overrides(words: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """Plugins, files and settings of a command line, as `make_plan` takes them."""
    plugins = [after for word, after in itertools.pairwise(words) if word == "--plugin"]
    return plugins, [], [word for word in words if "=" in word]


def check_steps(run: RunFolder) -> None:
    """Every step is there once, with whole groups that are as fresh as they must be."""
    lines = run.read_metrics()
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    for line in lines:
        step = line["step"]
        assert line["failures/trajectories"] == 0
        assert line["async/staleness_violation_count"] == 0
        rows = run.read_trajectories(step)
        assert len(rows) == PROMPTS * SAMPLES
        for row in rows:
            versions = [one for one in row["segments"][0]["versions"] if one != -1]
            assert versions == sorted(versions)
            assert step - 1 - AHEAD <= versions[0] <= versions[-1] <= step - 1
    assert max(line["async/staleness_max"] for line in lines) > 0


def check_prompts(run: RunFolder, prepared: Prepared) -> None:
    """Each group is the next prompt of its epoch, and is trained on once or left out once."""
    found = consumed(run.path)
    groups = [group for _, group, _ in found]
    assert groups == sorted(set(groups))
    left_out = sum(line["generate/groups_dropped"] for line in run.read_metrics())
    assert len(groups) == STEPS * PROMPTS
    assert groups[-1] + 1 == len(groups) + left_out  # the last one that is drawn is trained on
    assert left_out > 0
    drawn = [prepared.order.next().uid for _ in range(groups[-1] + 1)]
    assert [uid for _, _, uid in found] == [drawn[group] for group in groups]


def check_evaluations(run: RunFolder, prepared: Prepared) -> None:
    """After every second step, with the weights of that step: those that its export has."""
    due = list(range(INTERVAL, STEPS + 1, INTERVAL))
    lines = run.read_metrics()
    assert [line["step"] for line in lines if "eval/all/avg_score" in line] == due
    assert sorted(run.dumped_evals.iterdir()) == sorted(map(run.eval_dump, due))
    answers = {step: greedy(run.export / f"global_step_{step}", prepared) for step in due}
    assert len(set(map(tuple, answers.values()))) > 1  # other weights would be seen
    for step in due:
        (file,) = set(run.eval_dump(step).iterdir()) - {run.eval_dump(step) / AGGREGATED}
        dumped = [json.loads(line) for line in file.read_text().splitlines()]
        assert [one["output_response"] for one in dumped] == answers[step]
        scores = [one["score"] for one in dumped]
        assert lines[step - 1]["eval/all/avg_score"] == pytest.approx(sum(scores) / HELD_OUT)


def greedy(model: Path, prepared: Prepared) -> list[str]:
    """What Hugging Face's own loop answers to the held-out prompts."""
    module, tokenizer = load_causal_lm(model), prepared.tokenizer
    answers = []
    for prompt in prepared.data.val.prompts:
        asked = tokenizer.encode_chat(prompt.messages, add_generation_prompt=True).tolist()
        row = module.generate(torch.tensor([asked]), do_sample=False, max_new_tokens=48)[0]
        answers.append(tokenizer.decode(row[len(asked) :].int().numpy(), skip_special_tokens=False))
    return answers
