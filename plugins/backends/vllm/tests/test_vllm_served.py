"""On real servers: the conformance suite of engines, and what is vLLM's own."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from transformers import AutoModelForCausalLM

from skyrl_kernel.protocols import Engine, Tokenizer
from skyrl_kernel.testing.contracts import LogProbContract, ModelEngineContract
from skyrl_kernel.testing.contracts.engine import (
    ServedContract,
    SleepContract,
    UpdateContract,
)
from skyrl_kernel.testing.contracts.engine.model import ModelEngine
from skyrl_kernel.testing.contracts.engine.reference import Reference
from skyrl_kernel.testing.distributions import make_distribution
from skyrl_transformers.tokenizer import HuggingFaceTokenizer
from skyrl_vllm.engine import VllmEngine
from skyrl_vllm.fleet import Deadlines
from skyrl_vllm.requests import Requests
from skyrl_vllm.server import Server
from skyrl_vllm.testing import counter, demo, run
from skyrl_vllm.transports.files import Files
from skyrl_vllm.transports.gloo import Gloo
from skyrl_vllm.transports.parcels import Parcels

TOLERANCE = 1e-4
"""Nats, in float32."""
DEADLINES = Deadlines(start_s=540, request_s=240, update_s=120, control_s=60)


TRANSPORTS: Mapping[str, type[Parcels]] = {"files": Files, "gloo": Gloo}


class DamagedFiles(Files):
    """Something happens to a file between writing and reading."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault

    async def announce(self, parcel: Mapping[str, Any]) -> None:
        path = Path(parcel["path"])
        if self.fault == "missing":
            path.unlink()
        elif self.fault == "truncated":
            os.truncate(path, path.stat().st_size - 100)
        else:
            with path.open("r+b") as file:
                file.seek(-100, os.SEEK_END)
                file.write(b"something else")
        await super().announce(parcel)


class Subject(ModelEngine):
    """Engines that are attached, one after the other, to one server of one model."""

    transports = tuple(TRANSPORTS)
    faults = ("truncated", "corrupted", "missing")
    model = "tied"
    variables: Mapping[str, str] | None = None

    @pytest.fixture(autouse=True)
    def _servers(self, servers: Any, models: Mapping[str, Path]) -> None:
        self.servers = servers
        self.folder = models[self.model]

    def engine(self, server: Server | str) -> Engine:
        return VllmEngine(server, self.folder, deadlines=DEADLINES)

    def make(self) -> Engine:
        server = self.server = self.servers.start(self.folder, self.variables)
        if not self.servers.is_new:
            asyncio.run(self.bring_first_weights(server))
        self.servers.is_new = False
        return self.engine(server.url)

    async def bring_first_weights(self, server: Server) -> None:
        engine = self.engine(server.url)
        await engine.resume()
        await self._push(Reference(self.reference()), engine, 0)
        await engine.close()

    def make_with(self, transport: str) -> Engine:
        engine = self.make()
        assert isinstance(engine, VllmEngine)
        engine.use_transport(TRANSPORTS[transport])
        return engine

    def make_untouched(self) -> Engine:
        self.server = self.servers.start_new(self.folder, self.variables)
        return self.engine(self.server.url)

    def make_doomed(self) -> Engine:
        self.make()
        return self.engine(self.server)

    def kill(self, engine: Engine) -> None:
        assert self.server.group is not None
        os.killpg(self.server.group, signal.SIGKILL)

    def reference(self) -> torch.nn.Module:
        return AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32)

    def tokenizer(self) -> Tokenizer:
        return HuggingFaceTokenizer(self.folder)

    def tokens_computed(self, engine: Engine) -> int:
        """By the server's own account."""
        return int(counter(self.server.url, "vllm:generation_tokens_total"))

    @contextmanager
    def damaged(self, engine: Engine, fault: str) -> Iterator[None]:
        assert isinstance(engine, VllmEngine)
        engine.use_transport(lambda: DamagedFiles(fault))
        try:
            yield
        finally:
            engine.use_transport(Files)


class Unsalted(VllmEngine):
    """Does not tell the prefixes of one version's weights from another's, and keeps them."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._requests = Requests(self._fleet, lambda: self.version, is_salted=False)

    async def pause(self) -> None:
        await self._fleet.order("/pause?mode=keep&clear_cache=false")
        self._is_paused = True


class OwnOfVllm(UpdateContract):
    """What no other engine is asked."""

    def test_a_prefix_that_is_kept_from_older_weights_is_caught(self) -> None:
        """vLLM goes on with what it has cached; its metrics say that it has cached."""
        kept = type(self)()
        kept.servers, kept.folder = self.servers, self.folder
        kept.engine = lambda server: Unsalted(server, self.folder, deadlines=DEADLINES)
        self.make()
        before = counter(self.server.url, "vllm:prefix_cache_hits_total")
        with pytest.raises(AssertionError):
            kept.test_no_prefix_of_older_weights_is_used_again("files")
        assert counter(self.server.url, "vllm:prefix_cache_hits_total") > before
        self.test_no_prefix_of_older_weights_is_used_again("files")

    def test_prompts_that_fill_several_steps_are_taken_whole(self) -> None:
        """The CPU build dies of a seeded prompt that two steps share."""
        requests = [self._request(self._prompt(400, seed=n), 4, seed=n) for n in range(24)]

        async def use(engine: Engine) -> None:
            together = await engine.generate(requests)
            for asked, one in zip(requests[:3], together, strict=False):
                (alone,) = await engine.generate([asked])
                assert one.tokens.tolist() == alone.tokens.tolist()

        self._use(use)


# The tests of the last base run first: log-probs on a new server; a killed one comes at the end.
class TestTied(Subject, ServedContract, OwnOfVllm, SleepContract, ModelEngineContract):
    """``builtin:tiny``'s shape: embedding and head are one tensor."""

    plugin = "vllm"
    killed_says = r"ended by signal 9; the end of .*vllm.log"


# --- a server and its run ----------------------------------------------------------------------------


def test_a_server_ends_with_the_process_that_started_it(
    servers: Any, models: Mapping[str, Path], tmp_path: Path
) -> None:
    """Also after ``kill -9``, where nobody can clean up."""
    script = (
        "import sys, time; from pathlib import Path; from skyrl_vllm.server import Server\n"
        f"server = Server(Path({str(models['tied'])!r}), log=Path({str(tmp_path / 'log')!r}))\n"
        "time.sleep(5); print(server.group, flush=True); time.sleep(600)"
    )
    starter = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert starter.stdout is not None
    group = int(starter.stdout.readline())
    time.sleep(1)
    starter.kill()
    starter.wait()
    starter.stdout.close()
    until = time.monotonic() + 60
    while time.monotonic() < until:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("the server's processes outlive the run")


# --- other servers -----------------------------------------------------------------------------------


class TestUntied(Subject, LogProbContract):
    """The head is a tensor of its own."""

    model = "untied"


def test_the_build_without_the_fix_is_caught(
    servers: Any, models: Mapping[str, Path], tmp_path: Path
) -> None:
    """vLLM on a CPU goes on with the packed copy of a tied head; equality sees it."""
    make_distribution(
        tmp_path,
        "unfixed",
        modules={
            "unfixed": """
                def register():
                    import skyrl_vllm.inside.receiver
                    skyrl_vllm.inside.receiver.repack = lambda model: None
            """
        },
    )
    (metadata,) = tmp_path.glob("unfixed-*.dist-info")
    (metadata / "entry_points.txt").write_text(
        "[vllm.general_plugins]\nunfixed = unfixed:register\n"
    )
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])

    class Unfixed(Subject, LogProbContract):
        variables: ClassVar = {"PYTHONPATH": path}

    suite = Unfixed()
    suite.servers, suite.folder = servers, models["tied"]
    suite.test_log_probs_at_first_are_those_of_the_model()
    with pytest.raises(AssertionError, match="log-probs differ by"):
        suite.test_log_probs_after_each_of_several_updates_are_those_of_its_weights("files")


# --- whole runs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("ahead", [0, 2], ids=["synchronous", "asynchronous"])
def test_the_demo_trains_with_an_engine_in_its_own_process(
    servers: Any, tmp_path: Path, ahead: int
) -> None:
    servers.stop()
    words = ["trainer.eval_interval=-1"]
    if ahead:
        words += ["trainer.fully_async.enabled=true"]
        words += [f"trainer.fully_async.max_staleness_steps={ahead}"]
    steps = run(demo(tmp_path, *words), tmp_path)
    assert [step["step"] for step in steps] == [1, 2, 3]
    for step in steps:
        assert step["failures/trajectories"] == 0
        assert step["async/staleness_violation_count"] == 0
        if not ahead:  # the sampler's log-probs are the trainer's, after each sync
            assert step["policy/rollout_train_logprobs_abs_diff_max"] <= TOLERANCE
    assert (max(step["async/staleness_max"] for step in steps) > 0) == bool(ahead)
