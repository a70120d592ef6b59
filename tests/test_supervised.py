"""Training on answers that stand in the data, and on a teacher's opinion: whole runs."""

import json
from pathlib import Path
from typing import Any

import pytest
from running import Outcome, settings, skyrl, without_times

from skyrl_kernel.run import RunFolder

BASE = {
    "trainer.train_batch_size": 8,
    "trainer.policy_mini_batch_size": 4,
    "trainer.micro_train_batch_size_per_gpu": 16,
    "trainer.micro_forward_batch_size_per_gpu": 16,
    "trainer.bf16": False,
    "trainer.gradient_checkpointing": False,
    "trainer.epochs": 4,
    "trainer.eval_interval": 4,
    "trainer.ckpt_interval": 1,
    "trainer.policy.optimizer_config.lr": 0.01,
}


def write(path: Path, rows: list[dict[str, Any]]) -> list[str]:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [str(path)]


def pairs(numbers: range) -> list[dict[str, Any]]:
    """Prefers the number itself to the one before it."""
    return [
        {
            "prompt": [{"role": "user", "content": f"say {n}"}],
            "chosen": f"aa{n}",
            "rejected": f"bb{n - 1}",
        }
        for n in numbers
    ]


def chats(numbers: range) -> list[dict[str, Any]]:
    return [
        {
            "messages": [
                {"role": "user", "content": f"say {n}"},
                {"role": "assistant", "content": f"{n}"},
                {"role": "user", "content": "again"},
                {"role": "assistant", "content": f"{n}{n}"},
            ],
            "data_source": "chat",
        }
        for n in numbers
    ]


class Runs:
    """Runs of one plugin on one data set in one folder."""

    def __init__(self, plugin: str, model: Path, folder: Path, rows: Any) -> None:
        self.plugin, self.folder = plugin, folder
        self.values = BASE | {
            "trainer.policy.model.path": str(model),
            "trainer.ckpt_path": str(folder),
            "data.train_data": write(folder / "train.jsonl", rows(range(20, 36))),
            "data.val_data": write(folder / "val.jsonl", rows(range(40, 46))),
        }

    def run(self, name: str, **changes: Any) -> list[dict[str, Any]]:
        changed = {key.replace("__", "."): value for key, value in changes.items()}
        values = self.values | {"trainer.run_name": name} | changed
        outcome = skyrl("run", "--plugin", self.plugin, *settings(values))
        assert outcome.code == 0, outcome.err
        return RunFolder(self.folder / name).read_metrics()


@pytest.fixture(params=["sft", "dpo"])
def runs(request: pytest.FixtureRequest, random_model: Path, tmp_path: Path) -> Runs:
    rows = {"sft": chats, "dpo": pairs}[request.param]
    return Runs(request.param, random_model, tmp_path, rows)


def test_a_run_that_is_continued_gives_the_numbers_of_one_that_was_not(runs: Runs) -> None:
    whole = runs.run("whole")
    runs.run("parts", trainer__max_training_steps=3)
    assert without_times(runs.run("parts"))[4:] == without_times(whole)[4:]
    assert [line["step"] for line in whole] == list(range(9))


def test_micro_batches_change_nothing_but_rounding(runs: Runs) -> None:
    large = runs.run("large", trainer__epochs=1)
    small = runs.run("small", trainer__epochs=1, trainer__micro_train_batch_size_per_gpu=1)
    for one, two in zip(large[1:], small[1:], strict=True):
        for name in ("policy/policy_loss", "policy/grad_norm"):
            assert one[name] == pytest.approx(two[name], rel=1e-4)


def test_dpo_learns_to_prefer_what_is_preferred(random_model: Path, tmp_path: Path) -> None:
    lines = Runs("dpo", random_model, tmp_path, pairs).run("dpo")
    assert lines[0]["eval/all/accuracy"] == 0  # nothing is preferred yet
    assert lines[0]["eval/all/loss"] == pytest.approx(0.6931, abs=1e-3)
    assert lines[-1]["eval/all/accuracy"] == 1
    assert lines[-1]["policy/loss_metrics/accuracy"] == 1
    assert lines[-1]["policy/loss_metrics/reward_margin"] > 0
    assert lines[-1]["policy/policy_loss"] < 0.6
    assert lines[-1]["loss/incomplete_pairs"] == 0


def test_the_loss_on_held_out_rows_falls_and_is_told_by_source(
    random_model: Path, tmp_path: Path
) -> None:
    lines = Runs("sft", random_model, tmp_path, chats).run("sft", trainer__epochs=8)
    assert lines[-1]["eval/chat/loss"] < lines[0]["eval/chat/loss"] - 0.5  # of other numbers
    assert lines[0]["eval/chat/loss"] == lines[0]["eval/all/loss"]
    assert lines[0]["eval/chat/num_tokens"] == 6 * len("4141<")


def test_a_run_without_the_console_still_says_what_it_came_to(
    random_model: Path, tmp_path: Path
) -> None:
    runs = Runs("dpo", random_model, tmp_path, pairs)
    values = runs.values | {"trainer.run_name": "quiet", "trainer.logger": []}
    outcome = skyrl("run", "--plugin", "dpo", *settings(values | {"trainer.epochs": 1}))
    assert "held-out accuracy: 0.000 → " in outcome.out
    assert "held-out loss: 0.693 → " in outcome.out


@pytest.mark.parametrize("what", ["all_assistant_messages", "all_tokens"])
def test_more_of_a_conversation_can_be_trained_on(
    random_model: Path, tmp_path: Path, what: str
) -> None:
    runs = Runs("sft", random_model, tmp_path, chats)
    lines = runs.run("more", trainer__sft__train_on_what=what, trainer__epochs=1)
    template = "say 20\n20<say again\n2020<"
    expected = {"all_assistant_messages": len("20<2020<"), "all_tokens": None}[what]
    tokens = lines[1]["policy/trained_tokens"] / 4  # of a mini-batch of 4 rows
    if expected is None:
        assert len(template) - 5 <= tokens <= len(template) + 5
    else:
        assert tokens == expected


@pytest.mark.parametrize("plugin", ["sft", "dpo"])
def test_a_checkpoint_can_be_evaluated_later(
    plugin: str, random_model: Path, tmp_path: Path
) -> None:
    runs = Runs(plugin, random_model, tmp_path, {"sft": chats, "dpo": pairs}[plugin])
    last = runs.run("run", trainer__epochs=1)[-1]
    outcome = skyrl("eval", "--json", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)["metrics"]
    for name, value in found.items():
        assert value == pytest.approx(last[name], rel=1e-5), name


# --- a teacher -------------------------------------------------------------------------------


def distil(model: Path, folder: Path, teacher: Path | None) -> Outcome:
    values = BASE | {
        "trainer.policy.model.path": str(model),
        "trainer.ckpt_path": str(folder),
        "trainer.run_name": "student",
        "trainer.max_training_steps": 1,
        "trainer.max_prompt_length": 256,
        "generator.n_samples_per_prompt": 2,
        "generator.sampling_params.max_generate_length": 6,
        "data.train_data": ["multiply:train"],
        "data.val_data": [],
        "environment.multiply.train_size": 8,
    }
    if teacher is not None:
        values["trainer.teacher.model.path"] = str(teacher)
    return skyrl("run", "--plugin", "distillation", "--plugin", "multiply", *settings(values))


def test_a_teacher_that_is_the_student_teaches_nothing(random_model: Path, tmp_path: Path) -> None:
    outcome = distil(random_model, tmp_path, random_model)
    assert outcome.code == 0, outcome.err
    (line,) = RunFolder(tmp_path / "student").read_metrics()
    assert line["loss/teacher_kl"] == pytest.approx(0, abs=1e-5)
    assert line["policy/loss_metrics/importance_ratio"] == pytest.approx(1, abs=1e-3)


def test_a_missing_teacher_and_one_with_other_tokens_are_refused(
    random_model: Path, tmp_path: Path
) -> None:
    assert "trainer.teacher.model.path is not set" in distil(random_model, tmp_path, None).complaint
    other = tmp_path / "other"
    other.mkdir()
    for file in random_model.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    content = json.loads((other / "tokenizer.json").read_text())
    words = content["model"]["vocab"]
    words["a"], words["b"] = words["b"], words["a"]
    (other / "tokenizer.json").write_text(json.dumps(content))
    complaint = distil(random_model, tmp_path, other).complaint
    assert "has another tokenizer than trainer.policy.model.path" in complaint
