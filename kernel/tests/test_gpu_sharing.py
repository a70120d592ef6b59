"""Trainer and engine on one GPU take turns: the loop's order, with fakes that compute in their own turn only."""

import asyncio
import importlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from skyrl_kernel.errors import CapabilityError, HookError, RunError
from skyrl_kernel.gpu_sharing import GpuSharing
from skyrl_kernel.plan import make_plan
from skyrl_kernel.plugins import discover
from skyrl_kernel.slots import BACKENDS, PLUGINS
from skyrl_kernel.testing.distributions import make_distribution
from skyrl_kernel.testing.scripted import (
    Script,
    ScriptedEngine,
    ScriptedTrainer,
    installed,
    read_metrics,
    run_scripted,
)

OFFLOAD = "generator.inference_engine.offload_kv_for_weight_sync=true"
RAY = "trainer.runtime=ray"
APART = "trainer.placement.colocate_all=false"
AHEAD = "trainer.fully_async.enabled=true"
ONE_STEP = ("trainer.max_training_steps=1", "data.val_data=[]", "trainer.ckpt_interval=-1")

SCORES = """
from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.protocols import Evaluate

@hookimpl
def evaluate(name):
    if name != "scores":
        return None
    return Evaluate(
        fn=lambda scored: {"old": float(sum(one.scores[0].old_logprobs.sum() for one in scored))},
        needs=frozenset({"old_logprobs"}),
    )
"""

ENGINE = """
from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.testing import scripted

@hookimpl
def make_engine(name):
    if name != "{name}":
        return None
    engine = scripted.make_engine("scripted")
    {change}
    return engine
"""
INSOMNIA = 'engine.__class__ = type("Insomniac", (type(engine),), {"sleep": None})'


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with installed(tmp_path_factory.mktemp("site")) as folder:
        _install(folder, "scores", PLUGINS, SCORES, 'slots = ["trainer.evaluator"]')
        for name, offers, change in (
            ("served", ["served", "receives_weights"], ""),
            ("sleeper", ["served", "sleeps", "concurrent_generation"], ""),
            ("insomniac", ["served", "sleeps"], INSOMNIA),
        ):
            slots = 'slots = ["generator.inference_engine.backend"]'
            source = ENGINE.format(name=name, change=change)
            _install(folder, name, BACKENDS, source, f"{slots}\noffers = {offers}")
        importlib.invalidate_caches()
        discover(refresh=True)
        yield folder


def _install(folder: Path, name: str, group: str, source: str, manifest: str) -> None:
    make_distribution(
        folder,
        f"skyrl-{name}",
        modules={f"skyrl_{name}.plugin": source},
        entry_points={group: {name: f"skyrl_{name}.plugin"}},
        files={f"skyrl_{name}/plugin.toml": f"[{name}]\n{manifest}"},
    )


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run believes this variable; the fakes need no device."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def events(script: Script) -> list[str]:
    """What happened but for each request, which is in no order."""
    found = [one for one in script.events if not one.startswith(("ask", "answer"))]
    return [one for place, one in enumerate(found) if found[place - 1 : place] != [one]]


@pytest.mark.usefixtures("site", "gpu")
def test_each_has_the_gpu_in_its_turn_and_both_hold_weights_in_a_sync_alone(tmp_path: Path) -> None:
    script = Script()
    run_scripted(tmp_path, *ONE_STEP, script=script)
    one = ["sleep 2", "onload", "wake weights", "sync 0", "offload", "wake kv_cache"]
    two = ["sleep 2", "onload", "update", "wake weights", "sync 1", "offload", "wake kv_cache"]
    assert events(script) == ["offload", *one, *two, "export", "save"]


@pytest.mark.usefixtures("site", "gpu")
def test_requests_come_between_the_engines_waking_and_its_next_sleep(tmp_path: Path) -> None:
    script = Script()
    run_scripted(tmp_path, "trainer.epochs=1", "trainer.eval_interval=1", script=script)
    is_awake = True
    for event in script.events:
        is_awake = event == "wake kv_cache" or (is_awake and not event.startswith("sleep"))
        assert is_awake or not event.startswith(("ask", "answer"))


@pytest.mark.usefixtures("site", "gpu")
def test_the_numbers_are_those_of_a_run_without_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("trainer.epochs=2", "trainer.ckpt_interval=1", "trainer.eval_interval=1")
    in_turns = run_scripted(tmp_path / "turns", *words)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    script = Script()
    at_once = run_scripted(tmp_path / "at_once", *words, script=script)
    assert read_metrics(in_turns) == read_metrics(at_once)
    assert not {"sleep 2", "offload"} & set(script.events)


@pytest.mark.usefixtures("site", "gpu")
def test_a_resumed_run_hands_over_as_a_new_one_does(tmp_path: Path) -> None:
    words = ("data.val_data=[]", "trainer.ckpt_interval=1")
    run_scripted(tmp_path, *words, "trainer.max_training_steps=1")
    script = Script()
    run_scripted(tmp_path, *words, "trainer.max_training_steps=2", script=script)
    assert events(script)[:4] == ["offload", "sleep 2", "onload", "wake weights"]
    assert script.trainer is not None
    assert script.engine is not None
    assert script.trainer.weight[0] == script.engine.weight


@pytest.mark.usefixtures("site", "gpu")
def test_an_evaluation_that_needs_scores_leaves_the_engine_its_weights(tmp_path: Path) -> None:
    script = Script()
    words = (
        "trainer.evaluator=scores",
        "trainer.eval_before_train=true",
        "trainer.eval_interval=-1",
    )
    run_scripted(tmp_path, *words, "trainer.max_training_steps=1", script=script)
    first = events(script)[: events(script).index("update")]
    lent = ["sleep 1", "onload", "wake weights", "offload", "wake kv_cache"]
    assert first[-len(lent) - 2 :] == [*lent, "sleep 2", "onload"]


@pytest.mark.usefixtures("site", "gpu")
def test_a_failure_in_the_trainers_turn_wakes_nobody_and_hides_behind_nothing() -> None:
    script = Script()
    gpu = GpuSharing(make_plan(["scripted"]), ScriptedEngine(script), ScriptedTrainer(script), here)

    async def fail() -> None:
        async with gpu.lent():
            raise RunError("the scores are not finite")

    with pytest.raises(RunError, match="the scores are not finite"):
        asyncio.run(fail())
    assert events(script) == ["sleep 1", "onload"]


async def here(method: Callable[[], None]) -> None:
    method()


@pytest.mark.usefixtures("site")
def test_an_engine_with_a_gpu_of_its_own_sleeps_in_a_sync_alone(tmp_path: Path) -> None:
    script = Script()
    words = ("generator.inference_engine.backend=sleeper", OFFLOAD, APART)
    run_scripted(tmp_path, *ONE_STEP, *words, script=script)
    one, two = ["sleep 2", "wake weights", "sync 0", "wake kv_cache"], ["sleep 2", "wake weights"]
    assert events(script) == [*one, "update", *two, "sync 1", "wake kv_cache", "export", "save"]


@pytest.mark.usefixtures("site")
def test_a_cache_is_not_dropped_under_running_requests() -> None:
    words = [OFFLOAD, APART, AHEAD, "generator.inference_engine.backend=sleeper"]
    with pytest.raises(
        CapabilityError, match=r"offload_kv_for_weight_sync=true drops .* leave one"
    ):
        make_plan(["scripted"], overrides=words)


@pytest.mark.usefixtures("site", "gpu")
def test_what_a_run_says_of_its_gpus_counts_more_than_what_this_machine_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def hands_over_gpu(*words: str) -> bool:
        words = (RAY, "generator.inference_engine.backend=sleeper", *words)
        return make_plan(["scripted"], overrides=words).hands_over_gpu

    assert hands_over_gpu()
    assert not hands_over_gpu("trainer.ray.use_gpus=false")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # as on the head of a cluster
    assert not hands_over_gpu()
    assert hands_over_gpu("trainer.ray.use_gpus=true")
    assert not hands_over_gpu("trainer.ray.use_gpus=true", APART)


@pytest.mark.usefixtures("site", "gpu")
def test_a_run_ahead_takes_no_turns() -> None:
    words = [AHEAD, "generator.inference_engine.backend=sleeper"]
    with pytest.raises(
        CapabilityError, match=r"take turns on the same GPUs; give the engine its own"
    ):
        make_plan(["scripted"], overrides=words)
    assert not make_plan(["scripted"], overrides=[*words, APART]).hands_over_gpu


@pytest.mark.usefixtures("site", "gpu")
def test_an_engine_that_cannot_sleep_is_refused_on_the_trainers_gpu() -> None:
    plugins = ["grpo", "fsdp", "multiply"]
    words = ["generator.inference_engine.backend=served", "data.train_data=['multiply:train']"]
    with pytest.raises(
        CapabilityError, match=r"colocate_all=true on a GPU needs 'sleeps'.*scripted"
    ):
        make_plan(plugins, overrides=words)
    make_plan(plugins, overrides=[*words, APART])


@pytest.mark.usefixtures("site", "gpu")
def test_an_engine_that_offers_sleep_and_has_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HookError, match=r"'insomniac' offers 'sleeps' and has no methods sleep"):
        run_scripted(tmp_path, *ONE_STEP, "generator.inference_engine.backend=insomniac")
