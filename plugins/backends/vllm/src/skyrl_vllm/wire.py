"""What vLLM's token endpoint is sent, and what its answers say, in the kernel's records.

Pure functions between JSON and records; who is asked, when, and what a failure means for the
run is the engine's.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np

from skyrl_kernel.errors import FailureKind, TrajectoryError
from skyrl_kernel.records import (
    Completion,
    FloatArray,
    GenerateRequest,
    IntArray,
    Piece,
    Sampling,
)

GENERATE = "/inference/v1/generate"
REGISTERED = "generate-tokens-"
"""What vLLM puts before the id of a request; an abort without it is answered 200 and does nothing."""
_UNNAMED = "default"
"""What vLLM calls the weights that a server was started with, until somebody gives them a version."""
_SEEDS = 2**63 - 1
_FINISHED: dict[str | None, Literal["stop", "length", "abort"]] = {
    "stop": "stop",
    "length": "length",
    "abort": "abort",
}


class StartedAnewError(Exception):
    """An answer was computed with the weights that its server was started with."""


def to_complete(request: GenerateRequest, name: str) -> dict[str, Any]:
    """What asks for one completion; ``name`` is what an abort calls it, behind `REGISTERED`."""
    return {
        "request_id": name,
        "token_ids": request.tokens.tolist(),
        "sampling_params": sampling_params(request.sampling, request.seed),
        "output_mode": "tokens",
    }


def sampling_params(sampling: Sampling, seed: int) -> dict[str, Any]:
    """All fields of vLLM that decide what is sampled: it drops unknown ones without a word, and fills missing ones in."""
    return {
        "n": 1,
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": max(sampling.top_k, 0),
        "min_p": sampling.min_p,
        "seed": seed % _SEEDS,
        "stop": list(sampling.stop),
        "stop_token_ids": list(sampling.stop_token_ids),
        "include_stop_str_in_output": True,
        "detokenize": bool(sampling.stop),
        "logprobs": 0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "ignore_eos": False,
        **sampling.extra,
    }


def to_score(row: IntArray, temperature: float) -> dict[str, Any]:
    """What asks for the log-probs of the tokens of ``row``.

    vLLM scores at temperature 1 only; for another the whole vocabulary's are asked for.
    """
    return {
        "token_ids": row.tolist(),
        "sampling_params": {
            "max_tokens": 1,
            "temperature": 0.0,
            "detokenize": False,
            "prompt_logprobs": 0 if temperature == 1 else -1,
            "skip_reading_prefix_cache": True,
        },
        "output_mode": "tokens",
    }


def completion(answer: Mapping[str, Any], version: int) -> Completion:
    """The one choice of an answer.

    Args:
        answer: Of ``/inference/v1/generate``.
        version: Policy version when the request was sent, for an answer without tokens.

    Raises:
        TrajectoryError: It is no such answer.
        StartedAnewError: The server answered with the weights that it was started with.
    """
    with _expected(answer):
        (choice,) = answer["choices"]
        tokens, logprobs = _sampled(choice)
        return _whole(choice, tokens, logprobs, version)


def piece(event: Mapping[str, Any], before: Sequence[Piece], version: int) -> Piece:
    """One event of a streamed answer.

    Args:
        event: Of ``/inference/v1/generate``; the last has a reason for the end, and the versions of all.
        before: The pieces that came.
        version: Policy version when the request was sent.

    Raises:
        TrajectoryError: It is no such event.
        StartedAnewError: The server answered with the weights that it was started with.
    """
    with _expected(event):
        (choice,) = event["choices"]
        tokens, logprobs = _sampled(choice)
        if choice["finish_reason"] is None:
            return Piece(tokens=tokens, logprobs=logprobs)
        whole = _whole(
            choice,
            np.concatenate([*(one.tokens for one in before), tokens]),
            np.concatenate([*(one.logprobs for one in before), logprobs]),
            version,
        )
        return Piece(tokens=tokens, logprobs=logprobs, completion=whole)


def scores(answer: Mapping[str, Any], row: IntArray, temperature: float) -> FloatArray:
    """[T] log-prob in nats of each token of ``row`` given those before; 0 at index 0.

    Args:
        answer: To `to_score` of the same row and temperature.
        row: [T] at least one token.
        temperature: Of the distribution; 0 takes 1.

    Raises:
        TrajectoryError: It is no such answer.
        StartedAnewError: The server answered with the weights that it was started with.
    """
    found = np.zeros(len(row), dtype=np.float32)
    with _expected(answer):
        (choice,) = answer["choices"]
        _versions(choice, np.zeros(1, dtype=np.int32))  # of the one token that it has sampled
        positions = answer["prompt_logprobs"]
        for place, token in enumerate(row.tolist()[1:], start=1):
            found[place] = _at_temperature(positions[place], str(token), temperature)
    return found


def lost(kind: FailureKind, what: str) -> TrajectoryError:
    """What costs one trajectory: ``what`` the server did, after its name."""
    return TrajectoryError(kind, f"the vLLM server {what}", "vllm")


@contextmanager
def _expected(answer: Mapping[str, Any]) -> Iterator[None]:
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise lost(
            FailureKind.INFRASTRUCTURE,
            f"gave another answer than expected ({type(error).__name__}: {error}): {str(answer)[:300]}",
        ) from error


def _sampled(choice: Mapping[str, Any]) -> tuple[IntArray, FloatArray]:
    """Tokens and their log-probs, one each."""
    tokens = np.array(choice["token_ids"] or [], dtype=np.int32)
    content = (choice["logprobs"] or {}).get("content") or []
    logprobs = np.array([one["logprob"] for one in content], dtype=np.float32)
    if len(logprobs) != len(tokens) or [one["token_id"] for one in content] != tokens.tolist():
        raise lost(
            FailureKind.INFRASTRUCTURE,
            f"gave {len(logprobs)} log-probs for {len(tokens)} tokens, or those of others",
        )
    return tokens, logprobs


def _whole(
    choice: Mapping[str, Any], tokens: IntArray, logprobs: FloatArray, version: int
) -> Completion:
    versions = _versions(choice, np.full(len(tokens), version, dtype=np.int32))
    reason = _FINISHED[choice["finish_reason"]]
    return Completion(tokens=tokens, logprobs=logprobs, versions=versions, finish_reason=reason)


def _versions(choice: Mapping[str, Any], versions: IntArray) -> IntArray:
    """``versions`` with those that the server tells in their place."""
    for span in choice["weight_versions"] or ():
        if span["version"] == _UNNAMED:
            raise StartedAnewError
        versions[span["start"] : span["end"]] = int(span["version"])
    return versions


def _at_temperature(
    position: Mapping[str, Mapping[str, float]], token: str, temperature: float
) -> float:
    """The token's log-prob at a temperature, of those at temperature 1."""
    if temperature in (0, 1):
        return position[token]["logprob"]
    all_of_them = np.array([one["logprob"] for one in position.values()]) / temperature
    top = all_of_them.max()
    return float(
        position[token]["logprob"] / temperature - top - np.log(np.exp(all_of_them - top).sum())
    )
