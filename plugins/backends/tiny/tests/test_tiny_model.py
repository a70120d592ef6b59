"""Making `builtin:tiny`: an ordinary model, the same each time, made once, whole or not at all."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from skyrl_kernel.errors import ModelError
from skyrl_multiply.problems import messages
from skyrl_tiny import teacher, tokenizer
from skyrl_tiny.plugin import cache_folder, load_model, make_once
from skyrl_tiny.recipe import RECIPE, RETRY, Recipe, build, reply
from skyrl_transformers.loading import no_progress_bars

SHORT = Recipe(steps=3, batch_size=4)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def made(folder: Path, seed: int = 0, recipe: Recipe = SHORT) -> Path:
    folder.mkdir()
    build(seed, folder, recipe)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("tiny") / "model")


def bits(folder: Path) -> dict[str, bytes]:
    return {
        file.name: file.read_bytes()
        for file in folder.iterdir()
        if file.suffix == ".safetensors" or file.name.startswith("tokenizer")
    }


# --- what is made -------------------------------------------------------------------------


def test_it_is_an_ordinary_hugging_face_directory(model: Path) -> None:
    with no_progress_bars():
        loaded, info = AutoModelForCausalLM.from_pretrained(
            model, dtype=torch.float32, output_loading_info=True
        )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    read = AutoTokenizer.from_pretrained(model)
    ids = read.apply_chat_template(
        messages(272, 5), add_generation_prompt=True, return_tensors="pt", return_dict=False
    )
    out = loaded.generate(ids, max_new_tokens=4, do_sample=False)
    assert out.shape[1] <= ids.shape[1] + 4
    assert loaded.config.vocab_size == len(read)
    assert loaded.config.eos_token_id == read.eos_token_id
    assert sum(p.numel() for p in loaded.parameters()) < 500_000


def test_only_the_model_is_left_of_the_making(model: Path) -> None:
    assert {file.name for file in model.iterdir()} == {
        *("config.json", "generation_config.json", "model.safetensors"),
        *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "recipe.json"),
    }


def test_the_one_that_tries_again_is_made_alike(tmp_path: Path) -> None:
    short = replace(RETRY, steps=3, batch_size=4)
    model = made(tmp_path / "a", recipe=short)
    assert bits(made(tmp_path / "b", recipe=short)) == bits(model)
    read = AutoTokenizer.from_pretrained(model)
    assert len(read) == tokenizer.VOCABULARY
    said = reply(272, 5, r"\boxed{1260}")["content"]
    # A character is a token at worst; the reply's words are among the tokenizer's.
    assert len(read.encode(said)) < len(said) / 2.5


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(
    model: Path, tmp_path: Path
) -> None:
    assert bits(made(tmp_path / "again")) == bits(model)
    other = bits(made(tmp_path / "other", seed=1))
    assert other["model.safetensors"] != bits(model)["model.safetensors"]
    assert other["tokenizer.json"] == bits(model)["tokenizer.json"]


@pytest.mark.slow
def test_the_real_recipe_gives_the_same_bits_twice(tmp_path: Path) -> None:
    assert bits(made(tmp_path / "a", recipe=RECIPE)) == bits(made(tmp_path / "b", recipe=RECIPE))


def test_making_it_prints_plain_lines_and_no_bar(tmp_path: Path) -> None:
    script = (
        "from pathlib import Path; from skyrl_tiny.recipe import Recipe, build; "
        f"build(0, Path({str(tmp_path)!r}), Recipe(steps=3, batch_size=4))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert "making builtin:tiny (once): step 3/3" in done.stdout
    assert done.stderr == ""
    assert "%|" not in done.stdout


# --- the recipe's digest ------------------------------------------------------------------


@pytest.mark.parametrize(
    "other",
    [
        replace(RECIPE, steps=401),
        replace(RECIPE, batch_size=16),
        replace(RECIPE, shape={**RECIPE.shape, "hidden_size": 64}),
        replace(RECIPE, optimizer={**RECIPE.optimizer, "lr": 1e-3}),
    ],
)
def test_another_recipe_has_another_digest(other: Recipe) -> None:
    assert other.digest() != RECIPE.digest() == Recipe().digest()


def test_the_demos_model_is_the_one_of_the_recorded_results() -> None:
    """Do not "fix" this test: another digest is another model, and benchmarks/ has to be run again."""
    assert RECIPE.digest() == "631f43246645"


@pytest.mark.parametrize(
    "other",
    [
        replace(RETRY, wrong_frac=0.5),
        replace(RETRY, stubborn_frac=0.5),
        replace(RETRY, retry_frac=0.4),
        Recipe(steps=RETRY.steps),
    ],
)
def test_another_way_to_teach_second_tries_has_another_digest(other: Recipe) -> None:
    assert other.digest() != RETRY.digest()


def test_another_teacher_or_tokenizer_is_another_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    digests = {RECIPE.digest()}
    for module, name, value in (
        (tokenizer, "VOCABULARY", 512),
        (tokenizer, "CHAT_TEMPLATE", "{{ messages }}"),
        (tokenizer, "_WHO", ["nobody"]),
        (teacher, "is_held_out", lambda a, b: a == b),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, value)
            digests.add(RECIPE.digest())
    assert len(digests) == 5


# --- the cache ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["huge", "tiny@", "tiny@x", "tiny@-1", "tiny-retry@", "tiny-try", "TINY", ""]
)
def test_a_name_that_is_no_built_in_model_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(ModelError) as caught:
        load_model(f"builtin:{name}")
    message = str(caught.value)
    assert message == (
        f"no built-in model 'builtin:{name}'; there are builtin:tiny and builtin:tiny-retry, and "
        "each with @SEED, such as builtin:tiny@3"
    )


def test_a_path_of_somebody_else_is_not_answered() -> None:
    assert load_model("elsewhere:tiny") is None


def test_the_cache_can_be_put_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SKYRL_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path / "models"


def test_a_model_in_the_cache_is_not_made_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SKYRL_CACHE", str(tmp_path))
    for name, recipe in (("tiny", RECIPE), ("tiny-retry", RETRY)):
        there = tmp_path / "models" / f"{name}-{recipe.digest()}-seed5"
        there.mkdir(parents=True)
        assert load_model(f"builtin:{name}@5") == there
        assert list(there.iterdir()) == []


MAKER = """
import os, sys, time
from pathlib import Path
from skyrl_tiny.plugin import make_once

def make(folder):
    with (folder.parent / "makers").open("a") as file:
        file.write(f"{os.getpid()}\\n")
    (folder / "half").touch()
    time.sleep(float(sys.argv[2]))
    (folder / "half").rename(folder / "whole")

make_once(Path(sys.argv[1]), make)
"""


def maker(folder: Path, seconds: float) -> "subprocess.Popen[bytes]":
    """A process that asks for ``folder``, and needs so long to make it."""
    return subprocess.Popen([sys.executable, "-c", MAKER, str(folder), str(seconds)])


def test_of_several_processes_that_ask_at_once_one_makes_it(tmp_path: Path) -> None:
    target = tmp_path / "cache" / "it"
    makers = [maker(target, 1.0) for _ in range(3)]
    assert [one.wait() for one in makers] == [0, 0, 0]
    assert len((target.parent / "makers").read_text().splitlines()) == 1
    assert [file.name for file in target.iterdir()] == ["whole"]


def test_a_killed_maker_leaves_nothing_that_passes_for_a_model(tmp_path: Path) -> None:
    target = tmp_path / "it"
    doomed = maker(target, 600)
    while not list(tmp_path.glob("**/half")):
        time.sleep(0.01)
    doomed.send_signal(signal.SIGKILL)
    doomed.wait()
    assert not target.exists()

    assert maker(target, 0).wait() == 0  # it waits for no one, and makes it anew
    assert [file.name for file in target.iterdir()] == ["whole"]
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"it", "it.lock", "makers"}  # the dead one's leftover is gone


def test_a_maker_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        make_once(tmp_path / "it", fail)
    assert {path.name for path in tmp_path.iterdir()} == {"it.lock"}
