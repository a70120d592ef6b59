"""What is sent to vLLM, and what is made of its answers."""

from typing import Any

import numpy as np
import pytest

from skyrl_kernel.errors import FailureKind, TrajectoryError
from skyrl_kernel.records import Sampling
from skyrl_vllm.testing import answer
from skyrl_vllm.wire import StartedAnewError, completion, sampling_params, scores, to_score


def test_every_field_that_decides_what_is_sampled_is_named() -> None:
    sampling = Sampling(max_tokens=3, top_k=-1, stop=("x",), stop_token_ids=(1,))
    sent = sampling_params(sampling, seed=2**63 + 4)
    assert sent["top_k"] == 0  # vLLM's word for all
    assert sent["seed"] == 5
    assert (sent["stop"], sent["stop_token_ids"], sent["detokenize"]) == (["x"], [1], True)
    assert sampling_params(Sampling(), seed=0)["detokenize"] is False
    assert sent["logprobs"] == 0  # the sampled token's alone


def test_an_answer_becomes_a_completion_whose_tokens_carry_the_version_of_their_span() -> None:
    one = completion(answer(), version=2)
    assert one.tokens.tolist() == [7, 8, 9]
    np.testing.assert_allclose(one.logprobs, [-0.7, -0.8, -0.9])
    assert one.versions.tolist() == [3, 4, 4]
    assert one.finish_reason == "length"


def test_an_abort_before_the_first_token_is_an_empty_completion() -> None:
    nothing = answer(finish_reason="abort", token_ids=[], logprobs=None, weight_versions=None)
    one = completion(nothing, version=2)
    assert len(one.tokens) == len(one.logprobs) == len(one.versions) == 0
    assert one.finish_reason == "abort"


@pytest.mark.parametrize(
    "changed",
    [
        {"logprobs": None},
        {"token_ids": [7, 8]},
        {"token_ids": [7, 8, 10]},
        {"finish_reason": "error"},
        {"weight_versions": [{"version": "new", "start": 0, "end": 3}]},
    ],
)
def test_another_answer_costs_its_trajectory(changed: dict[str, Any]) -> None:
    with pytest.raises(TrajectoryError, match="vLLM server gave") as caught:
        completion(answer(**changed), version=2)
    assert caught.value.kind is FailureKind.INFRASTRUCTURE


def test_scores_at_another_temperature_come_from_the_whole_vocabulary() -> None:
    """Of 1/2, 1/4 and 1/4 the squares are as 4 : 1 : 1, so at temperature 1/2 the first has 2/3."""
    row = np.array([2, 0, 1], dtype=np.int32)
    position = {str(token): {"logprob": np.log(p)} for token, p in enumerate((0.5, 0.25, 0.25))}
    told = answer() | {"prompt_logprobs": [None, position, position]}
    for temperature, asked, expected in (
        (0.5, -1, [0, np.log(2 / 3), np.log(1 / 6)]),
        (1.0, 0, [0, np.log(1 / 2), np.log(1 / 4)]),
    ):
        assert to_score(row, temperature)["sampling_params"]["prompt_logprobs"] == asked
        np.testing.assert_allclose(scores(told, row, temperature), expected, rtol=1e-6)


@pytest.mark.parametrize(
    "told",
    [
        {},
        answer(),
        answer() | {"prompt_logprobs": [None]},
        answer() | {"prompt_logprobs": [None, {"3": {"logprob": -1.0}}]},
        answer() | {"prompt_logprobs": [None, {"2": {"rank": 1}}]},
    ],
)
def test_scores_that_are_none_cost_what_asked_for_them(told: dict[str, Any]) -> None:
    with pytest.raises(TrajectoryError, match="gave another answer than expected"):
        scores(told, np.array([1, 2], dtype=np.int32), 1.0)


def test_weights_that_a_server_was_started_with_are_told_from_the_runs() -> None:
    first = [{"version": "default", "start": 0, "end": 1}]
    with pytest.raises(StartedAnewError):
        completion(answer(weight_versions=first), version=2)
    told = answer(weight_versions=first) | {"prompt_logprobs": [None, {"2": {"logprob": -1.0}}]}
    with pytest.raises(StartedAnewError):
        scores(told, np.array([1, 2], dtype=np.int32), 1.0)
