"""The contract suites refuse what breaks the contract: a broken thing of each kind, and its test."""

import signal
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from skyrl_kernel.env import Env
from skyrl_kernel.errors import HookError, RunError
from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.plugins import discover
from skyrl_kernel.protocols import Engine, Loss, Trainer
from skyrl_kernel.records import Completion, GenerateRequest, IntArray
from skyrl_kernel.rollout.env_checks import BadResult
from skyrl_kernel.testing import scripted
from skyrl_kernel.testing.contracts import (
    EngineContract,
    EnvContract,
    ObserverContract,
    TrainerContract,
)
from skyrl_kernel.testing.contracts.engine import SleepContract
from skyrl_kernel.testing.distributions import make_distribution, on_path
from skyrl_kernel.testing.scripted import Script, ScriptedEngine, ScriptedEnv, ScriptedTrainer

Refused = (AssertionError, BadResult, pytest.fail.Exception)


# --- envs --------------------------------------------------------------------------------


class ChangesThePrompt(ScriptedEnv):
    def init(self, prompt: Any) -> Any:
        prompt[0]["content"] += " Think."
        return prompt, {}


class NeverEnds(ScriptedEnv):
    def step(self, action: str) -> Any:
        return {
            **super().step(action),
            "done": False,
            "observations": [{"role": "user", "content": "x"}],
        }


class SaysNothing(ScriptedEnv):
    def step(self, action: str) -> Any:
        return {**super().step(action), "observations": []}


class RewardsWithText(ScriptedEnv):
    def step(self, action: str) -> Any:
        return {**super().step(action), "reward": "1"}


class Remembers(ScriptedEnv):
    episodes = 0

    def step(self, action: str) -> Any:
        Remembers.episodes += 1
        return {**super().step(action), "reward": float(Remembers.episodes)}


class IgnoresTheCap(ScriptedEnv):
    def __init__(self, extras: Any, cap: int | None = None) -> None:
        super().__init__(extras)


class ObeysTheCapAsALimit(ScriptedEnv):
    def __init__(self, extras: Any, cap: int | None = None) -> None:
        super().__init__({"max_turns": cap} if cap else extras)


class KeepsAnArray(ScriptedEnv):
    def step(self, action: str) -> Any:
        return {**super().step(action), "metadata": {"scores": np.zeros(2)}}


class ChokesOnUnicode(ScriptedEnv):
    def step(self, action: str) -> Any:
        action.encode()
        return super().step(action)


@pytest.mark.parametrize(
    ("env", "test"),
    [
        (
            ChangesThePrompt,
            EnvContract.test_init_returns_chat_messages_and_leaves_its_argument_alone,
        ),
        (NeverEnds, EnvContract.test_every_episode_ends_with_checked_steps_and_metrics),
        (RewardsWithText, EnvContract.test_every_episode_ends_with_checked_steps_and_metrics),
        (SaysNothing, EnvContract.test_an_unfinished_step_says_something),
        (Remembers, EnvContract.test_equal_actions_give_equal_rewards),
        (IgnoresTheCap, EnvContract.test_a_cap_shortens_and_never_lengthens),
        (ObeysTheCapAsALimit, EnvContract.test_a_cap_shortens_and_never_lengthens),
    ],
)
def test_a_broken_env_is_refused(env: type[ScriptedEnv], test: Callable[[Any], None]) -> None:
    class Contract(EnvContract):
        def make(self, cap: int | None = None) -> Env:
            return env({"max_turns": 3}, cap)

    with pytest.raises(Refused):
        test(Contract())


def test_an_env_is_tried_with_what_models_do_say() -> None:
    class Contract(EnvContract):
        env: type[ScriptedEnv] = ChokesOnUnicode

        def make(self, cap: int | None = None) -> Env:
            return self.env({}, cap)

    with pytest.raises(UnicodeEncodeError):  # a lone surrogate
        Contract().test_every_episode_ends_with_checked_steps_and_metrics()
    Contract.env = KeepsAnArray
    with pytest.raises(TypeError, match="not JSON serializable"):
        Contract().test_metadata_survives_json()


# --- engines -----------------------------------------------------------------------------


class DependsOnItsNeighbours(ScriptedEngine):
    async def generate(self, requests: Sequence[GenerateRequest]) -> list[Completion]:
        self._script.reply = lambda ask: str(len(requests))
        return await super().generate(requests)


class IgnoresTheSeed(ScriptedEngine):
    async def generate(self, requests: Sequence[GenerateRequest]) -> list[Completion]:
        self._script.reply = lambda ask: "x"
        return await super().generate(requests)


class ReportsOtherLogprobs(ScriptedEngine):
    async def logprobs(self, rows: Sequence[IntArray], *, temperature: float) -> Any:
        return [row * 0.5 for row in await super().logprobs(rows, temperature=temperature)]


class CommitsAnything(ScriptedEngine):
    async def finish_update(self, version: int) -> None:
        self.version = version


class ForgetsItsVersion(ScriptedEngine):
    async def finish_update(self, version: int) -> None:
        await super().finish_update(version)
        self.version = 0


class IgnoresPauses(ScriptedEngine):
    async def pause(self) -> None:
        """Go on."""


class AnswersInItsSleep(ScriptedEngine):
    def _refuse_asleep(self, what: str) -> None:
        """Go on."""


class DropsItsWeights(ScriptedEngine):
    async def sleep(self, level: int) -> None:
        await super().sleep(level)
        self.weight = 0.5


class RefusesWhatComesInItsSleep(ScriptedEngine):
    async def apply_update(self, weights: Any) -> None:
        self._refuse_asleep("kv_cache")
        await super().apply_update(weights)


@pytest.mark.parametrize(
    ("engine", "test"),
    [
        (DependsOnItsNeighbours, EngineContract.test_a_completion_depends_on_its_own_request_alone),
        (IgnoresTheSeed, EngineContract.test_other_seeds_give_other_completions),
        (ReportsOtherLogprobs, EngineContract.test_sampled_log_probs_are_those_of_the_weights),
        (CommitsAnything, EngineContract.test_a_torn_update_is_an_error_and_the_old_weights_stay),
        (
            ForgetsItsVersion,
            EngineContract.test_an_update_is_a_transaction_that_ends_with_its_version,
        ),
        (IgnoresPauses, EngineContract.test_a_paused_engine_waits_until_it_may_go_on),
        (IgnoresPauses, EngineContract.test_an_abort_ends_what_runs_and_nothing_that_comes_after),
        (AnswersInItsSleep, SleepContract.test_a_request_in_its_sleep_is_an_error),
        (DropsItsWeights, SleepContract.test_at_level_1_it_keeps_its_weights),
        (
            RefusesWhatComesInItsSleep,
            SleepContract.test_it_wakes_with_the_weights_that_came_in_its_sleep,
        ),
    ],
)
def test_a_broken_engine_is_refused(
    engine: type[ScriptedEngine], test: Callable[[Any], None]
) -> None:
    class Contract(SleepContract, EngineContract):
        def make(self) -> Engine:
            return engine(Script())

        def prompts(self) -> Sequence[IntArray]:
            return [np.array([9, 10], dtype=np.int32), np.array([9, 10, 11], dtype=np.int32)]

        def other_weights(self) -> Iterable[tuple[str, Any]]:
            return [("weight", np.ones(1))]

    with pytest.raises((AssertionError, pytest.fail.Exception, RunError)):
        test(Contract())


class KeepsItsTurn(ScriptedEngine):
    """Waits for the end of a pause, and lets nobody end it."""

    is_paused = False

    async def pause(self) -> None:
        self.is_paused = True

    async def generate(self, requests: Any) -> Any:
        while self.is_paused:
            time.sleep(0.01)
        return await super().generate(requests)


class Described(SleepContract, EngineContract):
    """An engine of the plugin ``half``."""

    plugin = "half"

    def make(self) -> Engine:
        return ScriptedEngine(Script())  # sleeps and forgets its cache

    def prompts(self) -> Sequence[IntArray]:
        return [np.array([9, 10], dtype=np.int32), np.array([9, 10, 11], dtype=np.int32)]


def test_an_engine_that_keeps_the_event_loop_is_told_the_rule_and_no_hang() -> None:
    class Contract(Described):
        patience_s = 0.5

        def make(self) -> Engine:
            return KeepsItsTurn(Script())

    before, timer = signal.getsignal(signal.SIGALRM), signal.getitimer(signal.ITIMER_REAL)
    with pytest.raises(
        pytest.fail.Exception,
        match=r"the engine keeps the event loop for 0\.5 s \(patience_s\) in KeepsItsTurn\.generate, line "
        r"\d+: .* await asyncio\.sleep\(0\) between tokens",
    ):
        Contract().test_a_paused_engine_waits_until_it_may_go_on()
    assert signal.getsignal(signal.SIGALRM) is before
    left, again = signal.getitimer(signal.ITIMER_REAL)  # somebody else's
    assert (left <= timer[0], again) == (True, timer[1])


@pytest.mark.parametrize(
    ("offers", "told"),
    [
        (["sleeps", "forgets_cache", "concurrent_generation"], None),
        (["sleeps", "forgets_cache", "streams"], "beside what its plugin.toml"),
        (["sleeps"], "beside what its plugin.toml"),
        (["sleeps", "forgets_cache", "served"], "ServedContract is not run"),
    ],
)
def test_what_a_plugin_offers_and_what_the_suite_finds_agree(
    tmp_path: Path, offers: list[str], told: str | None
) -> None:
    with on_path(tmp_path):
        make_distribution(
            tmp_path,
            "skyrl-half",
            modules={"skyrl_half.plugin": ""},
            entry_points={"skyrl.backends": {"half": "skyrl_half.plugin"}},
            files={"skyrl_half/plugin.toml": f"[half]\noffers = {offers}\n"},
        )
        discover(refresh=True)
        test = Described().test_what_its_plugin_offers_is_there_and_is_checked
        if told is None:
            test()
        else:
            with pytest.raises(AssertionError, match=told):
                test()


# --- trainers ----------------------------------------------------------------------------


class ForgetsOnSave(ScriptedTrainer):
    def load(self, folder: Path) -> None:
        self.updates = 1


class AlwaysChanges(ScriptedTrainer):
    def update(self, batch: Any, loss: Any, *, temperature: float) -> Any:
        result = super().update(batch, loss, temperature=temperature)
        self.weight = self.weight + 0.1
        return result


class LooksAtTheOrder(ScriptedTrainer):
    def update(self, batch: Any, loss: Any, *, temperature: float) -> Any:
        return super().update(batch[:1], loss, temperature=temperature)


class LooksBehindTheMask(ScriptedTrainer):
    def update(self, batch: Any, loss: Any, *, temperature: float) -> Any:
        result = super().update(batch, loss, temperature=temperature)
        total = sum(float(one.advantages.sum()) for one in batch)
        return type(result)(metrics={**result.metrics, "final_loss": total}, weights_changed=True)


class ScoresFromTheFirstToken(ScriptedTrainer):
    def score(self, role: str, rows: Sequence[IntArray], *, temperature: float) -> Any:
        return [row - 1 for row in super().score(role, rows, temperature=temperature)]


class OffloadsItsOnlyCopy(ScriptedTrainer):
    def offload(self) -> None:
        self._kept, self.weight = self.weight, np.zeros(1)

    def onload(self) -> None:
        self.weight = self._kept


class Pickles(ScriptedTrainer):
    def save(self, folder: Path) -> None:
        (folder / "state.pt").touch()


@pytest.mark.parametrize(
    ("trainer", "test"),
    [
        (ForgetsOnSave, TrainerContract.test_what_was_saved_continues_bit_for_bit),
        (
            AlwaysChanges,
            TrainerContract.test_a_batch_that_is_all_masked_changes_nothing_and_says_so,
        ),
        (LooksAtTheOrder, TrainerContract.test_the_order_of_rows_changes_nothing),
        (LooksBehindTheMask, TrainerContract.test_advantages_of_masked_tokens_are_never_read),
        (
            ScoresFromTheFirstToken,
            TrainerContract.test_scores_are_log_probs_of_each_token_in_the_order_of_the_rows,
        ),
        (OffloadsItsOnlyCopy, TrainerContract.test_what_is_offloaded_is_saved_and_exported_whole),
        (Pickles, TrainerContract.test_no_pickle_is_written),
    ],
)
def test_a_broken_trainer_is_refused(
    trainer: type[ScriptedTrainer], test: Callable[..., None], tmp_path: Path
) -> None:
    class Contract(TrainerContract):
        def make(self) -> Trainer:
            return trainer(Script())

        def rows(self) -> Sequence[IntArray]:
            return [np.arange(9, 9 + length, dtype=np.int32) for length in (4, 6, 9)]

        def loss(self) -> Loss:
            made = scripted.loss("scripted")
            assert made is not None
            return made

    takes_folder = "tmp_path" in test.__code__.co_varnames[: test.__code__.co_argcount]
    with pytest.raises(AssertionError):
        test(Contract(), *([tmp_path] if takes_folder else []))


# --- observers ---------------------------------------------------------------------------


def observer(**hooks: Callable[..., None]) -> ModuleType:
    module = ModuleType("skyrl_observer")
    for name, function in hooks.items():
        setattr(module, name, hookimpl(function))
    return module


def counts(step: Any) -> None:
    int(step.metrics["policy/final_loss"])  # NaN has no integer


def adds(step: Any) -> None:
    step.metrics["mine"] = 1.0


def test_a_broken_observer_is_refused(tmp_path: Path) -> None:
    contract = ObserverContract()
    contract._folder = tmp_path

    contract.module = observer(on_step_end=counts)
    with pytest.raises(ValueError, match="cannot convert float NaN to integer"):
        contract.test_a_whole_run_passes()

    contract.module = observer(on_step_end=adds)
    with pytest.raises(AssertionError):
        contract.test_it_changes_nothing_that_it_is_shown()

    contract.module = observer(on_stepend=lambda step: None)
    with pytest.raises(HookError, match="on_step_end"):
        contract.test_it_observes_something_and_every_hook_fits()
