"""The fakes keep the contracts that they stand in for."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from skyrl_kernel.env import Env
from skyrl_kernel.protocols import Advantage, Engine, Loss, Trainer
from skyrl_kernel.records import IntArray
from skyrl_kernel.testing import scripted
from skyrl_kernel.testing.contracts import (
    AlgorithmContract,
    CriticContract,
    EngineContract,
    EnvContract,
)
from skyrl_kernel.testing.contracts.engine import SleepContract
from skyrl_kernel.testing.scripted import CharTokenizer, Script, ScriptedEngine, ScriptedTrainer


class TestEngine(SleepContract, EngineContract):
    def make(self) -> Engine:
        return ScriptedEngine(Script())

    def prompts(self) -> Sequence[IntArray]:
        return [CharTokenizer().encode(text) for text in ("one", "twelve")]

    def other_weights(self) -> Iterator[tuple[str, Any]]:
        yield "weight", np.ones(1)


class TestTrainer(CriticContract):
    def make(self) -> Trainer:
        return ScriptedTrainer(Script())

    def rows(self) -> Sequence[IntArray]:
        return [CharTokenizer().encode(text) for text in ("four", "seven", "eleven", "seventeen")]

    def loss(self) -> Loss:
        made = scripted.loss("scripted")
        assert made is not None
        return made


class TestEnv(EnvContract):
    actions = ("it is 7", "it is 8")

    def make(self, cap: int | None = None) -> Env:
        return scripted.ScriptedEnv({"answer": "7", "max_turns": 3}, cap)


class TestAsyncEnv(TestEnv):
    def make(self, cap: int | None = None) -> Env:
        return scripted.AsyncScriptedEnv({"answer": "7", "max_turns": 3}, cap)


class TestAlgorithm(AlgorithmContract):
    def advantage(self) -> Advantage:
        made = scripted.advantage("scripted")
        assert made is not None
        return made

    def loss(self) -> Loss:
        made = scripted.loss("scripted")
        assert made is not None
        return made
