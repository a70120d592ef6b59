"""A trainer of one number that writes down what it is given."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from skyrl_kernel.errors import RunError
from skyrl_kernel.protocols import Loss
from skyrl_kernel.records import FloatArray, IntArray, TrainingSample, UpdateResult
from skyrl_kernel.testing.scripted.engine import row_logprobs
from skyrl_kernel.testing.scripted.meeting import Meeting
from skyrl_kernel.testing.scripted.script import Script

if TYPE_CHECKING:
    import torch

STATE = "scripted.json"


class ScriptedTrainer:
    """Keeps the `skyrl_kernel.protocols.Trainer` protocol.

    An update adds ``rate`` × Σ policy weight × advantage × token id over the
    trained tokens: small, and never the same for two batches in practice. If the loss
    has the term ``value`` it adds ``rate`` × Σ weight × (return - value) to the critic's. In several
    processes each has a share of the data, and all add up.

    Args:
        script: Its ``rate`` and ``on_update``.
    """

    def __init__(self, script: Script) -> None:
        self.weight = np.zeros(1)
        self.value = 0.0
        """What the critic expects before every token, whatever it is."""
        self.updates = 0
        self.batches: list[list[TrainingSample]] = []
        """The mini-batch of each update of this process."""
        self.scored: list[tuple[str, int]] = []
        """Role and number of rows of each call of `score`."""
        self._script = script
        self._meeting = Meeting()
        self.share, self.shares = self._meeting.rank, self._meeting.size
        self._is_loaded = True

    def close(self) -> None:
        """Leave the other ranks."""
        self._meeting.close()

    def score(self, role: str, rows: Sequence[IntArray], *, temperature: float) -> list[FloatArray]:
        """[T] log-probs, a reference has the initial weight; or values of the critic.

        Raises:
            RunError: It is offloaded.
            ValueError: The role is none of ``policy``, ``reference`` and ``value``.
        """
        self._refuse_offloaded()
        weights = {"policy": float(self.weight[0]), "reference": 0.0, "value": self.value}
        if role not in weights:
            raise ValueError(
                f"there is no model for the role '{role}'; there is {', '.join(weights)}"
            )
        self.scored.append((role, len(rows)))
        if role == "value":
            places = [np.arange(len(row)) for row in rows]
            return [(self.value * (place > 0)).astype(np.float32) for place in places]
        return [row_logprobs(weights[role], row) for row in rows]

    def update(
        self, batch: Sequence[TrainingSample], loss: Loss, *, temperature: float
    ) -> UpdateResult:
        """Move the weight, and the critic's; the loss is not called.

        Raises:
            RunError: It is offloaded.
        """
        self._refuse_offloaded()
        self._script.note("update")
        self._script.on_update(self.updates)
        self.batches.append(list(batch))
        own = sum(
            float((one.loss_weights["policy"] * one.advantages * one.tokens)[one.loss_mask].sum())
            for one in batch
        )
        signal = self._meeting.sum(own)
        change = self._script.rate * signal
        trained = self._meeting.sum(sum(int(one.loss_mask.sum()) for one in batch))
        self.weight = self.weight + change
        self.updates += bool(trained)
        metrics = {
            "final_loss": -signal,
            "policy_loss": -signal,
            "grad_norm": abs(signal),
            "policy_lr": self._script.rate,
        }
        if "value" in loss.coefficients:
            metrics |= self._regress(batch)
        return UpdateResult(metrics=metrics, weights_changed=change != 0)

    def _regress(self, batch: Sequence[TrainingSample]) -> dict[str, float]:
        squares = errors = 0.0
        for one in batch:
            assert one.returns is not None, "the term value needs returns"
            weights = one.loss_weights["value"][one.loss_mask].astype(np.float64)
            missing = one.returns[one.loss_mask].astype(np.float64) - self.value
            errors += float((weights * missing).sum())
            squares += float((weights * missing**2).sum())
        errors, squares = self._meeting.sum(errors), self._meeting.sum(squares)
        self.value += self._script.rate * errors
        return {
            "critic/critic_loss": squares / 2,
            "critic/grad_norm": abs(errors),
            "critic/critic_lr": self._script.rate,
        }

    def weights(self, role: str = "policy") -> "Iterator[tuple[str, torch.Tensor]]":
        """The one number, as ``weight``.

        Raises:
            RunError: It is offloaded.
        """
        self._refuse_offloaded()
        yield "weight", self.weight.copy()  # type: ignore[misc]  # an array stands in for a tensor

    def save(self, folder: Path) -> None:
        """Write ``scripted.json``."""
        self._script.note("save")
        state = {
            "weight": float(self.weight[0]),
            "value": self.value,
            "updates": self.updates,
        }
        if not self.share:
            (folder / STATE).write_text(json.dumps(state))
        self._meeting.sum(0)  # nobody is done before all are

    def load(self, folder: Path) -> None:
        """Read what `save` wrote."""
        state = json.loads((folder / STATE).read_text())
        self.weight, self.updates = np.array([state["weight"]]), int(state["updates"])
        self.value = float(state["value"])

    def export(self, folder: Path) -> None:
        """Write a ``config.json`` with the number in it."""
        self._script.note("export")
        config = {"model_type": "scripted", "weight": float(self.weight[0])}
        if not self.share:
            (folder / "config.json").write_text(json.dumps(config))
        self._meeting.sum(0)

    def offload(self) -> None:
        """Note it, and compute nothing until `onload`."""
        self._script.note("offload")
        self._is_loaded = False

    def onload(self) -> None:
        """Note it."""
        self._script.note("onload")
        self._is_loaded = True

    def _refuse_offloaded(self) -> None:
        if not self._is_loaded:
            raise RunError("the scripted trainer is offloaded: it computes nothing")
