"""Write a word backwards: a whole environment, from its rows to its reward."""

import itertools
import random
import string
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from skyrl_kernel.env import EnvStep, TextEnv, require_ground_truth
from skyrl_kernel.hookspecs import hookimpl

SPLITS = {"train": slice(0, 400), "validation": slice(400, 500)}


class ReverseEnv(TextEnv):
    """One answer, judged letter by letter."""

    def __init__(self, extras: Mapping[str, Any]) -> None:
        super().__init__(extras)
        self.answer = require_ground_truth(extras, "reverse")
        self.exact = False

    def step(self, action: str) -> EnvStep:
        """Reward the share of letters that stand where they should."""
        said = action.strip()
        self.exact = said == self.answer
        right = sum(a == b for a, b in zip(said, self.answer, strict=False))
        reward = right / max(len(said), len(self.answer))
        return EnvStep(observations=[], reward=reward, done=True, metadata={"said": said})

    def get_metrics(self) -> Mapping[str, float]:
        """Whether the whole word was right."""
        return {"exact_match": float(self.exact)}


def rows(split: str) -> list[dict[str, Any]]:
    """Words of three letters, shuffled; no word is in both splits."""
    words = ["".join(letters) for letters in itertools.product(string.ascii_lowercase, repeat=3)]
    random.Random(0).shuffle(words)
    return [
        {
            "prompt": [{"role": "user", "content": f"Write {word} backwards."}],
            "data_source": "reverse",
            "env_class": "reverse",
            "reward_spec": {"method": "rule", "ground_truth": word[::-1]},
        }
        for word in words[SPLITS[split]]
    ]


@hookimpl
def load_dataset(source: str) -> pa.Table | None:
    """``reverse:train`` and ``reverse:validation``."""
    name, _, split = source.partition(":")
    return pa.Table.from_pylist(rows(split)) if name == "reverse" and split in SPLITS else None


@hookimpl
def make_env(name: str, extras: Mapping[str, Any]) -> ReverseEnv | None:
    """A fresh env, if it is ours that was asked for."""
    return ReverseEnv(extras) if name == "reverse" else None
