"""What a trainer must keep."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from skyrl_kernel.batch import trajectory_mean
from skyrl_kernel.defaults.token_mean import token_mean
from skyrl_kernel.protocols import Loss, Trainer
from skyrl_kernel.records import FloatArray, IntArray, Scores, TrainingSample, UpdateResult


class TrainerContract:
    """Subclass and override `make`, `rows` and `loss`."""

    tolerance = 1e-4
    """Most nats between two ways to the same log-prob."""

    def make(self) -> Trainer:
        """A trainer with weights, the same ones every time, that may be updated some ten times."""
        raise NotImplementedError("override make()")

    def rows(self) -> Sequence[IntArray]:
        """At least three token rows of the model's vocabulary, of different lengths above 3."""
        raise NotImplementedError("override rows()")

    def loss(self) -> Loss:
        """A loss that the trainer can differentiate; its needs may include ``old_logprobs``."""
        raise NotImplementedError("override loss()")

    def test_it_keeps_the_protocol(self) -> None:
        """All methods are there."""
        assert isinstance(self.make(), Trainer)

    def test_scores_are_log_probs_of_each_token_in_the_order_of_the_rows(self) -> None:
        """[T] each, 0 at index 0, whatever else is in the batch."""
        trainer, rows = self.make(), self.rows()
        together = self._score(trainer, rows)
        turned = self._score(trainer, rows[::-1])[::-1]
        for row, scores, again in zip(rows, together, turned, strict=True):
            assert scores.shape == row.shape
            assert scores[0] == 0
            assert np.isfinite(scores).all()
            assert (scores <= 1e-5).all()
            np.testing.assert_allclose(scores, again, atol=self.tolerance)

    def test_no_rows_give_no_scores(self) -> None:
        """A batch may be empty."""
        assert self._score(self.make(), []) == []

    def test_a_role_that_does_not_exist_is_refused_by_name(self) -> None:
        """Roles are open names, so a wrong one is a user's mistake."""
        with pytest.raises(ValueError, match="nobody"):
            self.make().score("nobody", self.rows(), temperature=1.0)

    def test_an_update_changes_the_weights_and_reports_finite_numbers(self) -> None:
        """``final_loss``, ``grad_norm`` and ``policy_lr`` are always among them."""
        trainer = self.make()
        before = self._score(trainer, self.rows())
        result = self._update(trainer, self._samples(trainer))
        after = self._score(trainer, self.rows())

        assert result.weights_changed
        assert {"final_loss", "grad_norm", "policy_lr"} <= result.metrics.keys()
        assert all(np.isfinite(value) for value in result.metrics.values())
        assert any(not np.array_equal(b, a) for b, a in zip(before, after, strict=True))

    def test_a_batch_that_is_all_masked_changes_nothing_and_says_so(self) -> None:
        """Not even by weight decay: the step trains on nothing."""
        trainer = self.make()
        before = self._score(trainer, self.rows())
        masked = [
            replace(
                sample,
                loss_mask=np.zeros_like(sample.loss_mask),
                loss_weights={k: np.zeros_like(w) for k, w in sample.loss_weights.items()},
            )
            for sample in self._samples(trainer)
        ]
        result = self._update(trainer, masked)

        assert not result.weights_changed
        for b, a in zip(before, self._score(trainer, self.rows()), strict=True):
            np.testing.assert_array_equal(b, a)

    def test_the_order_of_rows_changes_nothing(self) -> None:
        """The objective is a sum: rows may be put into any micro-batch."""
        one, two = self.make(), self.make()
        samples = self._samples(one)
        first, second = self._update(one, samples), self._update(two, samples[::-1])

        assert first.metrics["final_loss"] == pytest.approx(second.metrics["final_loss"], abs=1e-4)
        assert first.metrics["grad_norm"] == pytest.approx(second.metrics["grad_norm"], rel=1e-3)

    def test_advantages_of_masked_tokens_are_never_read(self) -> None:
        """Nor is anything else of them."""
        one, two = self.make(), self.make()
        samples = self._samples(one)
        spoilt = [
            replace(sample, advantages=np.where(sample.loss_mask, sample.advantages, 1e6))
            for sample in samples
        ]
        first, second = self._update(one, samples), self._update(two, spoilt)
        assert first.metrics["final_loss"] == second.metrics["final_loss"]

    def test_what_was_saved_continues_bit_for_bit(self, tmp_path: Path) -> None:
        """Weights, optimizer and schedule: two more updates end in the same bits."""
        trainer = self.make()
        samples = self._samples(trainer)
        self._update(trainer, samples)
        folder = tmp_path / "saved"
        folder.mkdir()
        trainer.save(folder)
        loaded = self.make()
        loaded.load(folder)
        for one in (trainer, loaded):
            for _ in range(2):
                self._update(one, samples)

        left, right = self._score(trainer, self.rows()), self._score(loaded, self.rows())
        for b, a in zip(left, right, strict=True):
            np.testing.assert_array_equal(b, a)

    def test_no_pickle_is_written(self, tmp_path: Path) -> None:
        """Loading one would run whatever it says."""
        self.make().save(tmp_path)
        assert [
            path
            for path in tmp_path.rglob("*")
            if path.suffix in {".pt", ".pth", ".pkl", ".pickle", ".bin"}
        ] == []

    def test_an_export_is_a_model_directory(self, tmp_path: Path) -> None:
        """With a ``config.json``, as `trainer.policy.model.path` takes it."""
        self.make().export(tmp_path)
        assert (tmp_path / "config.json").is_file()

    def test_every_tensor_has_one_name(self) -> None:
        """An engine receives each once."""
        names = [name for name, _ in self.make().weights()]
        assert names
        assert len(names) == len(set(names))

    def test_offloading_and_back_changes_nothing(self) -> None:
        """Also where there is no accelerator."""
        trainer = self.make()
        before = self._score(trainer, self.rows())
        trainer.offload()
        trainer.onload()
        for b, a in zip(before, self._score(trainer, self.rows()), strict=True):
            np.testing.assert_allclose(b, a, atol=self.tolerance)

    def _score(self, trainer: Trainer, rows: Sequence[IntArray]) -> list[FloatArray]:
        return trainer.score("policy", rows, temperature=1.0)

    def _update(self, trainer: Trainer, samples: Sequence[TrainingSample]) -> UpdateResult:
        return trainer.update(samples, self.loss(), temperature=1.0)

    def _samples(self, trainer: Trainer) -> list[TrainingSample]:
        """All rows, trained from their third token, with advantages ±1 and old = current."""
        rows = self.rows()
        masks = [np.arange(len(row)) >= 2 for row in rows]
        numbers = list(range(len(rows)))
        policy = token_mean(masks, numbers, numbers)
        others = trajectory_mean(masks, numbers, len(rows))
        current = self._score(trainer, rows)
        return [
            TrainingSample(
                trajectory_id=f"{number}/0",
                group=number,
                trajectory=number,
                tokens=row,
                loss_mask=masks[number],
                advantages=np.where(masks[number], (-1.0) ** number, 0.0).astype(np.float32),
                returns=None,
                sampler_logprobs=current[number],
                scores=Scores(old_logprobs=current[number], ref_logprobs=current[number]),
                loss_weights={
                    term: policy[number] if term == "policy" else others[number]
                    for term in self.loss().coefficients
                },
            )
            for number, row in enumerate(rows)
        ]
