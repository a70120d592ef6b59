"""What a trainer must keep, and one that trains a critic too."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from skyrl_kernel.batch import trajectory_mean
from skyrl_kernel.defaults.token_mean import token_mean
from skyrl_kernel.protocols import Loss, Trainer
from skyrl_kernel.records import FloatArray, IntArray, Scores, TrainingSample, UpdateResult

if TYPE_CHECKING:
    from skyrl_kernel.torch import LossTerms, ValueInputs


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

    def test_what_is_offloaded_is_saved_and_exported_whole(self, tmp_path: Path) -> None:
        """A run that shares its GPU writes checkpoints in the engine's turn."""
        trainer = self.make()
        self._update(trainer, self._samples(trainer))
        before = self._score(trainer, self.rows())
        trainer.offload()
        folders = [tmp_path / name for name in ("saved", "exported")]
        for folder, write in zip(folders, (trainer.save, trainer.export), strict=True):
            folder.mkdir()
            write(folder)
        loaded = self.make()
        loaded.load(folders[0])
        trainer.onload()
        for one in (trainer, loaded):
            for b, a in zip(before, self._score(one, self.rows()), strict=True):
                np.testing.assert_allclose(b, a, atol=self.tolerance)
        assert (folders[1] / "config.json").is_file()

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


class CriticContract(TrainerContract):
    """For trainers that offer ``trains_values``: `make` gives one that has the role ``value`` too.

    Its critic's rate must be such that some ten updates lower the value loss of one batch.
    """

    def test_values_are_one_number_before_each_token_whatever_else_is_in_the_batch(self) -> None:
        """[T] each, 0 at index 0, in the order of the rows; the temperature does not matter."""
        trainer, rows = self._with_some_values(), self.rows()
        together = trainer.score("value", rows, temperature=1.0)
        turned = trainer.score("value", rows[::-1], temperature=0.3)[::-1]
        for row, values, again in zip(rows, together, turned, strict=True):
            assert values.shape == row.shape
            assert values.dtype == np.float32
            assert values[0] == 0
            assert values[1:].any()
            np.testing.assert_allclose(values, again, atol=self.tolerance)
        assert trainer.score("value", [], temperature=1.0) == []

    def test_a_value_does_not_know_the_token_that_comes_next(self) -> None:
        """It is what is expected before that token was chosen."""
        trainer, rows = self._with_some_values(), self.rows()
        longest = max(rows, key=len)
        (values,) = trainer.score("value", [longest], temperature=1.0)
        for length in range(2, len(longest)):
            (cut,) = trainer.score("value", [longest[:length]], temperature=1.0)
            np.testing.assert_allclose(cut, values[:length], atol=self.tolerance)

    def test_updates_on_one_batch_lower_the_value_loss(self) -> None:
        """Told as ``critic/critic_loss``, beside ``critic/grad_norm`` and ``critic/critic_lr``."""
        trainer = self.make()
        samples = self._valued(self._samples(trainer))
        results = [self._update_both(trainer, samples) for _ in range(8)]
        losses = [result.metrics["critic/critic_loss"] for result in results]
        assert losses[-1] < losses[0]
        for result in results:
            assert result.metrics["critic/grad_norm"] > 0
            assert result.metrics["critic/critic_lr"] > 0

    def test_a_loss_that_trains_no_critic_leaves_it(self) -> None:
        """Not even by weight decay, and nothing is said of it."""
        trainer = self._with_some_values()
        before = trainer.score("value", self.rows(), temperature=1.0)
        result = self._update(trainer, self._samples(trainer))
        for b, a in zip(before, trainer.score("value", self.rows(), temperature=1.0), strict=True):
            np.testing.assert_array_equal(b, a)
        assert not [name for name in result.metrics if name.startswith("critic/")]

    def test_the_critic_does_not_change_the_policy_s_update(self) -> None:
        """They share no weight and no optimizer."""
        one, two = self.make(), self.make()
        samples = self._valued(self._samples(one))
        self._update(one, samples)
        self._update_both(two, samples)
        for b, a in zip(self._score(one, self.rows()), self._score(two, self.rows()), strict=True):
            np.testing.assert_allclose(b, a, atol=1e-6)

    def test_a_batch_that_is_all_masked_leaves_the_critic(self) -> None:
        """As it leaves the policy."""
        trainer = self._with_some_values()
        before = trainer.score("value", self.rows(), temperature=1.0)
        masked = [
            replace(
                sample,
                loss_mask=np.zeros_like(sample.loss_mask),
                loss_weights={k: np.zeros_like(w) for k, w in sample.loss_weights.items()},
            )
            for sample in self._valued(self._samples(trainer))
        ]
        self._update_both(trainer, masked)
        for b, a in zip(before, trainer.score("value", self.rows(), temperature=1.0), strict=True):
            np.testing.assert_array_equal(b, a)

    def test_the_order_of_rows_does_not_change_the_critic(self) -> None:
        """Nor what is said of it."""
        one, two = self.make(), self.make()
        samples = self._valued(self._samples(one))
        first, second = self._update_both(one, samples), self._update_both(two, samples[::-1])
        for name in ("critic/critic_loss", "critic/grad_norm"):
            assert first.metrics[name] == pytest.approx(second.metrics[name], rel=1e-3)

    def test_a_saved_critic_continues_bit_for_bit(self, tmp_path: Path) -> None:
        """Weights, optimizer and schedule, as the policy's."""
        trainer = self.make()
        samples = self._valued(self._samples(trainer))
        self._update_both(trainer, samples)
        trainer.save(tmp_path)
        loaded = self.make()
        loaded.load(tmp_path)
        for one in (trainer, loaded):
            for _ in range(2):
                self._update_both(one, samples)
        for role in ("policy", "value"):
            left, right = (
                one.score(role, self.rows(), temperature=1.0) for one in (trainer, loaded)
            )
            for b, a in zip(left, right, strict=True):
                np.testing.assert_array_equal(b, a)

    def test_offloading_and_back_changes_no_value(self) -> None:
        """The critic goes with the policy."""
        trainer = self._with_some_values()
        before = trainer.score("value", self.rows(), temperature=1.0)
        trainer.offload()
        trainer.onload()
        for b, a in zip(before, trainer.score("value", self.rows(), temperature=1.0), strict=True):
            np.testing.assert_allclose(b, a, atol=self.tolerance)

    def _with_some_values(self) -> Trainer:
        """After two updates: a new critic may say 0 everywhere."""
        trainer = self.make()
        for _ in range(2):
            self._update_both(trainer, self._valued(self._samples(trainer)))
        return trainer

    def _update_both(self, trainer: Trainer, samples: Sequence[TrainingSample]) -> UpdateResult:
        policy = self.loss()

        def critic(inputs: "ValueInputs") -> "LossTerms":
            from skyrl_kernel.torch import LossTerms

            assert inputs.returns is not None
            return LossTerms(terms={"value": 0.5 * (inputs.values - inputs.returns) ** 2})

        both = replace(policy, critic=critic, coefficients={**policy.coefficients, "value": 1.0})
        return trainer.update(samples, both, temperature=1.0)

    def _valued(self, samples: Sequence[TrainingSample]) -> list[TrainingSample]:
        """With returns of 1 and weights for the term ``value``."""
        masks = [sample.loss_mask for sample in samples]
        weights = trajectory_mean(masks, [sample.trajectory for sample in samples], len(samples))
        return [
            replace(
                sample,
                returns=np.ones(len(sample.tokens), np.float32),
                loss_weights={**sample.loss_weights, "value": weights[number]},
            )
            for number, sample in enumerate(samples)
        ]
