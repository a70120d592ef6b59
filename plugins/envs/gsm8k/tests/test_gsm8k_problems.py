"""The original files become SkyRL's columns; the hub is asked only without ``--source``."""

import json
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from skyrl_gsm8k.env import Gsm8kEnv
from skyrl_gsm8k.problems import Gsm8kOptions, write_data
from skyrl_kernel.cli.data import data
from skyrl_kernel.data import load_prompts
from skyrl_kernel.errors import DataError

CHECKOUT = Path(__file__).parents[4]
ORIGINAL = [
    folder
    for place in (CHECKOUT, CHECKOUT.parent)
    if (folder := place / "shared" / "data" / "gsm8k").is_dir()
]
"""Where the published files are, in or beside the checkout; they are not part of it."""


def look_alike(seed: int, count: int) -> list[dict[str, str]]:
    """Problems in the published form: working with <<calculations>>, then ``#### NUMBER``."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        boxes, each, eaten = rng.randint(2, 90), rng.randint(2, 90), rng.randint(0, 3)
        total = boxes * each
        left = total - eaten
        question = (
            f"Ada has {boxes} boxes with {each} pears each and eats {eaten}. How many are left?"
        )
        answer = (
            f"Ada has {boxes}*{each} = <<{boxes}*{each}={total}>>{total} pears.\n"
            f"After eating, {total}-{eaten} = <<{total}-{eaten}={left}>>{left} are left.\n"
            f"#### {left:,}"
        )
        rows.append({"question": question, "answer": answer})
    return rows


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "original"
    folder.mkdir()
    for split, count in (("train", 20), ("test", 5)):
        rows = look_alike(len(split), count)
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def write(source: Path, folder: Path, **options: Any) -> dict[str, list[dict[str, Any]]]:
    folder.mkdir(exist_ok=True)
    files = write_data(Gsm8kOptions(**options), folder, source)
    return {split: pq.read_table(file).to_pylist() for split, file in files.items()}


def test_a_row_has_skyrls_columns(tmp_path: Path, source: Path) -> None:
    problem = {"question": "What is 500 + 500?", "answer": "500+500 = 1,000\n#### 1,000"}
    (source / "test.jsonl").write_text(json.dumps(problem))
    assert write(source, tmp_path / "out")["validation"] == [
        {
            "data_source": "openai/gsm8k",
            "prompt": [
                {
                    "role": "user",
                    "content": "What is 500 + 500? Let's think step by step and output the final "
                    'answer after "####".',
                }
            ],
            "env_class": "gsm8k",
            "reward_spec": {"method": "rule", "ground_truth": "1000"},
            "extra_info": {"split": "test", "index": 0, **problem},
        }
    ]


def test_every_reference_answer_earns_its_own_reward(tmp_path: Path, source: Path) -> None:
    for rows in write(source, tmp_path / "out").values():
        for row in rows:
            assert Gsm8kEnv(row).step(row["extra_info"]["answer"])["reward"] == 1.0


def test_only_the_training_rows_are_cut(tmp_path: Path, source: Path) -> None:
    whole = write(source, tmp_path / "whole")
    cut = write(source, tmp_path / "cut", max_train_dataset_length=7)
    assert cut == {"train": whole["train"][:7], "validation": whole["validation"]}
    assert [len(rows) for rows in whole.values()] == [20, 5]


def test_the_command_reads_a_folder_and_says_what_it_wrote(tmp_path: Path, source: Path) -> None:
    words = ["gsm8k", "--source", str(source), "--output_dir", str(tmp_path / "out")]
    result = CliRunner().invoke(data, [*words, "--max-train-dataset-length", "8"])
    assert result.output == (
        f"{tmp_path}/out/train.parquet: 8 rows\n{tmp_path}/out/validation.parquet: 5 rows\n"
    )
    prompts = load_prompts([str(tmp_path / "out" / "train.parquet")], default_env="multiply")
    assert list(prompts.env_classes()) == ["gsm8k"]


def test_a_missing_file_is_named_and_nothing_is_written(tmp_path: Path, source: Path) -> None:
    (source / "test.jsonl").unlink()
    words = ["gsm8k", "--source", str(source), "--output_dir", str(tmp_path / "out")]
    error = CliRunner().invoke(data, words).exception
    assert isinstance(error, DataError)
    assert "test.jsonl' does not exist. Data files in" in str(error)
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "?"}, r"row 1 \(from 0\): no text in column 'answer'; .* found: question"),
        ({"question": 3, "answer": "#### 3"}, "no text in column 'question'"),
        ({"question": "?", "answer": "42"}, "column 'answer': it does not end with '#### NUMBER'"),
    ],
)
def test_a_row_that_is_not_gsm8ks_is_named(
    tmp_path: Path, source: Path, row: dict[str, Any], message: str
) -> None:
    good = look_alike(0, 1)[0]
    (source / "train.jsonl").write_text(f"{json.dumps(good)}\n{json.dumps(row)}\n")
    with pytest.raises(DataError, match=message):
        write(source, tmp_path / "out")


@pytest.mark.skipif(not ORIGINAL, reason="not checked: the published files are not here")
def test_the_published_files_have_their_published_sizes(tmp_path: Path) -> None:
    rows = write(ORIGINAL[0], tmp_path / "out")
    assert {split: len(some) for split, some in rows.items()} == {
        "train": 7473,
        "validation": 1319,
    }
    assert rows["train"][0]["reward_spec"]["ground_truth"] == "72"
    truths = [row["reward_spec"]["ground_truth"] for some in rows.values() for row in some]
    assert all(truth.lstrip("-").isdigit() for truth in truths)


class HubHandler(SimpleHTTPRequestHandler):
    """Serves files under the paths and with the headers of the Hugging Face hub."""

    def translate_path(self, path: str) -> str:
        prefix = "/datasets/openai/gsm8k/resolve/main/main/"
        assert path.startswith(prefix), path
        return str(Path(self.directory) / path.removeprefix(prefix))

    def end_headers(self) -> None:
        self.send_header("ETag", f'"{Path(self.path).name}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        super().end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[str]:
    folder = tmp_path / "hub"
    folder.mkdir()
    for split, count in (("train", 20), ("test", 5)):
        table = pa.Table.from_pylist(look_alike(len(split), count))
        pq.write_table(table, folder / f"{split}-00000-of-00001.parquet")
    handler = partial(HubHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def download(tmp_path: Path, hub: str, folder: str) -> subprocess.CompletedProcess[str]:
    """``write_data`` in an interpreter of its own: the hub's address is read at import."""
    code = (
        "from pathlib import Path; from skyrl_gsm8k.problems import *\n"
        f"write_data(Gsm8kOptions(), Path({folder!r}), None)"
    )
    Path(folder).mkdir()
    hidden = ("HF_", "HUGGING", "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")
    env = {key: value for key, value in os.environ.items() if not key.startswith(hidden)}
    env |= {"HF_ENDPOINT": hub, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    return subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60
    )


def test_the_hubs_parquet_files_give_the_same_rows_and_are_cached(
    tmp_path: Path, source: Path, hub: str
) -> None:
    done = download(tmp_path, hub, str(tmp_path / "from_hub"))
    assert done.returncode == 0, done.stderr
    expected = write(source, tmp_path / "from_source")
    for split, rows in expected.items():
        assert pq.read_table(tmp_path / "from_hub" / f"{split}.parquet").to_pylist() == rows
    again = download(tmp_path, "http://127.0.0.1:9", str(tmp_path / "from_cache"))
    assert again.returncode == 0, again.stderr


def test_without_a_network_one_line_says_how_to_go_on(tmp_path: Path) -> None:
    done = download(tmp_path, "http://127.0.0.1:9", str(tmp_path / "out"))
    last = done.stderr.strip().splitlines()[-1]
    assert "did not give openai/gsm8k" in last
    assert "skyrl data gsm8k --source DIR" in last
    assert "Retrying" not in done.stderr
    assert list((tmp_path / "out").iterdir()) == []
