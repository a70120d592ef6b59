"""The tiny model's tokenizer: byte-level BPE that keeps digits apart, and a chat template.

Trained on text that this module and the teacher generate. Being byte-level it
encodes any text; text unlike that takes more tokens.
"""

import random
from collections.abc import Iterable, Iterator
from pathlib import Path

from skyrl_multiply.problems import messages
from skyrl_tiny.teacher import Teacher, training_pairs

VOCABULARY = 384
"""256 bytes, 3 special tokens, and what the prompts and examples are made of. Small on purpose:
half of a tiny model's time goes into choosing among the vocabulary."""
END = "<|im_end|>"
START = "<|im_start|>"
PAD = "<|endoftext|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""ChatML, which only ever appends."""

_WHO = [
    "the teacher",
    "a student",
    "my friend",
    "the child",
    "our neighbour",
    "a small model",
    "the reader",
]
_DOES = [
    "writes",
    "reads",
    "counts",
    "multiplies",
    "adds",
    "checks",
    "finds",
    "explains",
    "learns",
    "solves",
    "answers",
]
_WHAT = [
    "the number",
    "a question",
    "the answer",
    "each step",
    "two digits",
    "the carry",
    "a long problem",
    "a word",
]
_HOW = [
    "with care",
    "in the morning",
    "again and again",
    "because it is right",
    "without help",
    "on paper",
]


def sample_text(num_examples: int = 1000, num_sentences: int = 2000) -> Iterator[str]:
    """Prompts with worked examples, and plain sentences for the rest of the alphabet."""
    rng = random.Random("tokenizer")
    teacher = Teacher(0, num_wrong=0)  # only the shape of the text matters here
    for a, b in rng.sample(training_pairs(), num_examples):
        chat = "\n".join(f"{one['role']}\n{one['content']}" for one in messages(a, b))
        yield f"{chat}\nassistant\n{teacher.work_out(a, b, rng)}\n"
    for _ in range(num_sentences):
        parts = (rng.choice(words) for words in (_WHO, _DOES, _WHAT, _HOW))
        yield " ".join(parts).capitalize() + ". "


def save_tokenizer(folder: Path, text: Iterable[str] | None = None) -> None:
    """Train the tokenizer and write it as Hugging Face files.

    Args:
        folder: Where to.
        text: What to train it on; default: `sample_text`.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, START, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(sample_text() if text is None else text, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[START],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
