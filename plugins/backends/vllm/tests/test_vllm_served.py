"""On a real server: the contract of engines, and log-probs that are Hugging Face's on the same weights."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from skyrl_kernel.errors import WeightSyncError
from skyrl_kernel.protocols import Engine
from skyrl_kernel.records import Completion, GenerateRequest, IntArray, Sampling
from skyrl_kernel.testing.contracts import EngineContract
from skyrl_kernel.testing.distributions import make_distribution
from skyrl_transformers.loading import distinct_tensors, load_causal_lm
from skyrl_vllm.client import ServerError
from skyrl_vllm.engine import Deadlines, VllmEngine
from skyrl_vllm.server import Server
from skyrl_vllm.transports.files import Files

T = TypeVar("T")
TOLERANCE = 1e-4
"""Nats, in float32."""
DEADLINES = Deadlines(start_s=540, request_s=240, update_s=120, control_s=60)
PROMPTS = [np.arange(5, 5 + length, dtype=np.int32) for length in (4, 9)]


class Case:
    """A server with the first weights of a model, and Hugging Face's module with the same."""

    def __init__(self, server: Server, model: Path) -> None:
        self.server, self.model = server, model
        self.module: PreTrainedModel = load_causal_lm(model)

    def run(self, use: Callable[[VllmEngine], Awaitable[T]]) -> T:
        async def main() -> T:
            engine = VllmEngine(self.server.url, self.model, deadlines=DEADLINES)
            try:
                return await use(engine)
            finally:
                await engine.close()

        return asyncio.run(main())

    def perturb(self, seed: int, size: float = 0.02) -> None:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for one in distinct_tensors(self.module).values():
                one.add_(torch.randn(one.shape, generator=generator) * size)

    async def push(self, engine: VllmEngine, version: int) -> None:
        await engine.begin_update(version)
        await engine.apply_update(distinct_tensors(self.module).items())
        await engine.finish_update(version)

    async def difference(self, engine: VllmEngine, temperature: float = 1.0) -> tuple[float, float]:
        """Most nats between Hugging Face and (what was sampled, what was scored)."""
        requests = [
            request(prompt, 16, seed=seed, temperature=temperature)
            for prompt in PROMPTS
            for seed in range(4)
        ]
        sampled, scored = 0.0, 0.0
        completions = await engine.generate(requests)
        rows = [
            np.concatenate([asked.tokens, one.tokens])
            for asked, one in zip(requests, completions, strict=True)
        ]
        theirs = await engine.logprobs(rows, temperature=temperature)
        for asked, one, row, score in zip(requests, completions, rows, theirs, strict=True):
            mine = plain_logprobs(self.module, row, temperature)
            sampled = max(sampled, float(np.abs(mine[len(asked.tokens) :] - one.logprobs).max()))
            scored = max(scored, float(np.abs(mine - score).max()))
        return sampled, scored


def plain_logprobs(module: PreTrainedModel, row: IntArray, temperature: float) -> np.ndarray:
    ids = torch.from_numpy(row.astype(np.int64))[None]
    with torch.no_grad():
        logprobs = (module(input_ids=ids).logits[0] / temperature).log_softmax(-1)
    return np.concatenate([[0.0], logprobs[:-1].gather(1, ids[0, 1:, None])[:, 0].numpy()])


def request(
    prompt: IntArray, max_tokens: int, *, seed: int = 0, **sampling: Any
) -> GenerateRequest:
    settings = Sampling(max_tokens=max_tokens, **sampling)
    return GenerateRequest(tokens=prompt, sampling=settings, seed=seed)


@pytest.fixture
def tied(servers: Any, models: Mapping[str, Path]) -> Case:
    return fresh(servers, models["tied"])


def fresh(servers: Any, model: Path, variables: Mapping[str, str] | None = None) -> Case:
    case = Case(servers.start(model, variables), model)

    async def first_weights(engine: VllmEngine) -> None:
        await engine.resume()
        await case.push(engine, 0)

    case.run(first_weights)
    return case


# --- what every step relies on ---------------------------------------------------------------------


async def equal_before_and_after_pushes(case: Case, engine: VllmEngine) -> None:
    for temperature in (1.0, 0.7):
        assert max(await case.difference(engine, temperature)) <= TOLERANCE
    for version in (1, 2, 3):
        case.perturb(version)
        assert min(await case.difference(engine)) > 100 * TOLERANCE  # the negative control
        await case.push(engine, version)
        assert max(await case.difference(engine)) <= TOLERANCE
    assert max(await case.difference(engine, 0.7)) <= TOLERANCE


def test_log_probs_are_hugging_faces_at_first_and_after_pushes_where_the_head_is_tied(
    tied: Case,
) -> None:
    tied.run(lambda engine: equal_before_and_after_pushes(tied, engine))


class TestVllm(EngineContract):
    @pytest.fixture(autouse=True)
    def _server(self, tied: Case) -> None:
        self.case = tied

    def make(self) -> Engine:
        return VllmEngine(self.case.server.url, self.case.model, deadlines=DEADLINES)

    def prompts(self) -> Sequence[IntArray]:
        return PROMPTS

    def other_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        self.case.perturb(9, 0.1)
        yield from distinct_tensors(self.case.module).items()


# --- generation ------------------------------------------------------------------------------------


def test_a_completion_ends_at_stop_ids_at_stop_strings_and_at_its_length(tied: Case) -> None:
    async def use(engine: VllmEngine) -> None:
        (free,) = await engine.generate([request(PROMPTS[0], 30, seed=1)])
        ids = free.tokens.tolist()
        (by_id,) = await engine.generate(
            [request(PROMPTS[0], 30, seed=1, stop_token_ids=(ids[3],))]
        )
        assert by_id.tokens.tolist() == ids[: ids.index(ids[3]) + 1]  # the id stays
        assert by_id.finish_reason == "stop"
        (by_length,) = await engine.generate([request(PROMPTS[0], 2, seed=1)])
        assert (by_length.tokens.tolist(), by_length.finish_reason) == (ids[:2], "length")
        text = tied_tokenizer(tied.model).decode(free.tokens)
        printable = next(mark for mark in text[2:] if mark.isprintable() and mark != "\ufffd")
        (by_text,) = await engine.generate([request(PROMPTS[0], 30, seed=1, stop=(printable,))])
        assert by_text.finish_reason == "stop"
        assert printable in tied_tokenizer(tied.model).decode(by_text.tokens)  # so does the string
        assert by_text.tokens.tolist() == ids[: len(by_text.tokens)]

    tied.run(use)


def tied_tokenizer(model: Path) -> Any:
    from skyrl_transformers.tokenizer import HuggingFaceTokenizer

    return HuggingFaceTokenizer(model)


def test_truncated_sampling_stays_within_what_it_keeps(tied: Case) -> None:
    async def use(engine: VllmEngine) -> None:
        requests = [request(PROMPTS[0], 8, seed=seed, top_k=1) for seed in range(3)]
        greedy = await engine.generate([request(PROMPTS[0], 8, temperature=0.0)])
        for one in await engine.generate(requests):
            assert one.tokens.tolist() == greedy[0].tokens.tolist()
            np.testing.assert_allclose(one.logprobs, 0.0, atol=1e-6)  # nothing else was possible

    tied.run(use)


LONG = [request(PROMPTS[0], 480, seed=seed) for seed in range(16)]
"""Some end early, as a random model ends a turn at any token; some last."""


def test_an_abort_stops_what_runs(tied: Case) -> None:
    async def use(engine: VllmEngine) -> list[Completion]:
        task = asyncio.ensure_future(engine.generate(LONG))
        await asyncio.sleep(0.1)
        await engine.abort()
        return await asyncio.wait_for(task, 5)

    aborted = [one for one in tied.run(use) if one.finish_reason == "abort"]
    assert aborted
    assert all(len(one.tokens) < 480 for one in aborted)


def test_an_update_in_mid_request_is_seen_in_its_versions(tied: Case) -> None:
    async def use(engine: VllmEngine) -> list[Completion]:
        task = asyncio.ensure_future(engine.generate(LONG))
        await asyncio.sleep(0.05)
        tied.perturb(1, 0.001)
        await tied.push(engine, 5)
        (after,) = await engine.generate(LONG[:1])
        assert (after.versions == 5).all()
        return await task

    completions = tied.run(use)
    for one in completions:
        assert one.versions.tolist() == sorted(one.versions)
        assert set(one.versions) <= {0, 5}
    assert any(set(one.versions) == {0, 5} for one in completions)


def test_of_two_thousand_requests_none_is_lost_or_doubled(tied: Case) -> None:
    prompts = np.random.default_rng(0).integers(0, 256, (2000, 4), dtype=np.int32)
    with torch.no_grad():
        expected = tied.module(input_ids=torch.from_numpy(prompts.astype(np.int64))).logits[:, -1]

    async def use(engine: VllmEngine) -> list[Completion]:
        return await engine.generate([request(one, 1, temperature=0.0) for one in prompts])

    sampled = np.array([one.tokens.tolist() for one in tied.run(use)])
    assert sampled.shape == (2000, 1)
    assert (sampled[:, 0] == expected.argmax(-1).numpy()).all()


def test_prompts_that_fill_several_steps_are_taken_whole(tied: Case) -> None:
    """The CPU build dies of a seeded prompt that two steps share."""
    prompts = np.random.default_rng(1).integers(0, 256, (24, 400), dtype=np.int32)
    requests = [request(one, 4, seed=seed) for seed, one in enumerate(prompts)]

    async def use(engine: VllmEngine) -> None:
        together = await engine.generate(requests)
        for asked, one in zip(requests[:3], together, strict=False):
            (alone,) = await engine.generate([asked])
            assert one.tokens.tolist() == alone.tokens.tolist()

    tied.run(use)


# --- updates that are refused ----------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["truncated", "corrupted", "missing"])
def test_a_damaged_update_is_an_error_and_the_old_weights_stay(
    tied: Case, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    announce = Files.announce

    async def damage(self: Files, parcel: Mapping[str, Any]) -> None:
        path = Path(parcel["files"][0]["path"])
        content = bytearray(path.read_bytes())
        if fault == "missing":
            path.unlink()
        elif fault == "truncated":
            path.write_bytes(content[:-100])
        else:
            content[-100] ^= 1
            path.write_bytes(content)
        await announce(self, parcel)

    async def use(engine: VllmEngine) -> None:
        before = await engine.logprobs(PROMPTS, temperature=1.0)
        tied.perturb(4)
        monkeypatch.setattr(Files, "announce", damage)
        with pytest.raises(WeightSyncError, match="keeps the weights of version 0"):
            await tied.push(engine, 1)
        monkeypatch.undo()
        after = await engine.logprobs(PROMPTS, temperature=1.0)
        for b, a in zip(before, after, strict=True):
            np.testing.assert_array_equal(b, a)
        await tied.push(engine, 1)  # a whole one is taken
        assert max(await tied.difference(engine)) <= TOLERANCE

    tied.run(use)


# --- a server that dies ----------------------------------------------------------------------------


def test_a_killed_server_is_an_error_that_shows_its_log(tied: Case) -> None:
    async def main() -> None:
        engine = VllmEngine(tied.server, tied.model, deadlines=DEADLINES)
        task = asyncio.ensure_future(engine.generate(LONG))
        await asyncio.sleep(0.05)
        assert tied.server.group is not None
        os.killpg(tied.server.group, signal.SIGKILL)
        with pytest.raises(ServerError):
            await asyncio.wait_for(task, 30)
        with pytest.raises(ServerError, match=r"ended by signal 9; the end of .*vllm.log"):
            await engine.generate([request(PROMPTS[0], 2)])
        with pytest.raises(WeightSyncError):
            await tied.push(engine, 1)
        await engine.close()

    asyncio.run(main())


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


def test_log_probs_are_hugging_faces_at_first_and_after_pushes_where_the_head_is_its_own(
    servers: Any, models: Mapping[str, Path]
) -> None:
    case = fresh(servers, models["untied"])
    case.run(lambda engine: equal_before_and_after_pushes(case, engine))


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
    case = fresh(servers, models["tied"], {"PYTHONPATH": path})

    async def use(engine: VllmEngine) -> None:
        case.perturb(1)
        await case.push(engine, 1)
        assert max(await case.difference(engine)) > 100 * TOLERANCE

    case.run(use)


# --- whole runs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("ahead", [0, 2], ids=["synchronous", "asynchronous"])
def test_the_demo_trains_with_an_engine_in_its_own_process(
    servers: Any, tmp_path: Path, ahead: int
) -> None:
    servers.stop()
    words = [
        *("run", "--plugin", "demo", "generator.inference_engine.backend=vllm"),
        *("trainer.max_training_steps=3", "trainer.train_batch_size=8"),
        *("trainer.policy_mini_batch_size=8", "trainer.eval_before_train=false"),
        *("trainer.eval_interval=-1", f"trainer.ckpt_path={tmp_path}"),
    ]
    if ahead:
        words += ["trainer.fully_async.enabled=true"]
        words += [f"trainer.fully_async.max_staleness_steps={ahead}"]
    done = subprocess.run(
        [str(Path(sys.executable).with_name("skyrl")), *words],
        capture_output=True,
        text=True,
        timeout=560,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = (tmp_path / "demo" / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line) for line in lines]
    assert [step["step"] for step in steps] == [1, 2, 3]
    for step in steps:
        assert step["failures/trajectories"] == 0
        assert step["async/staleness_violation_count"] == 0
        if not ahead:  # the sampler's log-probs are the trainer's, after each sync
            assert step["policy/rollout_train_logprobs_abs_diff_max"] <= TOLERANCE
    assert (max(step["async/staleness_max"] for step in steps) > 0) == bool(ahead)
