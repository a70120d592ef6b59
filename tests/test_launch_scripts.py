"""The launch scripts in examples/: SkyRL's settings are accepted as they are, and run on a laptop.

What a script's comment says to type is what is run here.
"""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from running import skyrl, without_times
from workspace import ROOT

from skyrl_kernel.run import RunFolder
from skyrl_tiny.plugin import cache_folder

SCRIPTS = sorted(ROOT.glob("examples/**/*.sh"))
REAL_GSM8K = Path(os.environ.get("SKYRL_GSM8K", ROOT.parent / "shared" / "data" / "gsm8k"))
SEED_VALUES = (
    "trainer.micro_forward_batch_size_per_gpu=16 trainer.micro_train_batch_size_per_gpu=16 "
    'trainer.epochs=1 trainer.logger="console"'
)
"""What the seed command of the project overrides."""

each_script = pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home folder, from which the scripts are called as from a clone."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    return tmp_path


def bash(line: str, home: Path, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Run one line as a user would."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    clean = {key: value for key, value in os.environ.items() if not key.startswith("SKYRL_")}
    return subprocess.run(
        ["bash", "-c", line],
        cwd=home,
        env=clean | {"PATH": path, "HOME": str(home), "OMP_NUM_THREADS": "1"} | variables,
        text=True,
        capture_output=True,
    )


def words_of(line: str, home: Path) -> list[str]:
    """What a line of bash, such as a script, calls ``skyrl`` with."""
    folder = home / "bin"
    folder.mkdir(exist_ok=True)
    recorder = folder / "skyrl"
    recorder.write_text("#!/bin/bash\nprintf '%s\\0' \"$@\"\n")
    recorder.chmod(0o755)
    done = bash(f'PATH="{folder}:$PATH"; {line}', home)
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\0")[:-1]


def commands(script: Path) -> list[str]:
    """The commands in the comment at the top, each on one line."""
    head = script.read_text().partition("set -euo")[0]
    lines = re.findall(r"^#   (.*)$", head, re.MULTILINE)
    return re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines()


def laptop(script: Path) -> str:
    """The command for a laptop."""
    (line,) = [line for line in commands(script) if "NUM_GPUS=1" in line]
    return line


def missing(output: str) -> list[str]:
    """What ``--dry-run`` says is not built yet."""
    found = re.search(r"\Anot built yet.*\n((?:  .*\n)+)", output)
    return [line.split(" (")[0].strip() for line in found[1].splitlines()] if found else []


def section(output: str, title: str) -> str:
    found = re.search(rf"^{title}\n((?:  .*\n)+)", output, re.MULTILINE)
    return found[1] if found else ""


MISSING = "missing here: without --dry-run refused"


@each_script
def test_a_script_ends_in_what_the_user_adds(script: Path) -> None:
    assert os.access(script, os.X_OK)
    assert script.read_text().endswith('  "$@"\n')


@each_script
def test_every_key_of_a_script_is_accepted_as_written(script: Path, home: Path) -> None:
    done = skyrl(*words_of(f"{script} --dry-run", home))
    assert done.code == 0, done.err
    assert missing(done.out) == []
    assert "trainer.runtime = 'ray'  [auto, for trainer.placement.policy_num_gpus" in done.out
    unread = section(done.out, "not read")
    given = set(re.findall(r"^  ([a-z_.]+)=", script.read_text(), re.MULTILINE))
    shown = set(re.findall(r"^  ([a-zA-Z_.]+) ?=", done.out, re.MULTILINE))
    assert given <= shown
    assert "generator.batched=" in unread


@each_script
def test_without_gpus_a_script_is_refused_with_the_transport_to_take(
    script: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    lacking = "'nccl' (skyrl-vllm 0.1.0) needs an NVIDIA GPU"
    take = "generator.inference_engine.weight_sync_backend=auto takes the best that it has"
    dry = skyrl(*words_of(f"{script} --dry-run", home))
    (line,) = [line for line in section(dry.out, MISSING).splitlines() if "nccl" in line]
    assert lacking in line
    assert line.endswith(take)
    assert lacking in skyrl(*words_of(str(script), home)).complaint
    assert not (home / "ckpts").exists()


@each_script
def test_with_gpus_each_rank_brings_its_weights_to_the_engine_on_its_own(
    script: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    dry = skyrl(*words_of(f"{script} --dry-run", home))
    assert dry.code == 0, dry.err
    assert "nccl" not in section(dry.out, MISSING)
    assert "weights: from each rank to the engine on its own device, through nccl" in dry.out


@each_script
def test_a_layout_that_cannot_be_is_refused_even_by_a_dry_run(script: Path, home: Path) -> None:
    words = words_of(f"{script} --dry-run generator.inference_engine.num_engines=2", home)
    complaint = skyrl(*words).complaint
    assert "the policy has 4 GPUs" in complaint
    assert "make the two equal" in complaint


@each_script
def test_for_a_laptop_nothing_is_missing(script: Path, home: Path) -> None:
    done = skyrl(*words_of(f"{laptop(script)} --dry-run", home))
    assert done.code == 0, done.err
    assert missing(done.out) == []


@dataclass(frozen=True)
class Trained:
    """A script's run."""

    folder: RunFolder
    metrics: list[dict[str, Any]]
    sampled: list[Any]
    """Trajectories of step 1: their tokens and what was computed of them."""


def train(script: Path, home: Path, more: str, *, gpus: int) -> Trained:
    """Run the command for a laptop with so many processes that train, and as many that generate."""
    cache = str(cache_folder().parent)  # the tiny model need not be made for every home
    variables = {"SKYRL_RAY_PG_TIMEOUT_IN_S": "90", "SKYRL_CACHE": cache}
    line = laptop(script).replace("NUM_GPUS=1", f"NUM_GPUS={gpus}")
    done = bash(f'{line} trainer.ckpt_path="{home}/ckpts{gpus}" {more}', home, **variables)
    assert done.returncode == 0, done.stderr
    assert "finished at step" in done.stdout
    (path,) = (home / f"ckpts{gpus}").iterdir()
    sampled = pq.read_table(path / "trajectories" / "step_1.parquet")
    metrics = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return Trained(RunFolder(path), metrics, sampled["segments"].to_pylist())


def make_data(script: Path, home: Path) -> str:
    """As the script's comment says; the words for what is there to train on."""
    name = script.parent.name
    (line,) = [line for line in commands(script) if line.startswith("skyrl data")]
    if name == "multiply":
        line += " --num_digits 3x1 --train_size 64"  # which the built-in model can answer
    if name == "gsm8k":
        line += f" --source {REAL_GSM8K if REAL_GSM8K.is_dir() else look_alike(home)}"
    done = bash(line, home)
    assert done.returncode == 0, done.stderr
    return f"data.train_data=\"['{home}/data/{name}/train.parquet']\""


def check_whole(run: Trained, steps: int, *, parts: int) -> None:
    """All that a run leaves is there, its checkpoint in as many parts as there are ranks."""
    path = run.folder.path
    assert [line["step"] for line in run.metrics] == list(range(1, steps + 1))
    last = f"global_step_{steps}"
    (checkpoint,) = (path / "checkpoints").iterdir()
    assert checkpoint.name == last
    assert len(list(checkpoint.glob("weights*.safetensors"))) == parts
    assert (path / "export" / last / "model.safetensors").is_file()
    assert len(list((path / "trajectories").iterdir())) == steps
    for name in ("config.yaml", "plugins.json", "log.jsonl"):
        assert (path / name).is_file()


def check_layout(run: Trained) -> None:
    """Two ranks, and an engine beside each."""
    begun = {file.stem for file in (run.folder.path / "logs").glob("*.jsonl")}
    assert begun == {"trainer_rank_0", "trainer_rank_1", "engine_0", "engine_1"}


def check_same(one: Trained, other: Trained) -> None:
    """Step 1 has the same trajectories, and of all numbers but the greatest of each kind, 1e-4.

    Engines sample by (seed, trajectory), so what they sample does not depend on how many there
    are. A greatest value is that of one token, which may be where an update of rounding size
    decides (`Adam` divides it by itself): those are left out, and so is what the clock tells.
    """
    for row, same in zip(one.sampled, other.sampled, strict=True):
        assert [part["tokens"] for part in row] == [part["tokens"] for part in same]
        for part, like in zip(row, same, strict=True):
            for score in ("logprobs", "old_logprobs", "ref_logprobs"):
                assert part[score] == pytest.approx(like[score], abs=1e-4)
    (mine, *_), (others, *_) = without_times(one.metrics), without_times(other.metrics)
    assert mine.keys() == others.keys()
    for name, value in mine.items():
        if not name.endswith("_max"):
            assert others[name] == pytest.approx(value, rel=1e-4, abs=1e-4), name


@pytest.mark.slow
@pytest.mark.timeout(600)
@each_script
def test_in_the_layout_of_gpus_a_script_trains_as_in_one_process(script: Path, home: Path) -> None:
    words = f"{make_data(script, home)} {SEED_VALUES}"
    alone, several = (train(script, home, words, gpus=gpus) for gpus in (1, 2))
    check_whole(alone, 2, parts=1)
    check_whole(several, 2, parts=2)
    check_layout(several)
    check_same(alone, several)
    first, second = several.metrics
    if "multiply" in script.name:  # the built-in model earns something there, and nothing on GSM8K
        assert first["policy/grad_norm"] > 0.1
        moved = first["policy/minibatch_rollout_logprobs_abs_diff_max"]  # by the mini-batch before
        assert moved > 10 * first["policy/rollout_train_logprobs_abs_diff_max"]
    assert 0 < second["loss/avg_kl"] < 1e-3  # it has left its reference


def look_alike(home: Path) -> Path:
    """24 and 4 problems of GSM8K's form."""
    folder = home / "original"
    folder.mkdir()
    for split, count in (("train", 24), ("test", 4)):
        rows = [
            {"question": f"{n} and {n}?", "answer": f"{n}+{n}={2 * n}\n#### {2 * n}"}
            for n in range(count)
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
