"""Which prompt is next: a seeded order over epochs that a checkpoint can continue."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from skyrl_kernel.data.dataset import Dataset
from skyrl_kernel.errors import DataError, ResumeError
from skyrl_kernel.records import Prompt


class PromptOrder:
    """Draws prompts one by one, each once per epoch, in an order that only the arguments decide.

    Epoch e is a permutation seeded by (seed, e), or the file's order; its last
    incomplete batch is left out. Drawing goes on after the last epoch, for a
    loop that needs more prompts because groups were dropped; `exhausted` says so.

    Args:
        dataset: What is drawn from.
        batch_size: Prompts of one step.
        seed: Of the order, ``trainer.seed``.
        shuffle: False keeps the file's order in every epoch.
        epochs: Passes over the data, ``trainer.epochs``.
        max_steps: Upper bound of `total_steps`, ``trainer.max_training_steps``.

    Raises:
        DataError: There are fewer prompts than one batch needs.

    Example:
        >>> rows = tuple(Prompt(uid=f"0:{i}", messages=(), env_class="e") for i in range(5))
        >>> data = Dataset(prompts=rows)
        >>> order = PromptOrder(data, batch_size=2, seed=1, shuffle=False, epochs=2)
        >>> order.total_steps, [order.next().uid for _ in range(6)]
        (4, ['0:0', '0:1', '0:2', '0:3', '0:0', '0:1'])
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        batch_size: int,
        seed: int,
        shuffle: bool = True,
        epochs: int = 1,
        max_steps: int | None = None,
    ) -> None:
        if len(dataset) < batch_size:
            raise DataError(
                f"trainer.train_batch_size={batch_size} asks for more prompts than there are: "
                f"{dataset.title} has {len(dataset)}. Lower trainer.train_batch_size (and "
                "trainer.policy_mini_batch_size, which divides it), or add data"
            )
        self._dataset = dataset
        self._seed = seed
        self._shuffle = shuffle
        self._epochs = epochs
        self._fingerprint = dataset.fingerprint()
        self.steps_per_epoch = len(dataset) // batch_size
        self._per_epoch = self.steps_per_epoch * batch_size
        steps = epochs * self.steps_per_epoch
        self.total_steps = steps if max_steps is None else min(steps, max_steps)
        self.epoch = 0
        self._position = 0
        self._permutation = self._permute(0)

    @property
    def exhausted(self) -> bool:
        """True once all epochs were drawn."""
        return self.epoch >= self._epochs

    def next(self) -> Prompt:
        """The next prompt; enters the next epoch after the last prompt of one."""
        prompt = self._dataset[int(self._permutation[self._position])]
        self._position += 1
        if self._position == self._per_epoch:
            self._enter(self.epoch + 1, 0)
        return prompt

    def state_dict(self) -> dict[str, Any]:
        """Where the order stands, as JSON values; the data's fingerprint guards the way back."""
        return {"epoch": self.epoch, "position": self._position, "data": self._fingerprint}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken.

        Raises:
            ResumeError: The data is not what it was, so its order would be another.
        """
        if state["data"] != self._fingerprint:
            raise ResumeError(
                "the checkpoint was made with other training data: the rows now read from "
                f"{self._dataset.title} differ (changed files, or another tokenizer or "
                "trainer.max_prompt_length, which drops other rows). Restore the data, or start "
                "anew with another trainer.run_name"
            )
        epoch, position = int(state["epoch"]), int(state["position"])
        if not 0 <= position < self._per_epoch:
            raise ResumeError(
                f"the checkpoint stands at prompt {position} of an epoch that now has "
                f"{self._per_epoch}: trainer.train_batch_size was changed. Set it back, or start "
                "anew with another trainer.run_name"
            )
        self._enter(epoch, position)

    def _enter(self, epoch: int, position: int) -> None:
        self.epoch, self._position = epoch, position
        self._permutation = self._permute(epoch)

    def _permute(self, epoch: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        if not self._shuffle:
            return np.arange(len(self._dataset))
        return np.random.default_rng([self._seed, epoch]).permutation(len(self._dataset))
