"""A plugin of fakes, so that the whole stack runs in a blink, without torch or a model.

Everything is real but the numbers: ``skyrl run --plugin scripted`` goes through
discovery, config, the loop and the run folder. What the fakes do is a `Script`;
what they were asked is written down in it. Nothing is installed outside of
`installed`::

    script = Script(reply=lambda ask: "1")
    with installed(tmp_path / "site"):
        result = run_scripted(tmp_path, "trainer.epochs=2", script=script)
    assert script.trainer.updates == 8

Rows come from ``scripted:N`` (N rows) or from files; see `env.ScriptedEnv` for
the columns that make an env misbehave.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, Field

from skyrl_kernel.config.section import Section
from skyrl_kernel.env import Env
from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.protocols import Advantage, Engine, Loss, Settings, SyncWeights, Trainer
from skyrl_kernel.records import Scored, TokenAdvantages
from skyrl_kernel.testing.scripted.engine import CountingEngine, ScriptedEngine
from skyrl_kernel.testing.scripted.env import AsyncScriptedEnv, ScriptedEnv
from skyrl_kernel.testing.scripted.script import COUNTING, NAME, Ask, Script, current, perform
from skyrl_kernel.testing.scripted.stack import installed, read_metrics, run_scripted
from skyrl_kernel.testing.scripted.tokenizer import CharTokenizer
from skyrl_kernel.testing.scripted.trainer import ScriptedTrainer

if TYPE_CHECKING:
    import pyarrow as pa

    from skyrl_kernel.torch import LossInputs, LossTerms

__all__ = [
    "Ask",
    "AsyncScriptedEnv",
    "CharTokenizer",
    "CountingEngine",
    "Script",
    "ScriptedConfig",
    "ScriptedEngine",
    "ScriptedEnv",
    "ScriptedTrainer",
    "installed",
    "make_scripted_env",
    "perform",
    "read_metrics",
    "run_scripted",
    "scripted_rows",
]


class ScriptedConfig(Section):
    """``environment.scripted``: defaults of the rows that leave them open."""

    max_turns: int = Field(default=1, ge=1)
    """Turns of a row that lists no rewards."""
    right_reward: float = 1.0
    """Reward of a reply that holds the row's answer."""


def scripted_rows(count: int) -> list[dict[str, Any]]:
    """Rows whose answer is 0 or 1, which the default reply hits half the time."""
    return [
        {"prompt": [{"role": "user", "content": f"say {i % 2}"}], "answer": str(i % 2)}
        for i in range(count)
    ]


@hookimpl
def config_sections() -> Mapping[str, type[BaseModel]]:
    """``environment.scripted``."""
    return {"environment.scripted": ScriptedConfig}


@hookimpl
def load_dataset(source: str) -> "pa.Table | None":
    """``scripted:N``: N rows."""
    import pyarrow as pa

    name, _, count = source.partition(":")
    return pa.Table.from_pylist(scripted_rows(int(count))) if name == NAME else None


@hookimpl
def load_model(path: str) -> Path | None:
    """A directory; the fakes read nothing in it."""
    return Path(__file__).parent if path.partition(":")[0] == NAME else None


@hookimpl
def make_tokenizer(name: str) -> CharTokenizer | None:
    """A token for each character."""
    return CharTokenizer() if name == NAME else None


@hookimpl
def make_engine(name: str) -> Engine | None:
    """An engine that answers by the script; ``counting`` counts what it does."""
    if name not in (NAME, COUNTING):
        return None
    script = current()
    script.engine = (CountingEngine if name == COUNTING else ScriptedEngine)(script)
    return script.engine


@hookimpl
def make_trainer(name: str, elsewhere: Collection[str]) -> Trainer | None:
    """A trainer of one number."""
    if name != NAME:
        return None
    script = current()
    script.trainer = ScriptedTrainer(script, elsewhere)
    return script.trainer


@hookimpl
def make_env(
    name: str, settings: Settings, extras: Mapping[str, Any], max_turns: int | None
) -> Env | None:
    """An env that does what its row says."""
    if name != NAME:
        return None
    config = settings[ScriptedConfig]
    defaults = {"max_turns": config.max_turns, "right_reward": config.right_reward}
    return make_scripted_env(name, {**defaults, **extras}, max_turns)


def make_scripted_env(
    name: str, extras: Mapping[str, Any], max_turns: int | None
) -> ScriptedEnv | AsyncScriptedEnv:
    """A `ScriptedEnv`, or an `AsyncScriptedEnv` if the row's ``is_async`` is true.

    Can be pickled, and so serve `EnvProcessPool` without any plugin.
    """
    made = AsyncScriptedEnv if extras.get("is_async") else ScriptedEnv
    return made(extras, cap=max_turns)


@hookimpl
def sync_weights(name: str) -> SyncWeights | None:
    """The whole transaction: begin, apply, finish."""
    return _sync if name == NAME else None


async def _sync(trainer: Trainer, engine: Engine, version: int) -> None:
    await engine.begin_update(version)
    await engine.apply_update(trainer.weights())
    await engine.finish_update(version)


@hookimpl
def advantage(name: str) -> Advantage | None:
    """Each token's advantage is its trajectory's reward minus the group's mean."""
    if name != NAME:
        return None
    return Advantage(fn=lambda groups: [_centred(group) for group in groups])


def _centred(group: Sequence[Scored]) -> list[tuple[TokenAdvantages, ...]]:
    totals = [one.total_reward for one in group]
    mean = sum(totals) / len(totals) if totals else 0.0
    return [
        tuple(
            TokenAdvantages(
                advantages=(segment.loss_mask * (total - mean)).astype(np.float32),
                loss_mask=segment.loss_mask,
            )
            for segment in one.trajectory.segments
        )
        for one, total in zip(group, totals, strict=True)
    ]


@hookimpl
def loss(name: str) -> Loss | None:
    """REINFORCE; the scripted trainer reads its weights and never calls it."""
    return Loss(fn=_reinforce, needs=frozenset({"old_logprobs"})) if name == NAME else None


def _reinforce(inputs: "LossInputs") -> "LossTerms":
    from skyrl_kernel.torch import LossTerms

    return LossTerms(terms={"policy": -inputs.logprobs * inputs.advantages})
