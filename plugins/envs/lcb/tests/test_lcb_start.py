"""A run with this env, from the command line."""

import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest


@pytest.mark.slow  # the command makes its model first
def test_a_run_without_bubblewrap_is_refused_at_its_start(tmp_path: Path) -> None:
    row = {"prompt": [{"role": "user", "content": "Add."}], "env_class": "lcb",
           "reward_spec": {"ground_truth": "[]"}}  # fmt: skip
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "train.parquet")
    words = [
        "--plugin",
        "grpo",
        "--plugin",
        "lcb",
        "data.train_data=['train.parquet']",
        "data.val_data=[]",
    ]
    ended = subprocess.run(
        [Path(sys.executable).parent / "skyrl", "run", *words],
        env={**os.environ, "PATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 2
    assert (
        "row 0 (from 0) names the env 'lcb': code that a model wrote runs only in a s"
        in ended.stderr
    )
    assert "To have one, install bubblewrap: apt-get install bubblewrap" in ended.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["train.parquet"]
