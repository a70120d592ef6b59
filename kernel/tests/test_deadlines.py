"""Whatever hangs, a run ends within its deadlines and says what hung."""

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from skyrl_kernel import event_loop
from skyrl_kernel.errors import RunError, WeightSyncError
from skyrl_kernel.plugins import discover
from skyrl_kernel.rollout.deadline import CallTimeout, given_up_after
from skyrl_kernel.slots import BACKENDS, PLUGINS
from skyrl_kernel.testing.distributions import make_distribution
from skyrl_kernel.testing.scripted import Script, installed, read_metrics, run_scripted

ENGINES = """
import asyncio

from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.testing.scripted.engine import ScriptedEngine
from skyrl_kernel.testing.scripted.script import current


class Hangs(ScriptedEngine):
    async def {method}(self, *args, **kwargs):
        await asyncio.sleep(3600)


class IsDeaf(ScriptedEngine):
    async def {method}(self, *args, **kwargs):
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                pass


@hookimpl
def make_engine(name):
    made = {{"hangs_{method}": Hangs, "deaf_{method}": IsDeaf}}.get(name)
    return made(current()) if made else None
"""

STAGES = """
import asyncio
import time

from skyrl_kernel.hookspecs import hookimpl


async def waits(trainer, engine, version):
    await asyncio.Event().wait()


async def in_a_thread(trainer, engine, version):
    await asyncio.to_thread(time.sleep, 3600)


async def blocks(trainer, engine, version):
    time.sleep(2)
    print("it returned")


@hookimpl
def sync_weights(name):
    return {"waits": waits, "in_a_thread": in_a_thread, "blocks": blocks}.get(name)
"""

METHODS = ("begin_update", "apply_update", "finish_update", "logprobs", "close")
OFFERS = ["concurrent_generation", "receives_weights", "exact_logprobs"]
SHORT = (
    "generator.inference_engine.weight_sync_timeout_s=0.3",
    "trainer.close_timeout_s=0.3",
    "data.val_data=[]",
)
AHEAD = ("trainer.fully_async.enabled=true", "trainer.fully_async.max_staleness_steps=2")
ENGINE = "generator.inference_engine"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with installed(tmp_path_factory.mktemp("site")) as folder:
        names = [f"{how}_{method}" for method in METHODS for how in ("hangs", "deaf")]
        make_distribution(
            folder,
            "skyrl-hangs",
            modules={f"skyrl_hangs.{one}": ENGINES.format(method=one) for one in METHODS},
            entry_points={BACKENDS: {one: f"skyrl_hangs.{one.split('_', 1)[1]}" for one in names}},
            files={
                "skyrl_hangs/plugin.toml": "".join(
                    f"[{one}]\nslots = ['{ENGINE}.backend']\noffers = {OFFERS}\n" for one in names
                )
            },
        )
        make_distribution(
            folder,
            "skyrl-waits",
            modules={"skyrl_waits": STAGES},
            entry_points={
                PLUGINS: dict.fromkeys(("waits", "in_a_thread", "blocks"), "skyrl_waits")
            },
        )
        discover(refresh=True)
        yield folder


@pytest.fixture(autouse=True)
def in_time() -> Iterator[None]:
    """No deadline of these tests is above a second."""
    started = time.monotonic()
    yield
    assert time.monotonic() - started < 30


@pytest.mark.usefixtures("site")
@pytest.mark.parametrize("how", ["hangs", "deaf"])
@pytest.mark.parametrize("method", METHODS[:-1])
@pytest.mark.parametrize("ahead", [(), AHEAD], ids=["in turns", "ahead"])
def test_an_engine_that_hangs_in_a_weight_sync_ends_the_run_and_is_named(
    tmp_path: Path, how: str, method: str, ahead: tuple[str, ...]
) -> None:
    name = f"{how}_{method}"
    words = [f"{ENGINE}.backend={name}", f"{ENGINE}.weight_sync_backend=push"]
    with pytest.raises(
        WeightSyncError,
        match=rf"^the sync of policy version 0 to the engine '{name}' by 'push' was not done within "
        rf"generator\.inference_engine\.weight_sync_timeout_s=0\.3 s; it waits in .*\.{method} → sleep\.",
    ):
        run_scripted(tmp_path, *SHORT, *ahead, *words)


@pytest.mark.usefixtures("site")
def test_a_stage_that_never_returns_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(
        WeightSyncError, match=r"by 'waits' was not done .* it waits in .*waits → Ev"
    ):
        run_scripted(tmp_path, *SHORT, f"{ENGINE}.weight_sync_backend=waits")


@pytest.mark.usefixtures("site")
def test_a_stage_that_blocks_is_named_at_the_deadline_and_ends_the_run_when_it_returns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    who = r"plugin '\w+' \(skyrl-waits 0\.1\.0\) in hook 'sync_weights' \(skyrl_waits\.blocks, line \d+\)"
    with pytest.raises(
        WeightSyncError, match=rf"weight_sync_timeout_s=0\.3 s; {who} blocked the run for 2\.\d s\."
    ):
        run_scripted(tmp_path, *SHORT, f"{ENGINE}.weight_sync_backend=blocks")
    told, _, _ = capsys.readouterr().out.partition("it returned")
    assert re.search(rf"warning: {who} has blocked the run for [01]\.\d s", told)


@pytest.mark.usefixtures("site")
def test_a_deadline_that_is_none_may_be_any_number(tmp_path: Path) -> None:
    run_scripted(tmp_path, *SHORT, f"{ENGINE}.weight_sync_timeout_s=1e300")


@pytest.mark.usefixtures("site")
@pytest.mark.parametrize("name", ["hangs_close", "deaf_close"])
def test_an_engine_that_does_not_close_is_an_error_after_all_steps_are_saved(
    tmp_path: Path, name: str
) -> None:
    words = [f"{ENGINE}.backend={name}", f"{ENGINE}.weight_sync_backend=push"]
    with pytest.raises(
        RunError,
        match=rf"^all 4 steps are done .* the engine '{name}' did not end within "
        r"trainer\.close_timeout_s=0\.3 s and was left behind; it waits in .*\.close → sleep$",
    ):
        run_scripted(tmp_path, *SHORT, *words)
    assert (tmp_path / "test_run" / "checkpoints" / "global_step_4").is_dir()
    again = run_scripted(tmp_path, *SHORT, *words)
    assert (again.status, len(read_metrics(again))) == ("already finished", 4)


@pytest.mark.usefixtures("site")
def test_what_does_not_close_after_a_failure_does_not_hide_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def on_update(number: int) -> None:
        raise ArithmeticError("no more numbers")

    words = [f"{ENGINE}.backend=deaf_close", f"{ENGINE}.weight_sync_backend=push"]
    with pytest.raises(RunError, match="ArithmeticError: no more numbers"):
        run_scripted(tmp_path, *SHORT, *AHEAD, *words, script=Script(on_update=on_update))
    assert "the engine 'deaf_close' did not end within" in capsys.readouterr().out


@pytest.mark.usefixtures("site")
def test_ctrl_c_does_not_wait_for_an_update_that_hangs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    release = threading.Event()

    def on_update(number: int) -> None:
        if number == 1:
            os.kill(os.getpid(), signal.SIGINT)
            release.wait(60)

    interval = "trainer.ckpt_interval=1"
    try:
        with pytest.raises(KeyboardInterrupt, match="the same command goes on after step 1"):
            run_scripted(tmp_path, *SHORT, *AHEAD, interval, script=Script(on_update=on_update))
    finally:
        release.set()
    assert "the trainer did not end within trainer.close_timeout_s=0.3 s" in capsys.readouterr().out
    script = Script()
    assert run_scripted(tmp_path, *SHORT, *AHEAD, interval, script=script).step == 4
    assert script.trainer is not None
    assert len(script.trainer.batches) == 3


@pytest.mark.parametrize("name", ["in_a_thread", "waits"])
def test_the_process_ends_too_and_says_one_line(site: Path, tmp_path: Path, name: str) -> None:
    words = [f"{ENGINE}.weight_sync_backend={name}", f"trainer.ckpt_path={tmp_path}", *SHORT]
    done = subprocess.run(
        [str(Path(sys.executable).with_name("skyrl")), "run", "--plugin", "scripted", *words],
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        timeout=25,
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(
        f"skyrl: the sync of policy version 0 to the engine 'scripted' by '{name}'"
    )


# --- what they are made of ------------------------------------------------------------------------


def test_a_result_or_an_error_in_time_is_passed_on() -> None:
    async def fails() -> None:
        raise ValueError("as it is")

    assert asyncio.run(given_up_after(asyncio.sleep(0, "done"), 5)) == "done"
    with pytest.raises(ValueError, match="as it is"):
        asyncio.run(given_up_after(fails(), 5))


def test_what_waits_is_told_when_it_is_given_up() -> None:
    async def inner() -> None:
        await asyncio.Event().wait()

    async def outer() -> None:
        await inner()

    with pytest.raises(CallTimeout, match=r"no answer within 0\.05 s") as caught:
        asyncio.run(given_up_after(outer(), 0.05))
    assert caught.value.place.endswith(
        "outer → test_what_waits_is_told_when_it_is_given_up.inner → Event.wait"
    )


def test_a_loop_ends_although_a_task_and_a_thread_of_it_do_not() -> None:
    release = threading.Event()

    async def deaf() -> None:
        while not release.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.01)

    async def main() -> str:
        main.task = asyncio.create_task(deaf())  # type: ignore[attr-defined]
        threaded = asyncio.create_task(asyncio.to_thread(release.wait, 60))
        await asyncio.sleep(0.05)
        threaded.cancel()
        return "done"

    started = time.monotonic()
    try:
        assert event_loop.run(main(), 0.2) == "done"
        assert time.monotonic() - started < 5
    finally:
        release.set()


def test_threads_of_a_loop_give_results_and_errors() -> None:
    async def main() -> list[object]:
        return await asyncio.gather(
            asyncio.to_thread(int, "7"), asyncio.to_thread(int, "x"), return_exceptions=True
        )

    seven, error = event_loop.run(main(), 1)
    assert seven == 7
    assert isinstance(error, ValueError)


@contextlib.contextmanager
def interrupted(main: str, after: str) -> "Iterator[subprocess.Popen[str]]":
    """A process that was sent Ctrl-C when the coroutine ``main`` had begun; then it does ``after``."""
    code = f"""
import asyncio, time
from skyrl_kernel import event_loop
async def main():
    print("begun", flush=True)
    {main}
{after}"""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdout=pipe, stderr=pipe, text=True) as one:
        assert one.stdout is not None
        assert one.stdout.readline() == "begun\n"
        one.send_signal(signal.SIGINT)
        yield one


def test_ctrl_c_is_answered_where_nothing_comes_of_it_soon() -> None:
    with interrupted("time.sleep(60)", "event_loop.run(main(), 1)") as process:
        assert process.stderr is not None
        assert process.stderr.readline() == event_loop.HEARD.decode()
        process.send_signal(signal.SIGINT)
        assert "KeyboardInterrupt" in process.stderr.read()


def test_ctrl_c_that_ends_a_run_at_once_is_not_talked_about() -> None:
    after = """
try:
    event_loop.run(main(), 1)
except KeyboardInterrupt:
    print("ended")"""
    with interrupted("await asyncio.sleep(60)", after) as process:
        assert process.communicate() == ("ended\n", "")
