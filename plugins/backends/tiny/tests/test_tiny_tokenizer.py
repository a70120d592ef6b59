"""The tokenizer takes any text, keeps digits apart, and has a template that only appends."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from skyrl_multiply.problems import messages
from skyrl_tiny import tokenizer
from skyrl_tiny.teacher import worked_examples

any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
turns = st.lists(any_text, min_size=1, max_size=4).map(
    lambda texts: [
        {"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)
    ]
)
reading = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_tokenizer(made)
    return made


@pytest.fixture(scope="module")
def read(folder: Path) -> PreTrainedTokenizerFast:
    """As anybody reads it from the directory."""
    return AutoTokenizer.from_pretrained(folder)


@reading
@given(any_text)
def test_any_text_comes_back_as_it_was(read: PreTrainedTokenizerFast, text: str) -> None:
    ids = read.encode(text, add_special_tokens=False)
    assert read.decode(ids, skip_special_tokens=False) == text
    assert read.unk_token_id is None


@reading
@given(st.integers(0, 10**9), any_text)
def test_every_digit_is_a_token_of_its_own(
    read: PreTrainedTokenizerFast, number: int, text: str
) -> None:
    for token in read.encode(f"{text}{number}{text}", add_special_tokens=False):
        decoded = read.decode([token])
        assert len(decoded) == 1 or not any(c in "0123456789" for c in decoded)


@reading
@given(turns, any_text)
def test_the_template_only_appends(
    read: PreTrainedTokenizerFast, conversation: list[dict[str, str]], more: str
) -> None:
    def ids(messages: list[dict[str, str]], generate: bool) -> list[int]:
        return read.apply_chat_template(
            messages, add_generation_prompt=generate, tokenize=True, return_dict=False
        )

    longer = [*conversation, {"role": "user", "content": more}]
    before, after = ids(conversation, False), ids(longer, False)
    assert after[: len(before)] == before
    prompt = ids(conversation, True)
    assert prompt[: len(before)] == before
    answered = ids([*conversation, {"role": "assistant", "content": more}], False)
    assert answered[: len(prompt)] == prompt


def test_special_tokens_are_what_the_template_writes(read: PreTrainedTokenizerFast) -> None:
    text = read.apply_chat_template(messages(272, 5), add_generation_prompt=True, tokenize=False)
    assert text.startswith("<|im_start|>system\n")
    assert text.endswith("<|im_start|>user\n272 * 5<|im_end|>\n<|im_start|>assistant\n")
    assert read.eos_token == "<|im_end|>"
    assert read.pad_token not in (None, read.eos_token)
    for token in ("<|im_start|>", "<|im_end|>", "<|endoftext|>"):
        assert len(read.encode(token, add_special_tokens=False)) == 1


def test_the_vocabulary_is_small_and_made_for_prompts_and_examples(
    read: PreTrainedTokenizerFast,
) -> None:
    assert len(read) == tokenizer.VOCABULARY
    prompt = read.apply_chat_template(
        messages(272, 5), add_generation_prompt=True, tokenize=True, return_dict=False
    )
    assert len(prompt) < 64
    for _, text in worked_examples(1, 20):
        assert len(read.encode(text)) < 48  # what the demo lets the model generate


def test_it_is_the_same_each_time(folder: Path, tmp_path: Path) -> None:
    tokenizer.save_tokenizer(tmp_path)
    for file in folder.iterdir():
        assert (tmp_path / file.name).read_bytes() == file.read_bytes()
