"""The env beside that of the package skyrl-gym: equal rewards and equal readings."""

import random

import pytest

from skyrl_aime.env import AimeEnv
from skyrl_aime.normalise import normalise

ANSWERS = 6000
TRUTHS = (
    *("42", "0", "-7", "1,234", "007", "3.5", "(1,2)", "1,2", "½", "²", "x+1", "[INVALID]"),
    *(r"\frac{1}{2}", r"\frac12", r"\frac 3 4", r"3\sqrt{2}", r"\sqrt2", r"\sqrt 23", r"\dfrac34"),
    *(
        r"\text{Monday}",
        r"\textbf{(C)}",
        r"\overline{AB}",
        r"30^\circ",
        r"2\pi",
        "$17$",
        "$a$ or $b$",
    ),
    *(
        r"\boxed{5}",
        r"\boxed{\frac{1}{2}}",
        "12 cm",
        "5 square feet",
        r"\$20",
        r"1{,}000",
        "issue 9",
    ),
    *("a + b", "an apple", "y = 3", "A=B=7", "points", "", " ", "100\\%", "\\text{\ns}3", "{", "}"),
)
SPELLINGS = (
    *("{}", "{} ", "${}$", "$ {} $.", r"\boxed{{{}}}", r"$\boxed{{{}}}$", r"\text{{{}}}", "x = {}"),
    *("{} cm", r"{} \text{{ dollars}}", r"{}^\circ", r"\mbox{{{}}}", '"{}"', r"\textbf{{{}}}"),
    *("{}<|im_end|>", "{}<", "{}im_end|>", "{}.", "{},", "{}\n", "{}\nand so on", "={}", "{}{}"),
    *(r"\frac{}{}", r"\sqrt{}", r"\frac{{{}}}{{2}}", "about {}", "a {}", r"{}\!", r"{}\;", r"\ {}"),
)
FRAMES = (
    *("Answer: {}", "answer:{}", "ANSWER :\n {}", "Final Answer: {}", "So.\nAnswer: {}"),
    *("Answer: 1\nAnswer: {}", "Answer: {}\nAnswer: 1", "Answer = {}", "The answer is {}", "{}"),
    *("Answer:: {}", "Answer:\n\n{}", "日本 Answer: {}", "Answer\u00a0: {}"),
)
PIECES = (
    *"0123456789abxsue{}$\\,.=^ \n<",
    r"\frac",
    r"\sqrt",
    r"\text{",
    r"\boxed{",
    "Answer:",
    "an ",
)


def completion_for(rng: random.Random, truth: str) -> str:
    """Most answers are right but for their spelling; some are anything."""
    if rng.random() < 0.1:
        return "Answer: " + "".join(rng.choices(PIECES, k=rng.randint(0, 30)))
    answer = truth if rng.random() < 0.8 else rng.choice(TRUTHS)
    spelling = SPELLINGS[0] if rng.random() < 0.3 else rng.choice(SPELLINGS)
    frame = FRAMES[0] if rng.random() < 0.5 else rng.choice(FRAMES)
    said = frame.format(
        spelling.replace("{}", answer, 2) if "{{" not in spelling else spelling.format(answer)
    )
    padding = "." * rng.choice([0, 0, 0, 280, 290, 300])
    return padding + said if rng.random() < 0.9 else said + "\n" + padding


@pytest.mark.slow
def test_aime_gives_what_skyrl_gym_gives() -> None:
    theirs = pytest.importorskip("skyrl_gym.envs.aime.env", reason="not checked: no skyrl-gym")
    rng = random.Random(1)
    right = 0
    for _ in range(ANSWERS):
        truth = rng.choice(TRUTHS)
        row = {"reward_model": {"ground_truth": truth}}
        action = completion_for(rng, truth)
        own, other = AimeEnv(row).step(action), theirs.AIMEEnv(extras=row).step(action)
        assert own == other, (truth, action)
        right += own["reward"] == 1.0
    assert ANSWERS / 3 < right < ANSWERS


@pytest.mark.slow
def test_the_spelling_of_anything_is_skyrl_gyms() -> None:
    theirs = pytest.importorskip("skyrl_gym.envs.aime.utils", reason="not checked: no skyrl-gym")
    rng = random.Random(2)
    for _ in range(20_000):
        text = "".join(rng.choices((*PIECES, *TRUTHS), k=rng.randint(0, 12)))
        assert normalise(text) == theirs.normalize_final_answer(text), text
