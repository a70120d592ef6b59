import json
import subprocess
import sys
import tomllib
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from skyrl_kernel.config import GeneratorConfig
from skyrl_kernel.defaults.agent import Agent
from skyrl_kernel.errors import ConfigError, ModelError
from skyrl_kernel.testing.scripted.episode import play
from skyrl_kernel.token_rows import StepRows
from skyrl_transformers import plugin
from skyrl_transformers import tokenizer as tokenizer_module
from skyrl_transformers.loading import load_causal_lm
from skyrl_transformers.testing import write_random_model
from skyrl_transformers.tokenizer import HuggingFaceTokenizer, eos_token_ids

CHAT = [{"role": "user", "content": "2 * 3"}, {"role": "assistant", "content": "6"}]


def test_text_goes_to_ids_and_back(llama: Path) -> None:
    tokenizer = HuggingFaceTokenizer(llama)
    for text in ("6 * 7 = 42", "größer 🙂\n", ""):
        ids = tokenizer.encode(text)
        assert ids.dtype == np.int32
        assert len(ids) == len(text.encode())  # one id per byte
        assert tokenizer.decode(ids) == text


def test_a_conversation_is_formatted_by_the_model_s_template(llama: Path) -> None:
    tokenizer = HuggingFaceTokenizer(llama)
    expected = (
        "<|im_start|>user\n2 * 3<|im_end|>\n<|im_start|>assistant\n6<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    ids = tokenizer.encode_chat(CHAT, add_generation_prompt=True)
    assert ids.dtype == np.int32
    assert AutoTokenizer.from_pretrained(llama).decode(ids.tolist()) == expected
    assert tokenizer.decode(ids) == "user\n2 * 3\nassistant\n6\nassistant\n"  # specials left out
    assert tokenizer.decode(ids, skip_special_tokens=False) == expected
    without = tokenizer.encode_chat(CHAT, add_generation_prompt=False)
    assert ids[: len(without)].tolist() == without.tolist()


def test_template_arguments_reach_the_template(tmp_path: Path) -> None:
    write_random_model(tmp_path, chat_template="{{ mood }}")
    tokenizer = HuggingFaceTokenizer(tmp_path, {"mood": "calm"})
    ids = tokenizer.encode_chat(CHAT, add_generation_prompt=True)
    assert tokenizer.decode(ids) == "calm"


def test_a_tokenizer_without_chat_template_says_what_to_do(tmp_path: Path) -> None:
    write_random_model(tmp_path, chat_template=None)
    tokenizer = HuggingFaceTokenizer(tmp_path)
    with pytest.raises(
        ModelError, match=r"has no chat template.*put a chat_template.jinja"
    ) as info:
        tokenizer.encode_chat(CHAT, add_generation_prompt=True)
    assert "\n" not in str(info.value)


def test_end_ids_are_the_tokenizer_s_and_the_generation_config_s(tmp_path: Path) -> None:
    assert eos_token_ids(tmp_path, 7) == {7}
    (tmp_path / "config.json").write_text('{"eos_token_id": 3}')
    assert eos_token_ids(tmp_path, None) == {3}
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [4, 5]}')
    assert eos_token_ids(tmp_path, 7) == {4, 5, 7}


def test_a_directory_without_tokenizer_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ModelError, match=r"no tokenizer can be read from .* copy them") as info:
        HuggingFaceTokenizer(tmp_path)
    assert "\n" not in str(info.value)


def refusal(path: Path) -> str:
    with pytest.raises(ModelError) as info:
        load_causal_lm(path)
    message = str(info.value)
    assert "\n" not in message
    assert message.startswith(f"'{path}' cannot be loaded as a causal language model: ")
    assert message.endswith("set trainer.policy.model.path to one")
    return message


def test_paths_that_are_no_model_are_refused_with_what_was_found(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    assert "no config.json" in refusal(folder)
    (folder / "config.json").write_text("not json")
    refusal(folder)
    write_random_model(folder)
    (folder / "model.safetensors").unlink()
    assert "model.safetensors" in refusal(folder)
    (folder / "model.safetensors").write_bytes(b"nothing")
    refusal(folder)
    file = tmp_path / "file.txt"
    file.touch()
    assert "it is a file" in refusal(file)


def test_missing_tensors_are_not_made_up(tmp_path: Path) -> None:
    write_random_model(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert "1 of its tensors are missing: model.layers.1.mlp.up_proj.weight" in refusal(tmp_path)


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    model = write_random_model(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    assert "safetensors" in refusal(tmp_path)


def test_models_compute_in_float32_without_dropout_whatever_they_were_stored_in(
    tmp_path: Path,
) -> None:
    write_random_model(tmp_path, attention_dropout=0.5)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    module = load_causal_lm(tmp_path).train()
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    ids = torch.arange(9)[None]
    assert torch.equal(module(input_ids=ids).logits, module(input_ids=ids).logits)


def test_the_plugin_module_loads_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, skyrl_transformers.plugin; "
        "print({'torch', 'transformers', 'tokenizers'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"


def test_plugin_toml_names_the_slots_that_the_hooks_answer_to() -> None:
    text = files("skyrl_transformers").joinpath("plugin.toml").read_text(encoding="utf-8")
    entry = tomllib.loads(text)[plugin.NAME]
    assert entry["slots"] == ["generator.inference_engine.backend", "generator.tokenizer"]
    assert entry["preset"] == {"generator.inference_engine.backend": plugin.NAME}
    assert entry["config"] == []
    assert plugin.make_tokenizer("other", Path(), {}) is None
    assert plugin.make_engine("other", {}, Path()) is None


def test_what_is_kept_of_conversations_is_bounded_in_tokens(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer_module, "_MAX_CACHED_TOKENS", 60)
    tokenizer = HuggingFaceTokenizer(llama)
    first = tokenizer.encode_chat(CHAT[:1], add_generation_prompt=True)
    assert tokenizer.encode_chat(CHAT[:1], add_generation_prompt=True) is first
    for number in range(9):  # each about 25 tokens
        messages = [{"role": "user", "content": f"{number} * 3"}]
        tokenizer.encode_chat(messages, add_generation_prompt=True)
    again = tokenizer.encode_chat(CHAT[:1], add_generation_prompt=True)
    assert again is not first
    assert again.tolist() == first.tolist()
    long = [{"role": "user", "content": "x" * 99}]
    assert len(tokenizer.encode_chat(long, add_generation_prompt=True)) > 60


# --- chat templates ---------------------------------------------------------------------

THINKING: list[dict[str, str]] = [
    {"role": "user", "content": "2 * 3"},
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\n6"},
    {"role": "user", "content": "and 2 * 4"},
]


def configured(model: Path, **changes: Any) -> HuggingFaceTokenizer:
    config = GeneratorConfig(**changes)
    tokenizer = plugin.make_tokenizer(
        "transformers",
        model,
        {GeneratorConfig: config},  # type: ignore[arg-type]
    )
    assert isinstance(tokenizer, HuggingFaceTokenizer)
    return tokenizer


def text(tokenizer: HuggingFaceTokenizer, messages: list[dict[str, str]]) -> str:
    ids = tokenizer.encode_chat(messages, add_generation_prompt=True)
    return tokenizer.decode(ids)


@pytest.mark.parametrize(
    ("name", "answer"),
    [("qwen3_with_thinking", "<think>\nhm\n</think>\n\n6"), ("qwen3_without_thinking", "6")],
)
def test_named_templates_keep_or_drop_the_thinking_of_earlier_turns(
    llama: Path, name: str, answer: str
) -> None:
    tokenizer = configured(llama, chat_template={"name_or_path": name}, step_wise_trajectories=True)
    assert text(tokenizer, THINKING) == (
        f"user\n2 * 3\nassistant\n{answer}\nuser\nand 2 * 4\nassistant\n"
    )
    plain = [{"role": "system", "content": " a "}, *CHAT]
    assert text(tokenizer, plain) == text(HuggingFaceTokenizer(llama), plain)


def test_a_template_may_be_a_file(llama: Path, tmp_path: Path) -> None:
    file = tmp_path / "shout.jinja"
    file.write_text("{% for m in messages %}{{ m.content | upper }}{% endfor %}")
    template = {"source": "file", "name_or_path": str(file)}
    assert text(configured(llama, chat_template=template), CHAT) == "2 * 36"
    with pytest.raises(ConfigError, match=r"gone.jinja: No such file.*path of a Jinja template"):
        configured(llama, chat_template={"source": "file", "name_or_path": "gone.jinja"})


def test_a_template_that_would_change_nothing_is_refused(llama: Path) -> None:
    template = {"name_or_path": "qwen3_without_thinking"}
    with pytest.raises(ConfigError, match=r"rewrites earlier turns.*step_wise_trajectories=true"):
        configured(llama, chat_template=template)
    with pytest.raises(ConfigError, match=r"there are: qwen3_with_thinking, qwen3_without"):
        configured(llama, chat_template={"name_or_path": "qwen3"})


def test_steps_with_thinking_are_joined_and_without_are_not(llama: Path) -> None:
    joined = {}
    for name in ("qwen3_with_thinking", "qwen3_without_thinking"):
        tokenizer = configured(
            llama, chat_template={"name_or_path": name}, step_wise_trajectories=True
        )
        trajectory = play(
            ["<think>\nhm\n</think>\n\n6", "8"],
            {"rewards": [0.0, 1.0], "replies": ["and 2 * 4"]},
            tokenizer=tokenizer,
            agent=Agent(partial(StepRows, merge=True)),
        )
        joined[name] = trajectory.segments
        sampled = [*tokenizer.encode("8"), *tokenizer.eos_token_ids]
        last = trajectory.turns[-1]
        row = trajectory.segments[last.segment]
        assert row.tokens[last.start : last.stop].tolist() == sampled
    assert [len(segments) for segments in joined.values()] == [1, 2]
    first, second = joined["qwen3_without_thinking"]
    assert "hm" not in HuggingFaceTokenizer(llama).decode(second.tokens)
    assert "hm" in HuggingFaceTokenizer(llama).decode(first.tokens)
