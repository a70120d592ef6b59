"""The transformers engine keeps the contract of engines, and engines that break it are refused."""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from skyrl_kernel.errors import WeightSyncError
from skyrl_kernel.protocols import Engine, Tokenizer
from skyrl_kernel.records import Completion, GenerateRequest, IntArray
from skyrl_kernel.testing.contracts import LogProbContract
from skyrl_kernel.testing.contracts import ModelEngineContract as Suite
from skyrl_kernel.testing.contracts.engine.model import ModelEngine
from skyrl_transformers.engine import TransformersEngine
from skyrl_transformers.loading import distinct_tensors
from skyrl_transformers.tokenizer import HuggingFaceTokenizer
from skyrl_transformers.update import WeightUpdate

Requests = Sequence[GenerateRequest]
Weights = Iterable[tuple[str, torch.Tensor]]


class Subject(ModelEngine):
    """Engines of one kind with one model."""

    engine: type[TransformersEngine] = TransformersEngine
    folder: Path

    def make(self) -> Engine:
        engine = self.engine(self.folder, max_rows=16)
        self.computed = 0
        engine._weights().register_forward_hook(self.count, with_kwargs=True)
        return engine

    def count(self, module: Any, args: Any, given: dict[str, Any], output: Any) -> None:
        self.computed += len(given["input_ids"])

    def reference(self) -> torch.nn.Module:
        return AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32)

    def tokenizer(self) -> Tokenizer:
        return HuggingFaceTokenizer(self.folder)

    def tokens_computed(self, engine: Engine) -> int:
        """Rows that went through the module."""
        return self.computed


class TestTied(Subject, Suite):
    plugin = "transformers"

    @pytest.fixture(autouse=True)
    def _folder(self, llama: Path) -> None:
        self.folder = llama


class TestUntied(Subject, LogProbContract):
    @pytest.fixture(autouse=True)
    def _folder(self, qwen2: Path) -> None:
        self.folder = qwen2


# --- what must not pass ----------------------------------------------------------------------------


class Broken(Subject, Suite):
    patience_s = 5.0

    def __init__(
        self, engine: type[TransformersEngine], folder: Path, *, keeps_states: bool = True
    ) -> None:
        self.engine, self.folder, self.keeps_states = engine, folder, keeps_states


class Answers(TransformersEngine):
    """Base of engines that answer something else than they computed."""

    async def generate(self, requests: Requests) -> list[Completion]:
        asked = [self.asked(one) for one in requests]
        answers = await super().generate(asked)
        return [self.answer(*pair) for pair in zip(requests, answers, strict=True)]

    def asked(self, request: GenerateRequest) -> GenerateRequest:
        return request

    def answer(self, request: GenerateRequest, one: Completion) -> Completion:
        return one


def sampled_with(**settings: Any) -> type[TransformersEngine]:
    class Samples(Answers):
        def asked(self, request: GenerateRequest) -> GenerateRequest:
            return replace(request, sampling=replace(request.sampling, **settings))

    return Samples


class ScoresAtOne(TransformersEngine):
    async def logprobs(self, rows: Sequence[IntArray], *, temperature: float) -> Any:
        return await super().logprobs(rows, temperature=1.0)


class ReportsRawLogprobs(TransformersEngine):
    async def generate(self, requests: Requests) -> list[Completion]:
        answers = await super().generate(requests)
        rows = [
            np.concatenate([r.tokens, a.tokens]) for r, a in zip(requests, answers, strict=True)
        ]
        scores = await self.logprobs(rows, temperature=1.0)
        return [
            replace(one, logprobs=score[len(score) - len(one.tokens) :])
            for one, score in zip(answers, scores, strict=True)
        ]


class RepeatsOneSeed(Answers):
    def asked(self, request: GenerateRequest) -> GenerateRequest:
        return replace(request, seed=0)


class DropsTheStop(Answers):
    def answer(self, request: GenerateRequest, one: Completion) -> Completion:
        end = len(one.tokens) - (one.finish_reason == "stop")
        return replace(
            one, tokens=one.tokens[:end], logprobs=one.logprobs[:end], versions=one.versions[:end]
        )


class PutsLengthFirst(Answers):
    def answer(self, request: GenerateRequest, one: Completion) -> Completion:
        is_full = len(one.tokens) == request.sampling.max_tokens
        return replace(one, finish_reason="length") if is_full else one


class CutsLongPrompts(Answers):
    def asked(self, request: GenerateRequest) -> GenerateRequest:
        return replace(request, tokens=request.tokens[-100:])


class MovesTheVersionOnly(TransformersEngine):
    async def finish_update(self, version: int) -> None:
        if self._update is None or self._update.version != version:
            raise WeightSyncError("not begun")
        self.version = version


class KeepsAStaleHead(TransformersEngine):
    """As a build that has packed a copy of it."""

    async def apply_update(self, weights: Weights) -> None:
        own = distinct_tensors(self._weights())
        await super().apply_update((n, own[n] if "embed" in n else t) for n, t in weights)


class AppliesAtOnce(TransformersEngine):
    async def apply_update(self, weights: Weights) -> None:
        own = distinct_tensors(self._weights())

        def applied() -> Iterator[tuple[str, torch.Tensor]]:
            for name, tensor in weights:
                own[name].data.copy_(tensor)
                yield name, tensor

        await super().apply_update(applied())


class TagsTheNewestVersion(Answers):
    def answer(self, request: GenerateRequest, one: Completion) -> Completion:
        return replace(one, versions=np.full_like(one.versions, self.version))


class SwapsVersions(Answers):
    def answer(self, request: GenerateRequest, one: Completion) -> Completion:
        return replace(one, versions=1 - one.versions)


class AbortsForUpdates(TransformersEngine):
    async def finish_update(self, version: int) -> None:
        await super().finish_update(version)
        await self.abort()


class KeepsAnswers(TransformersEngine):
    """A cache that outlives its weights."""

    async def generate(self, requests: Requests) -> list[Completion]:
        kept = self.__dict__.setdefault("kept", {})
        key = tuple((one.tokens.tobytes(), one.seed) for one in requests)
        if key not in kept:
            kept[key] = await super().generate(requests)
        return [
            replace(one, versions=np.full_like(one.versions, self.version)) for one in kept[key]
        ]


class TakesWhatFits(TransformersEngine):
    """Of an update, and leaves the rest as it is."""

    async def apply_update(self, weights: Weights) -> None:
        if not isinstance(self._update, WeightUpdate):
            await self.begin_update(self.version)
        own = distinct_tensors(self._weights())
        for name, tensor in weights:
            if name in own and own[name].numel() == tensor.numel():
                own[name].data.copy_(tensor.reshape(own[name].shape))

    async def finish_update(self, version: int) -> None:
        self.version = version


class ForgetsNoBeginning(TransformersEngine):
    async def begin_update(self, version: int) -> None:
        if self._update is None:
            await super().begin_update(version)


class GoesOnAfterRefusals(TransformersEngine):
    async def apply_update(self, weights: Weights) -> None:
        update = self._update
        try:
            await super().apply_update(weights)
        except WeightSyncError:
            self._update = update
            raise


class TakesOlderWeights(TransformersEngine):
    async def begin_update(self, version: int) -> None:
        self._update = WeightUpdate(self._weights(), version)


class HidesNan(TransformersEngine):
    async def apply_update(self, weights: Weights) -> None:
        await super().apply_update((name, tensor.nan_to_num(0.0)) for name, tensor in weights)


class IgnoresAborts(TransformersEngine):
    async def abort(self) -> None:
        """Go on."""


class DropsWhatWasAborted(Answers):
    def answer(self, request: GenerateRequest, one: Completion) -> Completion:
        if one.finish_reason != "abort":
            return one
        return replace(
            one, tokens=one.tokens[:0], logprobs=one.logprobs[:0], versions=one.versions[:0]
        )


class AbortsForEver(TransformersEngine):
    async def _may_go_on(self, aborts: int) -> bool:
        return await super()._may_go_on(0)


class ComputesOn(TransformersEngine):
    """Answers an abort, or lets its caller go, and goes on by itself."""

    async def generate(self, requests: Requests) -> list[Completion]:
        hidden = asyncio.ensure_future(self._hidden(requests))
        aborts = self._aborts
        while not hidden.done() and self._aborts == aborts:
            await asyncio.sleep(0)
        if hidden.done():
            return hidden.result()
        nothing = np.zeros(0, np.int32)
        return [
            Completion(
                tokens=nothing, logprobs=nothing * 0.0, versions=nothing, finish_reason="abort"
            )
            for _ in requests
        ]

    async def _hidden(self, requests: Requests) -> list[Completion]:
        return await super().generate(requests)

    async def _may_go_on(self, aborts: int) -> bool:
        await asyncio.sleep(0)
        return True


class PausesNewRequestsOnly(TransformersEngine):
    async def generate(self, requests: Requests) -> list[Completion]:
        while self._is_paused:
            await asyncio.sleep(0.01)
        return await super().generate(requests)

    async def _may_go_on(self, aborts: int) -> bool:
        await asyncio.sleep(0)
        return self._aborts == aborts


class SwapsNeighbours(TransformersEngine):
    async def generate(self, requests: Requests) -> list[Completion]:
        answers = await super().generate(requests)
        return [*answers[1:2], *answers[:1], *answers[2:]]


class ComputesTwice(TransformersEngine):
    async def generate(self, requests: Requests) -> list[Completion]:
        await super().generate(requests)
        return await super().generate(requests)


AFTER_UPDATES = Suite.test_log_probs_after_each_of_several_updates_are_those_of_its_weights
TEMPERATURE = Suite.test_log_probs_have_the_temperature_applied
TRUNCATION = Suite.test_truncated_sampling_gives_log_probs_of_what_it_keeps
STOP_ID = Suite.test_a_completion_ends_behind_a_stop_id
STOP_TEXT = Suite.test_a_completion_ends_behind_a_stop_string
ACROSS = Suite.test_requests_go_on_across_updates_with_the_new_weights
MANY = Suite.test_of_two_thousand_requests_none_is_lost_or_doubled
ABORT = Suite.test_an_abort_stops_what_runs_and_keeps_what_there_is


@pytest.mark.parametrize(
    ("engine", "check", "given"),
    [
        (ScoresAtOne, TEMPERATURE, (0.7,)),
        (ReportsRawLogprobs, TEMPERATURE, (1.3,)),
        (MovesTheVersionOnly, AFTER_UPDATES, ("push",)),
        (KeepsAStaleHead, AFTER_UPDATES, ("push",)),
        (AppliesAtOnce, Suite.test_an_update_may_come_in_parts_and_in_any_order, ("push",)),
        (sampled_with(top_k=-1), TRUNCATION, ({"top_k": 5},)),
        (sampled_with(top_p=1.0), TRUNCATION, ({"top_p": 0.6},)),
        (sampled_with(min_p=0.0), TRUNCATION, ({"min_p": 0.2},)),
        (ReportsRawLogprobs, TRUNCATION, ({"top_k": 5},)),
        (sampled_with(top_k=2), Suite.test_one_kept_token_is_the_most_likely_one_and_certain, ()),
        (RepeatsOneSeed, Suite.test_samples_of_one_prompt_differ_by_their_seeds_alone, ()),
        (sampled_with(max_tokens=4), Suite.test_a_completion_ends_at_its_length, ()),
        (sampled_with(stop_token_ids=()), STOP_ID, (20,)),
        (DropsTheStop, STOP_ID, (20,)),
        (PutsLengthFirst, STOP_ID, (0,)),
        (sampled_with(stop=()), STOP_TEXT, (20,)),
        (DropsTheStop, STOP_TEXT, (20,)),
        (PutsLengthFirst, STOP_TEXT, (0,)),
        (DropsTheStop, Suite.test_a_completion_ends_behind_the_model_s_own_end, ()),
        (
            sampled_with(max_tokens=2),
            Suite.test_a_row_ends_where_the_model_has_no_more_positions,
            (),
        ),
        (TagsTheNewestVersion, ACROSS, ("push",)),
        (AbortsForUpdates, ACROSS, ("push",)),
        (MovesTheVersionOnly, ACROSS, ("push",)),
        (KeepsAnswers, Suite.test_no_prefix_of_older_weights_is_used_again, ("push",)),
        (TakesWhatFits, Suite.test_tensors_that_are_missing_are_an_error, ()),
        (TakesWhatFits, Suite.test_a_tensor_that_the_model_does_not_have_is_an_error, ()),
        (TakesWhatFits, Suite.test_a_tensor_of_another_shape_is_an_error, ()),
        (TakesWhatFits, Suite.test_a_tensor_of_integers_is_an_error, ()),
        (TakesWhatFits, Suite.test_a_tensor_that_comes_twice_is_an_error, ()),
        (TakesWhatFits, Suite.test_weights_without_a_beginning_are_an_error, ()),
        (TakesWhatFits, Suite.test_an_update_that_is_finished_as_another_is_an_error, ()),
        (AppliesAtOnce, Suite.test_tensors_that_are_missing_are_an_error, ()),
        (
            AppliesAtOnce,
            Suite.test_weights_that_cannot_be_read_to_their_end_are_an_error,
            (),
        ),
        (ForgetsNoBeginning, Suite.test_a_beginning_forgets_the_one_before, ()),
        (GoesOnAfterRefusals, Suite.test_a_part_that_does_not_fit_ends_the_update, ()),
        (
            TakesOlderWeights,
            Suite.test_an_update_that_is_older_than_the_weights_is_an_error,
            (),
        ),
        (
            HidesNan,
            Suite.test_weights_that_are_not_finite_are_refused_or_make_generation_fail,
            (),
        ),
        (IgnoresAborts, ABORT, ()),
        (DropsWhatWasAborted, ABORT, ()),
        (AbortsForEver, ABORT, ()),
        (ComputesOn, Suite.test_after_an_abort_nothing_is_computed, ()),
        (ComputesOn, Suite.test_the_work_of_a_caller_that_goes_away_ends_too, ()),
        (
            PausesNewRequestsOnly,
            Suite.test_a_pause_in_the_middle_stops_what_runs_and_loses_nothing,
            (),
        ),
        (SwapsNeighbours, MANY, ()),
        (ComputesTwice, MANY, ()),
        (
            SwapsVersions,
            Suite.test_an_update_among_two_thousand_requests_loses_none,
            (),
        ),
        (CutsLongPrompts, Suite.test_a_prompt_that_is_too_long_costs_its_own_trajectory, ()),
    ],
    ids=lambda one: getattr(one, "__name__", None),
)
def test_a_broken_engine_is_refused(
    llama: Path, engine: type[TransformersEngine], check: Callable[..., None], given: Any
) -> None:
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        check(Broken(engine, llama), *given)


def test_keys_and_values_that_are_kept_are_told_from_those_that_are_not(llama: Path) -> None:
    ACROSS(Broken(TransformersEngine, llama), "push")
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        ACROSS(Broken(TransformersEngine, llama, keeps_states=False), "push")
