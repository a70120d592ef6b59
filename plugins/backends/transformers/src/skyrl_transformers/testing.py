"""A tiny random model in a real Hugging Face directory, for tests of anything that needs one."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from skyrl_transformers.loading import no_progress_bars

END_OF_TURN = "<|im_end|>"
START_OF_TURN = "<|im_start|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_random_model(
    folder: Path,
    *,
    architecture: str = "llama",
    seed: int = 0,
    chat_template: str | None = CHAT_TEMPLATE,
    **config: object,
) -> PreTrainedModel:
    """Write config, random weights and a byte-level tokenizer, and return the model.

    Ids 0-255 are bytes, 256 starts a turn, 257 ends one.

    Args:
        folder: Where to.
        architecture: ``model_type`` of transformers.
        seed: Of the weights.
        chat_template: None writes a tokenizer without one.
        config: Overrides the architecture's config, such as ``hidden_size=64``.
    """
    tokenizer = _byte_tokenizer()
    tokenizer.chat_template = chat_template
    tokenizer.save_pretrained(folder)
    small: dict[str, object] = {
        "vocab_size": 258,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 48,
        "max_position_embeddings": 128,
        "bos_token_id": None,
        "pad_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "initializer_range": 0.3,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(architecture, **(small | config))
        )
    with no_progress_bars():
        model.save_pretrained(folder)
    return model.eval()


def _byte_tokenizer() -> PreTrainedTokenizerFast:
    names = [*sorted(pre_tokenizers.ByteLevel.alphabet()), START_OF_TURN, END_OF_TURN]
    tokenizer = Tokenizer(
        models.BPE(vocab={name: number for number, name in enumerate(names)}, merges=[])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TURN,
        additional_special_tokens=[START_OF_TURN],
    )
