"""What is sampled, and where it ends."""

from typing import Any

import numpy as np
import pytest

from skyrl_kernel.records import Completion, GenerateRequest, Sampling
from skyrl_kernel.testing.contracts.engine.model import ModelEngine
from skyrl_kernel.testing.contracts.engine.reference import joined

FLAT = 2.0
"""A temperature at which unlikely tokens, such as the end, come more often; the highest that engines take."""


class SamplingContract(ModelEngine):
    """The fields of `Sampling`, and seeds."""

    @pytest.mark.parametrize(
        "truncation", [{"top_k": 5}, {"top_p": 0.6}, {"min_p": 0.2}, {"top_k": 20, "top_p": 0.8}]
    )
    def test_truncated_sampling_gives_log_probs_of_what_it_keeps(
        self, truncation: dict[str, Any]
    ) -> None:
        """Nothing else is sampled, and what is kept has all the mass; the temperature comes first."""
        settings = Sampling(max_tokens=12, temperature=0.9, **truncation)
        requests = [
            GenerateRequest(tokens=prompt, sampling=settings, seed=seed)
            for prompt in self.prompts()
            for seed in range(4)
        ]
        completions = self._complete(requests)
        first = self._first()
        for request, one in zip(requests, completions, strict=True):
            (row,) = joined([request.tokens], [one.tokens])
            expected = first.sampled_logprobs(row, len(one.tokens), settings)
            np.testing.assert_allclose(one.logprobs, expected, atol=self.tolerance)

    def test_one_kept_token_is_the_most_likely_one_and_certain(self) -> None:
        """``top_k=1`` is greedy whatever the seed, and leaves nothing to chance."""
        prompt = self.prompts()[0]
        greedy, *others = self._complete(
            [
                self._request(prompt, 8, temperature=0.0),
                *(self._request(prompt, 8, seed=seed, top_k=1) for seed in range(3)),
            ]
        )
        (row,) = joined([prompt], [greedy.tokens])
        for place, token in enumerate(greedy.tokens, start=len(prompt)):
            (logprobs,) = self._first().next_logprobs(row[None, :place])
            assert logprobs[token] >= logprobs.max() - self.tolerance
        for one in others:
            assert one.tokens.tolist() == greedy.tokens.tolist()
            np.testing.assert_allclose(one.logprobs, 0.0, atol=1e-6)

    def test_samples_of_one_prompt_differ_by_their_seeds_alone(self) -> None:
        """All come, in order, each as if it had been asked for alone."""
        prompts = self.prompts()[:2]
        requests = [self._request(one, 10, seed=seed) for seed in range(8) for one in prompts]
        together = self._complete(requests)
        assert len(together) == len(requests)
        for prompt in prompts:
            own = [
                tuple(one.tokens)
                for asked, one in zip(requests, together, strict=True)
                if asked.tokens is prompt
            ]
            assert len(set(own)) > len(own) // 2
        for asked, one in list(zip(requests, together, strict=True))[3:13:3]:
            (alone,) = self._complete([asked])
            assert one.tokens.tolist() == alone.tokens.tolist()
            np.testing.assert_allclose(one.logprobs, alone.logprobs, atol=self.tolerance)
        first = self._first()
        for asked, one in zip(requests, together, strict=True):
            (row,) = joined([asked.tokens], [one.tokens])
            expected = first.logprobs(row)[len(asked.tokens) :]
            np.testing.assert_allclose(one.logprobs, expected, atol=self.tolerance)

    def test_a_completion_ends_at_its_length(self) -> None:
        """With the tokens that a longer one begins with."""
        seed, ids = self._long()
        (short,) = self._complete([self._request(self.prompts()[0], 3, seed=seed)])
        assert (short.tokens.tolist(), short.finish_reason) == (ids[:3], "length")

    @pytest.mark.parametrize("room", [20, 0], ids=["before its length", "at its length"])
    def test_a_completion_ends_behind_a_stop_id(self, room: int) -> None:
        """The id stays in it; where it is also the last token allowed, it has stopped."""
        seed, ids = self._long()
        end = ids.index(ids[5]) + 1
        self._assert_stops_at(end, ids, seed, room, stop_token_ids=(ids[5],))

    @pytest.mark.parametrize("room", [20, 0], ids=["before its length", "at its length"])
    def test_a_completion_ends_behind_a_stop_string(self, room: int) -> None:
        """The string stays in it, whole, and nothing comes after the token that completes it."""
        seed, ids = self._long()
        decode = self.tokenizer().decode
        texts = [decode(np.array(ids[:end], np.int32)) for end in range(len(ids) + 1)]
        end, text = _first_new_text(texts)
        self._assert_stops_at(end, ids, seed, room, stop=("never said", text))

    def _assert_stops_at(self, end: int, ids: list[int], seed: int, room: int, **stop: Any) -> None:
        (one,) = self._complete([self._request(self.prompts()[0], end + room, seed=seed, **stop)])
        assert (one.tokens.tolist(), one.finish_reason) == (ids[:end], "stop")
        assert len(one.logprobs) == len(one.versions) == end

    def test_a_completion_ends_behind_the_model_s_own_end(self) -> None:
        """The id stays in it, and is what all are that stopped; no other one has it."""
        ends = self.tokenizer().eos_token_ids
        prompt = self.prompts()[0]
        most = min(64, self._first().positions - len(prompt))
        requests = [self._request(prompt, most, seed=seed, temperature=FLAT) for seed in range(64)]
        completions = self._complete(requests)
        assert {one.finish_reason for one in completions} == {"stop", "length"}, (
            f"of 64 completions of up to {most} tokens all end, or none: the suite needs another model"
        )
        for one in completions:
            assert not ends & set(one.tokens[:-1].tolist())
            has_ended = int(one.tokens[-1]) in ends
            assert one.finish_reason == ("stop" if has_ended else "length")
            assert has_ended or len(one.tokens) == most

    def test_a_row_ends_where_the_model_has_no_more_positions(self) -> None:
        """By ``length``, whatever the request would allow."""
        positions = self._first().positions
        prompt = self._prompt(positions - 4, seed=0)
        completions = self._complete([self._request(prompt, 50, seed=seed) for seed in range(4)])
        assert any(one.finish_reason == "length" for one in completions)
        for one in completions:
            assert len(one.tokens) <= 4
            assert len(one.tokens) == 4 or one.finish_reason == "stop"

    def _complete(self, requests: list[GenerateRequest]) -> list[Completion]:
        return self._use(lambda engine: engine.generate(requests))

    def _long(self) -> tuple[int, list[int]]:
        """A seed with which the first prompt is continued by 30 tokens, and those."""
        prompt = self.prompts()[0]
        completions = self._complete([self._request(prompt, 30, seed=seed) for seed in range(16)])
        for seed, one in enumerate(completions):
            if len(one.tokens) == 30:
                return seed, one.tokens.tolist()
        raise AssertionError("all completions end by themselves: the suite needs another model")


def _first_new_text(texts: list[str]) -> tuple[int, str]:
    """The first text that is whole when its last token is there: that token's number, and it.

    Args:
        texts: Text of the first 0, 1, 2, … tokens.
    """
    for tokens in (2, 1):  # a text of two tokens is the harder case
        for end in range(5, len(texts)):
            before, now = texts[end - tokens], texts[end]
            text = now.removeprefix(before)
            is_whole = text.isprintable() and "\ufffd" not in text
            if text and text != now and is_whole and text not in texts[end - 1]:
                return end, text
    raise AssertionError("no token of 30 completes a text: the suite needs another model")
