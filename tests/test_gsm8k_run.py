"""GSM8K from its original files to an evaluated run, with a model that knows nothing.

The real files are used where they lie beside the repository, or where SKYRL_GSM8K says; a small
look-alike is always used. A random model solves no problem: what is checked is the way there.
"""

import json
import os
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from running import Lab, skyrl
from transformers import AutoTokenizer
from workspace import ROOT

REAL = Path(os.environ.get("SKYRL_GSM8K", ROOT.parent / "shared" / "data" / "gsm8k"))
MAX_PROMPT_TOKENS = 400
TRAIN_ROWS = 24


def look_alike(folder):
    """40 and 12 problems of GSM8K's form; every fifth is too long."""
    folder.mkdir()
    for split, count in {"train": 40, "test": 12}.items():
        lines = []
        for n in range(count):
            story = "Ann counts her apples again. " * (20 if n % 5 == 0 else 1)
            question = f"{story}She has {n} apples and buys 1,000 more. How many has she?"
            answer = f"She has {n}+1000=<<{n}+1000={n + 1000}>>{n + 1000}.\n#### {n + 1000:,}"
            lines.append(json.dumps({"question": question, "answer": answer}))
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(params=["look-alike", "real"])
def source(request, tmp_path):
    if request.param == "look-alike":
        return look_alike(tmp_path / "original")
    if not (REAL / "train.jsonl").is_file():
        pytest.skip("the real GSM8K files are not here; only the look-alike was used")
    return REAL


def test_gsm8k_runs_from_its_original_files_to_its_evaluation(source, random_model, tmp_path):
    data = tmp_path / "data"
    made = skyrl(
        *("data", "gsm8k", "--source", source, "--output_dir", data),
        *("--max_train_dataset_length", TRAIN_ROWS),
    )
    assert made.code == 0, made.err
    original = (source / "test.jsonl").read_text().strip().split("\n")
    files = {split: data / f"{split}.parquet" for split in ("train", "validation")}
    rows = {split: pq.read_table(file).to_pylist() for split, file in files.items()}
    assert f"{files['train']}: {TRAIN_ROWS} rows" in made.out
    assert f"{files['validation']}: {len(original)} rows" in made.out

    lab = Lab(random_model, tmp_path)
    outcome = lab.run(
        "gsm8k",
        *("--plugin", "gsm8k"),
        environment__env_class="gsm8k",
        data__train_data=[str(files["train"])],
        data__val_data=[str(files["validation"])],
        trainer__max_prompt_length=MAX_PROMPT_TOKENS,
        trainer__epochs=1,
        trainer__max_training_steps=2,
        trainer__eval_before_train=False,
        trainer__eval_interval=0,
    )
    assert outcome.code == 0, outcome.err

    # what is too long is dropped, counted and told
    tokenizer = AutoTokenizer.from_pretrained(random_model)

    def fits(row):
        ids = tokenizer.apply_chat_template(
            row["prompt"], add_generation_prompt=True, return_dict=False
        )
        return len(ids) <= MAX_PROMPT_TOKENS

    kept = {split: sum(map(fits, rows[split])) for split in rows}
    for split, key in {"train": "data.train_data", "validation": "data.val_data"}.items():
        dropped = len(rows[split]) - kept[split]
        assert dropped > 0
        told = f"{key}: {dropped} of {len(rows[split])} prompts are longer"
        assert f"warning: {told}" in outcome.out

    # every reward is what GSM8K's rule says about the text that was sampled
    answers = {f"0:{number}": row["reward_spec"]["ground_truth"] for number, row in enumerate(rows["train"])}  # fmt: skip
    run = lab.at("gsm8k")
    trajectories = [one for step in (1, 2) for one in run.read_trajectories(step)]
    assert len(trajectories) == 2 * 4 * 4
    for one in trajectories:
        (turn,) = one["turns"]
        said = re.search(r"#### (-?[0-9.,]+)", turn["action"])
        right = said is not None and said[1].replace(",", "") == answers[one["uid"]]
        assert one["reward"] == turn["reward"] == float(right)

    # the completion is trained on, and nothing of the prompt
    for one in trajectories:
        (segment,) = one["segments"]
        prompt_tokens = segment["num_prompt_tokens"]
        assert prompt_tokens <= MAX_PROMPT_TOKENS
        assert not any(segment["loss_mask"][:prompt_tokens])
        assert all(segment["loss_mask"][prompt_tokens:])
        assert 1 <= len(segment["tokens"]) - prompt_tokens <= 6

    # evaluation, by data source
    numbers = run.read_metrics()[-1]
    assert numbers["eval/openai_gsm8k/num_trajectories"] == kept["validation"]
    for name in ("avg_score", "exact_match", "pass_at_1"):
        assert numbers[f"eval/openai_gsm8k/{name}"] == numbers[f"eval/all/{name}"]
        assert numbers[f"eval/all/{name}"] < 0.05  # six random characters
    assert numbers["failures/trajectories"] == numbers["eval/all/failed"] == 0
