"""The critic: a language model's body with a head of one number in place of the vocabulary."""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import Linear, Module
from transformers import PreTrainedModel

from skyrl_kernel.errors import ConfigError, ModelError
from skyrl_transformers.loading import load_body, stored_tensor

MODEL_KEY = "trainer.critic.model.path"
HEAD_KEY = "trainer.algorithm.value_head_prefix"


class Critic(Module):
    """[B, T] ids → [B, T] values: what is still to be earned after each token, in task units.

    Its tensors are called as in a Hugging Face directory: the body's as in the
    language model that it was taken from, the head's ``<head_name>.weight``.

    A new head is zero. Then the first values are 0 for every token, whatever the
    body, so that the first advantages are the returns themselves, free of any
    noise of an untrained critic; and one directory makes one critic, without a
    seed. The head moves with the first update, the body from the second on.

    Args:
        body: Ids in, hidden states out.
        head_name: ``trainer.algorithm.value_head_prefix``.

    Raises:
        ConfigError: The head cannot have that name.
    """

    def __init__(self, body: PreTrainedModel, head_name: str) -> None:
        super().__init__()
        body_name = body.base_model_prefix or "model"
        if not head_name.isidentifier() or head_name == body_name or hasattr(self, head_name):
            raise ConfigError(
                f"{HEAD_KEY}={head_name} cannot name the critic's head: it must be one word that "
                f"nothing else in the model is called, such as value_head"
            )
        self._names = body_name, head_name
        self.add_module(body_name, body)
        head = Linear(body.config.get_text_config().hidden_size, 1, bias=False, device=body.device)
        torch.nn.init.zeros_(head.weight)
        self.add_module(head_name, head)

    @property
    def body(self) -> PreTrainedModel:
        """Ids in, hidden states out."""
        body: PreTrainedModel = self.get_submodule(self._names[0])
        return body

    @property
    def head(self) -> tuple[str, Linear]:
        """Hidden states in, one number out; with its name."""
        head: Linear = self.get_submodule(self._names[1])  # type: ignore[assignment]
        return self._names[1], head

    def get_output_embeddings(self) -> Linear:
        """The head, by the name that language models have for theirs."""
        return self.head[1]

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        device: torch.device = self.body.device
        return device

    def forward(self, input_ids: Tensor, **extra: Tensor) -> Tensor:
        """[B, T] float32; what is ``extra`` goes to the body, such as positions."""
        hidden: Tensor = self.body(input_ids=input_ids, use_cache=False, **extra).last_hidden_state
        # In bfloat16 a value of 1 is known to 0.4 %, as much as an advantage may be large.
        with torch.autocast(hidden.device.type, enabled=False):
            values: Tensor = self.get_output_embeddings()(hidden.float())
        return values[..., 0].clone()  # sharded modules must not return views

    def hidden_states(self, input_ids: Tensor, **extra: Tensor) -> Tensor:
        """[B, T, D] what the head sees, by a call of the whole: a sharded body has no calls of its own."""
        seen: list[Tensor] = []
        hook = self.body.register_forward_hook(
            lambda _module, _arguments, output: seen.append(output.last_hidden_state)
        )
        try:
            self(input_ids, **extra)
        finally:
            hook.remove()
        return seen[0]


def load_critic(path: Path, device: torch.device, head_name: str) -> Critic:
    """A critic in float32 and eval mode, its head from the directory if that has one.

    Args:
        path: A directory or hub name as `skyrl_transformers.loading` takes it, with or
            without ``<head_name>.weight`` of shape [1, hidden size] in its safetensors.
        device: Where the weights go.
        head_name: ``trainer.algorithm.value_head_prefix``.

    Raises:
        ModelError: It is no model, or its head is none of one output without bias.
        ConfigError: The head cannot have that name.
    """
    critic = Critic(load_body(path, device, MODEL_KEY), head_name)
    head = critic.get_output_embeddings().weight
    stored = stored_head(path, head_name, tuple(head.shape))
    if stored is not None:
        with torch.no_grad():
            head.copy_(stored)
    return critic.eval()


def stored_head(path: Path, head_name: str, shape: tuple[int, ...]) -> Tensor | None:
    """The head that a directory has for a critic, on the CPU; None if it has none.

    Raises:
        ModelError: It has another shape, or a bias.
    """
    stored = stored_tensor(path, f"{head_name}.weight")
    if stored_tensor(path, f"{head_name}.bias") is not None:
        raise ModelError(
            f"'{path}' has '{head_name}.bias', and the critic's head has no bias; set {HEAD_KEY} to "
            "the name of a head without one, or to a new name for a new head"
        )
    if stored is not None and stored.shape != shape:
        raise ModelError(
            f"'{path}' has '{head_name}.weight' of shape {tuple(stored.shape)}, the critic's "
            f"head has {shape}; set {HEAD_KEY} to another name for a new head"
        )
    return stored
