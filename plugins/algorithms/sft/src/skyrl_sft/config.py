"""Config that only this plugin reads."""

from typing import Annotated, Literal

from pydantic import Field

from skyrl_kernel.config.section import Section

TrainOnWhat = Literal["last_assistant_message", "all_assistant_messages", "all_tokens"]


class SftConfig(Section):
    """``trainer.sft``: which part of a row is learned."""

    train_on_what: TrainOnWhat = "last_assistant_message"
    """The last answer, every answer, or every token but the first, whoever wrote it."""
    max_length: Annotated[int, Field(ge=1)] | None = None
    """A row of more tokens is cut there; null cuts none."""
    messages_key: str = "messages"
    """Column that holds whole conversations."""
    system_key: str = "system"
    """Column with a system prompt, for conversations that begin without one."""
