"""Rows of numbers on their way between processes: few large arrays in place of many small ones.

Ray moves an array's memory without pickling it, and lets its reader use it where it lies; each
array costs some microseconds, though, a mini-batch has a dozen for every row, and a round of
completions four for every request.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skyrl_kernel.records import Completion, GenerateRequest, Sampling, Scores, TrainingSample

_MISSING = -1
"""Length of a row that is None."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """Arrays of different lengths, one behind the other; None has its place.

    Example:
        >>> [r if r is None else r.tolist() for r in Rows.of([np.array([1, 2]), None]).unpack()]
        [[1, 2], None]
    """

    flat: NDArray[Any]
    """[sum of lengths]"""
    lengths: NDArray[np.int64]
    """[rows], -1 for None."""

    @classmethod
    def of(cls, rows: Iterable[NDArray[Any] | None]) -> "Rows":
        """Join rows of one dtype."""
        listed = list(rows)
        there = [row for row in listed if row is not None]
        return cls(
            flat=np.concatenate(there) if there else np.zeros(0, np.float32),
            lengths=np.array(
                [_MISSING if row is None else len(row) for row in listed], dtype=np.int64
            ),
        )

    def unpack(self) -> list[Any]:
        """The rows: views of one copy, which may be written to as what Ray lends may not."""
        own = np.array(self.flat)
        stops = np.cumsum(np.maximum(self.lengths, 0)).tolist()
        return [
            None if length == _MISSING else own[stop - length : stop]
            for length, stop in zip(self.lengths.tolist(), stops, strict=True)
        ]


@dataclass(frozen=True, kw_only=True, slots=True)
class Requests:
    """What one call asks of an engine."""

    tokens: Rows
    samplings: Sequence[Sampling]
    """Of each; where it is one object for all, that is pickled once."""
    seeds: Sequence[int]

    @classmethod
    def of(cls, requests: Sequence[GenerateRequest]) -> "Requests":
        """Pack them."""
        return cls(
            tokens=Rows.of(one.tokens for one in requests),
            samplings=[one.sampling for one in requests],
            seeds=[one.seed for one in requests],
        )

    def unpack(self) -> list[GenerateRequest]:
        """What was packed."""
        rows = zip(self.tokens.unpack(), self.samplings, self.seeds, strict=True)
        return [GenerateRequest(tokens=row, sampling=how, seed=seed) for row, how, seed in rows]


@dataclass(frozen=True, kw_only=True, slots=True)
class Completions:
    """What an engine answers to it."""

    tokens: Rows
    logprobs: Rows
    versions: Rows
    reasons: Sequence[Any]
    """``finish_reason`` of each."""

    @classmethod
    def of(cls, completions: Sequence[Completion]) -> "Completions":
        """Pack them."""
        return cls(
            tokens=Rows.of(one.tokens for one in completions),
            logprobs=Rows.of(one.logprobs for one in completions),
            versions=Rows.of(one.versions for one in completions),
            reasons=[one.finish_reason for one in completions],
        )

    def unpack(self) -> list[Completion]:
        """What was packed."""
        columns = [rows.unpack() for rows in (self.tokens, self.logprobs, self.versions)]
        return [
            Completion(tokens=tokens, logprobs=logprobs, versions=versions, finish_reason=reason)
            for tokens, logprobs, versions, reason in zip(*columns, self.reasons, strict=True)
        ]


_COLUMNS = ("tokens", "loss_mask", "advantages", "returns", "sampler_logprobs")
_SCORES = ("old_logprobs", "ref_logprobs", "teacher_logprobs", "values")


@dataclass(frozen=True, kw_only=True, slots=True)
class Samples:
    """A part of a mini-batch."""

    names: Sequence[str]
    """``trajectory_id`` of each."""
    numbers: NDArray[np.int64]
    """[rows, 2] group and trajectory."""
    columns: Mapping[str, Rows]
    scores: Mapping[str, Rows]
    weights: Mapping[str, Rows]
    """Term → loss weights."""

    @classmethod
    def of(cls, samples: Sequence[TrainingSample]) -> "Samples":
        """Pack them. All have the same loss terms."""
        terms = samples[0].loss_weights if samples else ()
        return cls(
            names=[one.trajectory_id for one in samples],
            numbers=np.array([(one.group, one.trajectory) for one in samples], np.int64),
            columns={name: Rows.of(getattr(one, name) for one in samples) for name in _COLUMNS},
            scores={
                name: Rows.of(getattr(one.scores, name) for one in samples) for name in _SCORES
            },
            weights={term: Rows.of(one.loss_weights[term] for one in samples) for term in terms},
        )

    def unpack(self) -> list[TrainingSample]:
        """What was packed."""
        columns = {name: rows.unpack() for name, rows in self.columns.items()}
        scores = {name: rows.unpack() for name, rows in self.scores.items()}
        weights = {term: rows.unpack() for term, rows in self.weights.items()}
        return [
            TrainingSample(
                trajectory_id=name,
                group=int(self.numbers[row, 0]),
                trajectory=int(self.numbers[row, 1]),
                **{column: found[row] for column, found in columns.items()},
                scores=Scores(**{score: found[row] for score, found in scores.items()}),
                loss_weights={term: found[row] for term, found in weights.items()},
            )
            for row, name in enumerate(self.names)
        ]
