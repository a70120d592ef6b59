"""The engine against Hugging Face's own generate and forward."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from skyrl_kernel.errors import ModelError, NonFiniteError, WeightSyncError
from skyrl_kernel.protocols import Engine
from skyrl_kernel.records import Completion, GenerateRequest, Sampling
from skyrl_transformers.engine import TransformersEngine
from skyrl_transformers.loading import default_device, load_causal_lm
from skyrl_transformers.testing import write_random_model

EOS = 257
ROUNDING = 1e-4 if torch.cuda.is_available() else 1e-5
"""Nats; the engine computes on a GPU where there is one, what it is compared with on the CPU."""
PROMPTS = [np.arange(n, dtype=np.int32) + 60 for n in (5, 9, 5, 1, 13)]


def run(engine: TransformersEngine, requests: Sequence[GenerateRequest]) -> list[Completion]:
    return asyncio.run(engine.generate(requests))


def request(tokens: np.ndarray, seed: int = 0, **sampling: object) -> GenerateRequest:
    settings = {"max_tokens": 20, **sampling}
    return GenerateRequest(tokens=tokens, sampling=Sampling(**settings), seed=seed)


def hugging_face_greedy(path: Path, prompt: np.ndarray, max_tokens: int) -> list[int]:
    module = load_causal_lm(path)
    out = module.generate(
        input_ids=torch.from_numpy(prompt.astype(np.int64))[None],
        attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
        max_new_tokens=max_tokens,
        do_sample=False,
        pad_token_id=0,
    )
    return out[0, len(prompt) :].tolist()


def plain_logprobs(path: Path, row: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    ids = torch.from_numpy(row.astype(np.int64))[None]
    with torch.no_grad():
        logprobs = (load_causal_lm(path)(input_ids=ids).logits[0] / temperature).log_softmax(-1)
    return logprobs[:-1].gather(1, ids[0, 1:, None])[:, 0].numpy()


@pytest.fixture(scope="session", params=["llama", "qwen2", "gpt2", "mistral", "gemma2"])
def architecture(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    extra: dict[str, object] = {"initializer_range": 0.1}
    if request.param == "mistral":
        extra |= {"sliding_window": 6}
    if request.param == "gemma2":
        extra |= {"sliding_window": 6, "head_dim": 16, "attn_implementation": "eager"}
    if request.param == "gpt2":
        extra |= {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128, "attn_pdrop": 0.1}
    write_random_model(folder, architecture=request.param, **extra)
    return folder


def test_greedy_completions_are_those_of_hugging_face_for_prompts_of_mixed_length(
    architecture: Path,
) -> None:
    completions = run(
        TransformersEngine(architecture), [request(p, temperature=0) for p in PROMPTS]
    )
    for prompt, completion in zip(PROMPTS, completions, strict=True):
        assert completion.tokens.tolist() == hugging_face_greedy(architecture, prompt, 20)
        row = np.concatenate([prompt, completion.tokens])
        expected = plain_logprobs(architecture, row)[len(prompt) - 1 :]
        np.testing.assert_allclose(completion.logprobs, expected, atol=ROUNDING)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_sampled_logprobs_are_those_of_a_plain_forward_pass(
    llama: Path, temperature: float
) -> None:
    engine = TransformersEngine(llama)
    requests = [request(p, seed=i, temperature=temperature) for i, p in enumerate(PROMPTS * 2)]
    completions = run(engine, requests)
    rows = [
        np.concatenate([r.tokens, c.tokens]) for r, c in zip(requests, completions, strict=True)
    ]
    scored = asyncio.run(engine.logprobs(rows, temperature=temperature))
    for asked, completion, row, score in zip(requests, completions, rows, scored, strict=True):
        expected = plain_logprobs(llama, row, temperature)
        np.testing.assert_allclose(
            completion.logprobs, expected[len(asked.tokens) - 1 :], atol=ROUNDING
        )
        np.testing.assert_allclose(score[1:], expected, atol=ROUNDING)
        assert score[0] == 0


def test_a_completion_depends_on_its_seed_and_not_on_the_batch(llama: Path) -> None:
    requests = [request(p, seed=i) for i, p in enumerate(PROMPTS * 3)]
    together = run(TransformersEngine(llama), requests)
    in_threes = run(TransformersEngine(llama, max_rows=3), requests)
    backwards = run(TransformersEngine(llama), requests[::-1])[::-1]
    for i, asked in enumerate(requests):
        (alone,) = run(TransformersEngine(llama), [asked])
        for other in (together[i], in_threes[i], backwards[i]):
            assert other.tokens.tolist() == alone.tokens.tolist()
            np.testing.assert_allclose(other.logprobs, alone.logprobs, atol=ROUNDING)
    assert together[0].tokens.tolist() != together[5].tokens.tolist()  # same prompt, other seed


def test_one_seed_does_not_repeat_its_noise_in_the_next_turn(llama: Path) -> None:
    engine = TransformersEngine(llama)
    (first,) = run(engine, [request(PROMPTS[0], seed=3, temperature=50.0)])
    longer = np.concatenate([PROMPTS[0], first.tokens])
    (second,) = run(engine, [request(longer, seed=3, temperature=50.0)])
    assert first.tokens.tolist() != second.tokens.tolist()  # nearly uniform: noise decides


def test_equal_prompts_are_computed_once(llama: Path) -> None:
    engine = TransformersEngine(llama)
    requests = [request(p, seed=i) for i in range(8) for p in PROMPTS]
    completions = run(engine, requests)
    assert engine.prompt_tokens_computed == 5 + 9 + 1 + 13  # two of the five prompts are equal
    assert engine.tokens_generated == sum(len(c.tokens) for c in completions)


def test_equal_prompts_stay_together_when_rows_are_limited(llama: Path) -> None:
    engine = TransformersEngine(llama, max_rows=5)
    run(engine, [request(p, seed=i) for i in range(4) for p in (PROMPTS[1], PROMPTS[4])])
    assert engine.prompt_tokens_computed == 9 + 13
    run(engine, [request(PROMPTS[1], seed=i) for i in range(12)])
    assert engine.prompt_tokens_computed == 9 + 13 + 3 * 9  # 5 + 5 + 2 rows


def test_generation_config_may_name_several_end_ids(tmp_path: Path) -> None:
    write_random_model(tmp_path)
    (free,) = run(TransformersEngine(tmp_path), [request(PROMPTS[1], seed=1)])
    third = int(free.tokens[2])
    (tmp_path / "generation_config.json").write_text(f'{{"eos_token_id": [{third}, 5]}}')
    (ended,) = run(TransformersEngine(tmp_path), [request(PROMPTS[1], seed=1)])
    assert ended.finish_reason == "stop"
    assert ended.tokens.tolist() == free.tokens[: free.tokens.tolist().index(third) + 1].tolist()


def test_long_completions_outgrow_the_first_buffers(llama: Path) -> None:
    (completion,) = run(TransformersEngine(llama), [request(PROMPTS[0], seed=2, max_tokens=110)])
    row = np.concatenate([PROMPTS[0], completion.tokens])
    expected = plain_logprobs(llama, row)[len(PROMPTS[0]) - 1 :]
    assert len(completion.tokens) > 64
    np.testing.assert_allclose(completion.logprobs, expected, atol=2e-5)


def test_an_empty_prompt_is_refused(llama: Path) -> None:
    with pytest.raises(ValueError, match="every prompt needs at least one"):
        run(TransformersEngine(llama), [request(np.zeros(0, dtype=np.int32))])


def test_nan_weights_stop_generation(llama: Path) -> None:
    module = load_causal_lm(llama)
    with torch.no_grad():
        module.model.norm.weight[0] = float("nan")
    engine = TransformersEngine(llama)
    engine.share(module)
    with pytest.raises(NonFiniteError, match="logits are not finite at token 0"):
        run(engine, [request(PROMPTS[0])])


def test_a_shared_module_is_used_as_it_is_and_brings_no_copy(llama: Path, tmp_path: Path) -> None:
    module = load_causal_lm(llama)
    write_random_model(tmp_path, seed=9)  # other weights: an own copy would show
    engine = TransformersEngine(tmp_path)
    engine.share(module)
    (before,) = asyncio.run(engine.logprobs([PROMPTS[4]], temperature=1.0))
    np.testing.assert_allclose(before[1:], plain_logprobs(llama, PROMPTS[4]), atol=ROUNDING)
    with torch.no_grad():
        module.model.layers[0].mlp.up_proj.weight.mul_(2)
    (after,) = asyncio.run(engine.logprobs([PROMPTS[4]], temperature=1.0))
    assert not np.allclose(before, after)


def sync(engine: TransformersEngine, weights: object, begun: int, finished: int) -> None:
    async def transaction() -> None:
        await engine.begin_update(begun)
        if weights is not None:
            await engine.apply_update(weights)
        await engine.finish_update(finished)

    asyncio.run(transaction())


@pytest.fixture
def other_weights(llama: Path) -> dict[str, torch.Tensor]:
    module = load_causal_lm(llama)
    return {name: p.detach() * 1.1 for name, p in module.named_parameters()}


def score(engine: TransformersEngine) -> np.ndarray:
    return asyncio.run(engine.logprobs([PROMPTS[4]], temperature=1.0))[0]


def test_an_update_is_committed_as_a_whole_with_its_version(
    llama: Path, other_weights: dict[str, torch.Tensor]
) -> None:
    engine = TransformersEngine(llama)
    before = score(engine)
    names = list(other_weights)

    async def in_two_parts() -> None:
        await engine.begin_update(7)
        await engine.apply_update((name, other_weights[name]) for name in names[:4])
        np.testing.assert_array_equal(
            before, (await engine.logprobs([PROMPTS[4]], temperature=1))[0]
        )
        await engine.apply_update((name, other_weights[name]) for name in names[4:])
        await engine.finish_update(7)

    asyncio.run(in_two_parts())
    module = load_causal_lm(llama, default_device())
    module.load_state_dict(other_weights, strict=False)
    fresh = TransformersEngine(llama)
    fresh.share(module)
    np.testing.assert_array_equal(score(engine), score(fresh))
    assert not np.array_equal(before, score(engine))
    assert engine.version == 7
    (completion,) = run(engine, [request(PROMPTS[0])])
    assert set(completion.versions.tolist()) == {7}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("model.norm.weight"), "1 of its 20 tensors are missing: model.norm.we"),
        (lambda w: w.update(extra=torch.ones(1)), "the tensor 'extra' is not in the engine's"),
        (
            lambda w: w.update({"model.norm.weight": torch.ones(5)}),
            r"the tensor 'model.norm.weight' has shape \(5,\), the engine's has \(32,\)",
        ),
    ],
    ids=["missing", "unknown", "shape"],
)
def test_a_wrong_update_is_refused_and_the_old_weights_stay(
    llama: Path, other_weights: dict[str, torch.Tensor], change: object, message: str
) -> None:
    engine = TransformersEngine(llama)
    before = score(engine)
    change(other_weights)
    with pytest.raises(WeightSyncError, match=f"version 3 was refused: {message}"):
        sync(engine, other_weights.items(), 3, 3)
    np.testing.assert_array_equal(before, score(engine))
    assert engine.version == 0
    with pytest.raises(WeightSyncError, match="none was begun"):
        asyncio.run(engine.finish_update(3))


def test_finishing_another_version_is_refused(
    llama: Path, other_weights: dict[str, torch.Tensor]
) -> None:
    engine = TransformersEngine(llama)
    before = score(engine)
    with pytest.raises(WeightSyncError, match="version 4 was finished, but version 3 was begun"):
        sync(engine, other_weights.items(), 3, 4)
    np.testing.assert_array_equal(before, score(engine))


def test_a_tensor_that_comes_twice_is_refused(
    llama: Path, other_weights: dict[str, torch.Tensor]
) -> None:
    twice = [*other_weights.items(), next(iter(other_weights.items()))]
    with pytest.raises(WeightSyncError, match=r"'model.embed_tokens.weight' came twice"):
        sync(TransformersEngine(llama), twice, 1, 1)


def test_a_shared_engine_moves_its_version_and_takes_no_tensors(
    llama: Path, other_weights: dict[str, torch.Tensor]
) -> None:
    engine = TransformersEngine(llama)
    engine.share(load_causal_lm(llama))
    sync(engine, None, 5, 5)
    assert engine.version == 5
    with pytest.raises(WeightSyncError, match="shares the trainer's module: it has them already"):
        sync(engine, other_weights.items(), 6, 6)
    assert engine.version == 5


def long_request(engine: TransformersEngine, prompt: np.ndarray) -> GenerateRequest:
    """One of the seeds whose completion does not end by itself within 20 tokens."""
    seeds = (request(prompt, seed=seed) for seed in range(100))
    return next(asked for asked in seeds if run(engine, [asked])[0].finish_reason == "length")


def test_abort_ends_running_calls_and_keeps_what_they_sampled(llama: Path) -> None:
    engine = TransformersEngine(llama)
    requests = [long_request(engine, prompt) for prompt in PROMPTS]
    whole = run(engine, requests)
    before = engine.tokens_generated

    async def scenario() -> list[Completion]:
        running = asyncio.create_task(engine.generate(requests))
        while engine.tokens_generated < before + 3 * len(PROMPTS) and not running.done():
            await asyncio.sleep(0)
        await engine.abort()
        return await running

    for completion, complete in zip(asyncio.run(scenario()), whole, strict=True):
        assert completion.finish_reason == "abort"
        assert completion.tokens.tolist() == complete.tokens[:3].tolist()
    assert run(engine, requests)[0].finish_reason == "length"  # later calls are not aborted


def test_a_paused_engine_waits_takes_new_weights_and_goes_on_with_them(
    llama: Path, other_weights: dict[str, torch.Tensor]
) -> None:
    engine = TransformersEngine(llama)
    asked = long_request(engine, PROMPTS[0])
    before = engine.tokens_generated

    async def scenario() -> Completion:
        running = asyncio.create_task(engine.generate([asked]))
        while engine.tokens_generated < before + 4 and not running.done():
            await asyncio.sleep(0)
        await engine.pause()
        await engine.begin_update(1)
        await engine.apply_update(other_weights.items())
        await engine.finish_update(1)
        await asyncio.sleep(0.03)
        assert engine.tokens_generated == before + 4
        await engine.resume()
        return (await running)[0]

    versions = asyncio.run(scenario()).versions.tolist()
    assert versions[:4] == [0] * 4
    assert set(versions[4:]) == {1}


def test_a_deadline_takes_effect_between_tokens(llama: Path) -> None:
    engine = TransformersEngine(llama)

    async def scenario() -> None:
        await engine.pause()
        async with asyncio.timeout(0.05):
            await engine.generate([request(PROMPTS[0])])

    with pytest.raises(TimeoutError):
        asyncio.run(scenario())


def test_bfloat16_engine_computes_as_a_bfloat16_trainer(llama: Path) -> None:
    exact, rounded = score(TransformersEngine(llama)), score(TransformersEngine(llama, bf16=True))
    assert not np.array_equal(exact, rounded)
    np.testing.assert_allclose(exact, rounded, atol=0.5)


def test_the_engine_keeps_the_protocol_and_loads_nothing_before_it_must(tmp_path: Path) -> None:
    engine = TransformersEngine(tmp_path / "not there yet")
    assert isinstance(engine, Engine)
    assert engine.lockstep
    asyncio.run(engine.close())


def test_a_closed_engine_has_let_go_of_a_shared_module(llama: Path) -> None:
    engine = TransformersEngine(llama)
    engine.share(load_causal_lm(llama))
    asyncio.run(engine.close())
    assert engine._module is None


def test_a_recurrent_model_is_refused_with_another_engine_named(tmp_path: Path) -> None:
    write_random_model(tmp_path, architecture="mamba", state_size=4)
    with pytest.raises(ModelError, match="backend=vllm"):
        run(TransformersEngine(tmp_path), [request(PROMPTS[0])])
