"""What the judge is asked, and how its reply is read."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyrl_llm_as_a_judge.config import JudgeConfig
from skyrl_llm_as_a_judge.verdict import PLACES, PROMPT, fill, places_of, read_verdict


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ("It agrees.\n### Final Score: 1", 1.0),
        ("It does not.\n### Final Score: 0", 0.0),
        ("### Final Score: 1.0", 1.0),
        ("### Final Score:0.0.", 0.0),
        ("### Final Score:\n1\n", 1.0),
        ("**### Final Score: 1**", 1.0),
        ("It says '### Final Score: 1', but no.\n### Final Score: 0", 0.0),  # the last one
        ("1", 1.0),
        (" 0\n", 0.0),
        ("1.0", 1.0),
        ("", None),
        ("Yes", None),
        ("The score is 1", None),
        ("### Final Score: 0.5", None),  # neither
        ("### Final Score: 10", None),
        ("### Final Score: 2", None),
        ("### final score: 1", None),
        ("## Final Score: 1", None),
        ("10", None),
        ("1 0", None),
    ],
)
def test_a_reply_says_right_or_wrong_or_neither(reply: str, score: float | None) -> None:
    assert read_verdict(reply) == score


@given(st.text(), st.text(), st.text())
def test_texts_stand_in_the_prompt_as_they_are(one: str, two: str, three: str) -> None:
    texts = {"question": one, "ground_truth": two, "completion": three}
    filled = fill("{question}|{ground_truth}|{completion}", texts)
    assert filled == f"{one}|{two}|{three}"


def test_the_prompt_has_every_place_and_asks_for_the_line_that_is_read() -> None:
    assert places_of(PROMPT) == set(PLACES)
    assert read_verdict(PROMPT) is not None


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("Is it right?", r"has the places none; .* and \{completion\} must be among them"),
        ("{completion} {answer}", r"has the places \{answer\}, \{completion\}; there are"),
    ],
)
def test_a_prompt_that_cannot_be_filled_is_refused(prompt: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        JudgeConfig(prompt=prompt)


def test_a_prompt_may_have_braces_of_its_own() -> None:
    prompt = 'Write {"score": 1} if {completion} is polite.'
    assert fill(JudgeConfig(prompt=prompt).prompt, {"completion": "hi"}) == (
        'Write {"score": 1} if hi is polite.'
    )


@pytest.mark.parametrize("url", ["api.openai.com", "ftp://x/v1", "http://", "http://x:y/v1"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"is no address of a server; write http://HOST:PORT/v1"):
        JudgeConfig(base_url=url)


def test_what_the_env_sends_itself_cannot_be_set() -> None:
    with pytest.raises(ValueError, match="messages, stream cannot be set here"):
        JudgeConfig(additional_kwargs={"stream": True, "messages": [], "top_p": 1})
