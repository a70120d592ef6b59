"""A trainer of one number that writes down what it is given."""

import json
from collections.abc import Collection, Iterator, Sequence
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

STATE, CRITIC = "scripted.json", "scripted_critic.json"


class ScriptedTrainer:
    """Keeps the `skyrl_kernel.protocols.Trainer` protocol.

    An update adds ``rate`` × Σ policy weight × advantage × token id over the
    trained tokens: small, and never the same for two batches in practice. If the loss
    trains a critic it adds ``rate`` × Σ weight × (return - value) to the critic's. In several
    processes each has a share of the data, and all add up.

    Args:
        script: Its ``rate`` and ``on_update``.
        elsewhere: Roles that it does not have.
    """

    def __init__(self, script: Script, elsewhere: Collection[str] = ()) -> None:
        self.weight = np.zeros(1)
        self.value = 0.0
        """What the critic expects before every token, whatever it is."""
        self.updates = 0
        self.batches: list[list[TrainingSample]] = []
        """The mini-batch of each update of this process."""
        self.scored: list[tuple[str, int]] = []
        """Role and number of rows of each call of `score`."""
        self._script = script
        self._elsewhere = frozenset(elsewhere)
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
            ValueError: The role is none of ``policy``, ``reference`` and ``value``, or elsewhere.
        """
        self._refuse_offloaded()
        weights = {"policy": float(self.weight[0]), "reference": 0.0, "value": self.value}
        weights = {role: weights[role] for role in weights if role not in self._elsewhere}
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
        trained = self._meeting.sum(sum(int(one.loss_mask.sum()) for one in batch))
        self.updates += bool(trained)
        metrics = {"final_loss": 0.0}
        changed = False
        if "policy" not in self._elsewhere:
            signal = self._improve(batch)
            changed = self._script.rate * signal != 0
            metrics = {
                "final_loss": -signal,
                "policy_loss": -signal,
                "grad_norm": abs(signal),
                "policy_lr": self._script.rate,
            }
        if loss.critic is not None and "value" not in self._elsewhere:
            metrics |= self._regress(batch)
        return UpdateResult(metrics=metrics, weights_changed=changed)

    def _improve(self, batch: Sequence[TrainingSample]) -> float:
        own = sum(
            float((one.loss_weights["policy"] * one.advantages * one.tokens)[one.loss_mask].sum())
            for one in batch
        )
        signal = self._meeting.sum(own)
        self.weight = self.weight + self._script.rate * signal
        return signal

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
        """Write ``scripted.json`` of the policy, ``scripted_critic.json`` of the critic."""
        self._script.note("save")
        states = {
            "policy": (STATE, {"weight": float(self.weight[0]), "updates": self.updates}),
            "value": (CRITIC, {"value": self.value, "updates": self.updates}),
        }
        for role, (name, state) in states.items():
            if not self.share and role not in self._elsewhere:
                (folder / name).write_text(json.dumps(state))
        self._meeting.sum(0)  # nobody is done before all are

    def load(self, folder: Path) -> None:
        """Read what `save` wrote."""
        if "policy" not in self._elsewhere:
            state = json.loads((folder / STATE).read_text())
            self.weight, self.updates = np.array([state["weight"]]), int(state["updates"])
        if "value" not in self._elsewhere:
            state = json.loads((folder / CRITIC).read_text())
            self.value, self.updates = float(state["value"]), int(state["updates"])

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
