"""examples/linear_grpo.py shares no code with the loop, and gives the loop's numbers.

Tokens and rewards are equal. Everything that is summed in another order agrees to the tolerances
below: in four steps the weights move by 2.5e-3 and end within 3e-6 of each other, where AdamW
divides a gradient that is all rounding by its own size.
"""

import ast
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from running import settings, skyrl
from safetensors.torch import load_file
from workspace import ROOT

from skyrl_kernel.run.trajectory_file import read_trajectories

SCRIPT = ROOT / "examples" / "linear_grpo.py"
STEPS = 4
"""Eight updates, of which the first six warm up."""
SEED = 42
LOGPROB, LOSS, WEIGHT = 5e-4, 1e-6, 1e-5
"""Absolute."""
GRADIENT = 2e-4
"""Relative to the largest entry of the same tensor."""


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("linear_grpo", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of the demo, which is cut short and nothing else."""
    folder = tmp_path_factory.mktemp("runs")
    changes = {
        "trainer.max_training_steps": STEPS,
        "trainer.ckpt_interval": 1,
        "trainer.ckpt_path": str(folder),
        "trainer.eval_interval": STEPS,
        "trainer.eval_before_train": False,
        "trainer.logger": ["jsonl"],
    }
    done = skyrl("run", "--plugin", "demo", *settings(changes))
    assert done.code == 0, done.err
    return folder / "demo"


@pytest.fixture(scope="module")
def linear(script: ModuleType) -> dict[str, Any]:
    """The same steps by the script: what each did, the weights, and AdamW's mean gradients."""
    model, tokenizer, optimizer = script.load()
    before = script.accuracy(model, tokenizer)
    steps = []
    for done in script.train(model, tokenizer, optimizer, STEPS, SEED):
        weights = {name: p.detach().clone() for name, p in model.named_parameters()}
        gradients = {
            name: optimizer.state[p]["exp_avg"].clone() for name, p in model.named_parameters()
        }
        steps.append(done | {"weights": weights, "gradients": gradients})
    return {"steps": steps, "before": before, "after": script.accuracy(model, tokenizer)}


each_step = pytest.mark.parametrize("step", range(1, STEPS + 1))


@each_step
def test_the_script_asks_and_samples_what_the_run_does(run, linear, step):
    rows = read_trajectories(run / "trajectories" / f"step_{step}.parquet")
    mine = linear["steps"][step - 1]
    assert len(rows) == len(mine["ids"]) == 256
    for number, row in enumerate(rows):
        (segment,) = row["segments"]
        start = segment["num_prompt_tokens"]
        mask = mine["mask"][number]
        assert segment["tokens"][:start] == mine["prompts"][number].tolist()
        assert segment["tokens"][start:] == mine["ids"][number][mask].tolist()
        np.testing.assert_allclose(
            segment["logprobs"][start:], mine["logprobs"][number][mask], rtol=0, atol=LOGPROB
        )


@each_step
def test_rewards_are_equal_and_advantages_agree(run, linear, step):
    rows = read_trajectories(run / "trajectories" / f"step_{step}.parquet")
    mine = linear["steps"][step - 1]
    assert [row["reward"] for row in rows] == mine["rewards"].tolist()
    advantages = [row["segments"][0]["advantages"][-1] for row in rows]
    np.testing.assert_allclose(advantages, mine["advantages"].flatten(), rtol=0, atol=1e-6)
    assert np.abs(advantages).max() > 1  # the comparison is of something


@each_step
def test_loss_gradient_and_weights_agree(run, linear, step):
    mine = linear["steps"][step - 1]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (line,) = [line for line in lines if line["step"] == step]
    assert line["policy/final_loss"] == pytest.approx(np.mean(mine["losses"]), rel=0, abs=LOSS)
    assert line["policy/grad_norm"] == pytest.approx(np.mean(mine["grad_norms"]), rel=GRADIENT)

    checkpoint = run / "checkpoints" / f"global_step_{step}"
    weights = load_file(checkpoint / "weights.safetensors")
    moments = load_file(checkpoint / "optimizer.safetensors")
    assert weights.keys() == mine["weights"].keys()
    for name, expected in weights.items():
        torch.testing.assert_close(mine["weights"][name], expected, rtol=0, atol=WEIGHT)
        gradient = moments[f"{name}|exp_avg"]
        torch.testing.assert_close(
            mine["gradients"][name], gradient, rtol=0, atol=GRADIENT * gradient.abs().max().item()
        )


def test_the_script_learns_what_the_run_does(run, linear):
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    # One of 512 answers may hang on the last bit of a logit.
    assert linear["after"] == pytest.approx(last["eval/all/exact_match"], abs=1.5 / 512)
    assert linear["after"] - linear["before"] > 0.2


def test_the_script_is_under_200_lines_and_takes_nothing_from_the_kernel():
    text = SCRIPT.read_text()
    assert len(text.splitlines()) < 200
    imports = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)]
    ours = {str(node.module) for node in imports if str(node.module).startswith("skyrl")}
    assert {module.split(".")[0] for module in ours} == {"skyrl_multiply", "skyrl_tiny"}


@pytest.mark.slow
def test_what_a_newcomer_types_learns(tmp_path):
    done = subprocess.run(
        [sys.executable, str(SCRIPT)], cwd=tmp_path, check=True, text=True, capture_output=True
    )
    before, *steps, after = done.stdout.splitlines()
    assert len(steps) == 30
    assert float(after.split()[-1]) - float(before.split()[-1]) > 0.4
