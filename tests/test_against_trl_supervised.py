"""What is learned from examples and from preferences, against TRL; see `test_against_trl`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip(
    "trl",
    reason="not checked: SFT and DPO against TRL, which is not installed; "
    "`pip install trl`, or `make install`",
)

from trl_side import Models, Outcome, Supervised, assert_agree, make_models, ours, read_rows

from skyrl_kernel.records import Group

# TRL's dependencies warn of each other.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return make_models(tmp_path_factory.mktemp("models"))


# --- supervised fine-tuning -------------------------------------------------------------------

ANSWERS = (("2 * 3", "6"), ("7 * 8 = ?", "I think it is 56."), ("Hi", "Good morning!"))
TEMPLATE = (
    "{% for message in messages %}"
    "{{ '\\n' if not loop.first }}<|im_start|>{{ message.role }}{{ '\\n' }}"
    "{% if message.role == 'assistant' %}"
    "{% generation %}{{ message.content }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ message.content }}<|im_end|>{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\n<|im_start|>assistant\\n' }}{% endif %}"
)
"""ChatML, which writes its newline before a message and not after it; and says what is generated."""


def chat(question: str, answer: str) -> dict[str, Any]:
    return {
        "prompt": [{"role": "user", "content": question}],
        "completion": [{"role": "assistant", "content": answer}],
    }


ROWS = [{"prompt": chat(*pair)["prompt"], "response": pair[1]} for pair in ANSWERS]


def assert_same_rows(groups: Sequence[Group], rows: Sequence[dict[str, list[int]]]) -> None:
    """The same tokens, and the same of them trained on; nothing predicts a first token."""
    for group, row in zip(groups, rows, strict=True):
        (segment,) = group.trajectories[0].segments
        assert segment.tokens.tolist() == row["input_ids"]
        labels = np.where(segment.loss_mask, segment.tokens, -100)
        assert labels[1:].tolist() == row["labels"][1:]


def test_sfts_rows_and_loss_are_trls(models: Models, tmp_path: Path) -> None:
    theirs = Supervised(
        "sft", models, [chat(*pair) for pair in ANSWERS], tmp_path, chat_template=TEMPLATE
    )
    groups = read_rows(models, ("sft",), ROWS, chat_template=TEMPLATE)
    assert_same_rows(groups, theirs.rows)
    assert_agree(ours(models, groups, ("sft",)), theirs.step())


CONVERSATIONS = [
    {"messages": [{"role": role, "content": text} for role, text in turns]}
    for turns in (
        [("user", "2 * 3"), ("assistant", "6"), ("user", "Sure?"), ("assistant", "Yes, it is 6.")],
        [("system", "Be short."), ("user", "Hi"), ("assistant", "Hi.")],
    )
]


@pytest.mark.parametrize(
    ("what", "options"),
    [("all_assistant_messages", {"assistant_only_loss": True}), ("all_tokens", {})],
)
def test_what_sft_learns_of_a_conversation_is_what_trl_does(
    models: Models, tmp_path: Path, what: str, options: dict[str, Any]
) -> None:
    theirs = Supervised("sft", models, CONVERSATIONS, tmp_path, chat_template=TEMPLATE, **options)
    setting = {"trainer.sft.train_on_what": what}
    groups = read_rows(models, ("sft",), CONVERSATIONS, chat_template=TEMPLATE, **setting)
    assert_same_rows(groups, theirs.rows)
    assert_agree(ours(models, groups, ("sft",)), theirs.step())


def test_sft_does_not_train_on_what_the_template_writes_after_the_end_of_turn(
    models: Models, tmp_path: Path
) -> None:
    """TRL trains on the newline there. Generation has stopped before it, so we leave it out."""
    theirs = Supervised("sft", models, [chat(*pair) for pair in ANSWERS], tmp_path)
    for group, row in zip(read_rows(models, ("sft",), ROWS), theirs.rows, strict=True):
        (segment,) = group.trajectories[0].segments
        *tokens, newline = row["input_ids"]
        assert segment.tokens.tolist() == tokens
        assert row["labels"][-1] == newline != segment.tokens[-1]


# --- preferences ------------------------------------------------------------------------------

PAIRS = (
    ("2 * 3", "It is 6.", "5"),
    ("7 * 8 = ?", "56", "I think it is 54, or so."),
    ("Hi", "Good morning!", "Hi."),
)


def preference(question: str, chosen: str, rejected: str) -> dict[str, Any]:
    answers = {
        side: [{"role": "assistant", "content": text}]
        for side, text in (("chosen", chosen), ("rejected", rejected))
    }
    return {"prompt": [{"role": "user", "content": question}], **answers}


def dpo_of_both(
    models: Models,
    folder: Path,
    pairs: Sequence[tuple[str, str, str]],
    changes: dict[str, Any],
    options: dict[str, Any],
) -> tuple[Outcome, Outcome]:
    """Ours and TRL's."""
    rows = [preference(*pair) for pair in pairs]
    groups = read_rows(models, ("dpo",), rows, chat_template=TEMPLATE)
    mine = ours(models, groups, ("dpo",), **{f"dpo.{key}": v for key, v in changes.items()})
    theirs = Supervised("dpo", models, rows, folder, chat_template=TEMPLATE, **options)
    return mine, theirs.step()


@pytest.mark.parametrize("loss_type", ["sigmoid", "hinge"])
def test_dpos_loss_is_trls(models: Models, tmp_path: Path, loss_type: str) -> None:
    beta = 0.3
    mine, theirs = dpo_of_both(
        models,
        tmp_path,
        PAIRS,
        {"beta": beta, "loss_type": loss_type},
        {"beta": beta, "loss_type": loss_type},
    )
    assert_agree(mine, theirs)
    for name, theirs_name in (
        ("accuracy", "rewards/accuracies"),
        ("reward_margin", "rewards/margins"),
        ("chosen_reward", "rewards/chosen"),
        ("rejected_logprob", "logps/rejected"),
    ):
        assert mine.metrics[f"loss_metrics/{name}"] == pytest.approx(
            theirs.metrics[theirs_name], rel=1e-4
        )


def test_label_smoothing_is_trls_loss_of_the_pairs_both_ways_round(
    models: Models, tmp_path: Path
) -> None:
    """TRL 1.16 has no cDPO; it is (1 - ε) of its loss and ε of that of the pairs turned around."""
    smoothing = {"beta": 0.3, "label_smoothing": 0.2}
    turned = [(question, rejected, chosen) for question, chosen, rejected in PAIRS]
    mine, right = dpo_of_both(models, tmp_path, PAIRS, smoothing, {"beta": 0.3})
    _, wrong = dpo_of_both(models, tmp_path, turned, smoothing, {"beta": 0.3})
    mixed = Outcome(
        loss=0.8 * right.loss + 0.2 * wrong.loss,
        gradients={
            name: 0.8 * gradient + 0.2 * wrong.gradients[name]
            for name, gradient in right.gradients.items()
        },
        metrics={},
    )
    assert_agree(mine, mixed)


def test_ipo_of_means_is_trls(models: Models, tmp_path: Path) -> None:
    mine, theirs = dpo_of_both(
        models,
        tmp_path,
        PAIRS,
        {"beta": 0.3, "loss_type": "ipo_mean"},
        {"beta": 0.3, "loss_type": "ipo"},
    )
    assert_agree(mine, theirs)


def test_ipo_sums_over_tokens_where_trl_averages(models: Models, tmp_path: Path) -> None:
    """The paper's log π(y|x) is a sum, and so is ours; TRL takes the mean.

    With answers of n tokens each, (Δ - 1/2β)² = n² (Δ/n - 1/2βn)²: TRL's loss at β·n, times n².
    """
    even = [("2 * 3", "six", "two"), ("7 * 8 = ?", "56.", "49."), ("Hi", "Hi!", "Ho!")]
    n = 4  # three letters and the end of the turn
    mine, theirs = dpo_of_both(
        models,
        tmp_path,
        even,
        {"beta": 0.3, "loss_type": "ipo"},
        {"beta": 0.3 * n, "loss_type": "ipo"},
    )
    scaled = Outcome(
        loss=theirs.loss * n**2,
        gradients={name: gradient * n**2 for name, gradient in theirs.gradients.items()},
        metrics={},
    )
    assert_agree(mine, scaled)
