"""Hooks of the plugin `transformers`: an engine in the trainer's process, and the tokenizer."""

from pathlib import Path

from skyrl_kernel.config.generator import GeneratorConfig
from skyrl_kernel.config.trainer import TrainerConfig
from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.protocols import Engine, Settings, Tokenizer

NAME = "transformers"


@hookimpl
def make_tokenizer(name: str, model: Path, settings: Settings) -> Tokenizer | None:
    """The tokenizer of a Hugging Face directory."""
    if name != NAME:
        return None
    from skyrl_transformers.templates import configured_template
    from skyrl_transformers.tokenizer import HuggingFaceTokenizer

    config = settings[GeneratorConfig]
    return HuggingFaceTokenizer(model, config.chat_template_kwargs, configured_template(config))


@hookimpl
def make_engine(name: str, settings: Settings, model: Path) -> Engine | None:
    """An engine that computes as the trainer does: in bfloat16 if ``trainer.bf16``."""
    if name != NAME:
        return None
    from skyrl_transformers.engine import TransformersEngine

    return TransformersEngine(
        model,
        max_rows=settings[GeneratorConfig].inference_engine.max_num_seqs,
        bf16=settings[TrainerConfig].bf16,
    )
