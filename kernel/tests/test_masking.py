import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skyrl_kernel.config.tree import Config
from skyrl_kernel.masking import MASK, is_secret_key, known_secrets, mask_secrets


@pytest.mark.parametrize(
    "key",
    ["api_key", "WANDB_API_KEY", "HF_TOKEN", "token", "openaiApiKey", "trainer.x.password",
     "client_secret", "aws_secret_access_key", "Authorization", "hub_token", "credentials"],
)  # fmt: skip
def test_keys_that_name_a_secret_are_known(key):
    assert is_secret_key(key)


@pytest.mark.parametrize(
    "key",
    ["max_tokens", "tokenizer", "generate/avg_num_tokens", "eos_token", "stop_token_ids", "key",
     "loss_reduction", "token_mean", "keyword", "secretary", "max_ckpts_to_keep"],
)  # fmt: skip
def test_keys_that_only_look_like_it_are_left_alone(key):
    assert not is_secret_key(key)


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("using sk-abcdefghijklmnop1234 now", "using *** now"),
        ("hf_abcdefghijklmnopqrstuv", "***"),
        ("https://me:pass@host/x?api_key=abc&y=1", "https://***@host/x?api_key=***&y=1"),
        ('{"password": "hunter2", "user": "me"}', '{"password": "***", "user": "me"}'),
        ("Authorization: Bearer abcdefgh12345", "Authorization: *** ***"),
        ("AKIAIOSFODNN7EXAMPLE", "***"),
        ("step 20: reward=0.5 tokens=12", "step 20: reward=0.5 tokens=12"),
        ("task-specific risk-averse", "task-specific risk-averse"),
    ],
)
def test_text_loses_what_looks_like_a_secret_and_nothing_else(text, masked):
    assert mask_secrets(text) == masked


def test_values_under_a_secret_key_go_whole_and_at_any_depth():
    tree = {"wandb": {"api_key": "0123", "tags": ["a"]}, "password": 1234, "token": None}
    assert mask_secrets(tree) == {
        "wandb": {"api_key": MASK, "tags": ["a"]},
        "password": MASK,
        "token": None,
    }
    assert mask_secrets({"secrets": {"a": "x", "b": ["y"]}}) == {
        "secrets": {"a": MASK, "b": [MASK]}
    }


def test_the_values_of_secret_environment_variables_are_masked_wherever_they_stand():
    known = known_secrets({"MY_TOKEN": "correct horse", "HOME": "/home/me", "SHORT_TOKEN": "abc"})
    assert known == ("correct horse",)
    assert known_secrets({"PWD": "/home/me/place", "GOOGLE_CREDENTIALS": __file__}) == ()
    assert mask_secrets("said: correct horse!", known) == "said: ***!"


def test_the_kernels_own_config_holds_nothing_that_is_masked():
    tree = Config().model_dump(mode="json")
    assert mask_secrets(tree) == tree


@settings(max_examples=50, deadline=None)
@given(st.text("abcdef =:/@._-k", max_size=60))
def test_masking_twice_masks_nothing_more(text):
    once = mask_secrets(text)
    assert mask_secrets(once) == once


def test_masking_a_long_word_takes_linear_time():
    begun = time.perf_counter()
    mask_secrets("a" * 300_000)
    assert (
        time.perf_counter() - begun < 1.0
    )  # 10 ms here; starting over at every letter took minutes
