"""Adapters: what is trained, against PEFT used by hand; what others see of them."""

import asyncio
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from skyrl_fsdp.lora import FirstTensors, _drawn, add_adapters
from skyrl_fsdp.trainer import FsdpTrainer
from skyrl_kernel.config.roles import LoraConfig
from skyrl_kernel.config.trainer import TrainerConfig
from skyrl_kernel.errors import CheckpointError, ConfigError, NonFiniteError, ResumeError
from skyrl_kernel.protocols import Loss
from skyrl_kernel.records import GenerateRequest, Sampling, TrainingSample
from skyrl_kernel.testing.ranks import on_ranks
from skyrl_kernel.testing.samples import policy_gradient, random_sample
from skyrl_kernel.torch import LossTerms, ValueInputs
from skyrl_transformers.engine import TransformersEngine
from skyrl_transformers.loading import load_causal_lm, no_progress_bars

# PEFT 0.21 asks a model from transformers 5.23 by a name that the latter has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

RANK, ALPHA = 4, 16
ROW = np.arange(40, 52, dtype=np.int32)


def trainer(
    model: Path,
    *roles: str,
    optimizer: dict[str, object] | None = None,
    sequence: int = 1,
    **lora: object,
) -> FsdpTrainer:
    part = {
        "model": {"lora": {"rank": RANK, "alpha": ALPHA, **lora}},
        "optimizer_config": {"lr": 1e-2, "max_grad_norm": 1e9, **(optimizer or {})},
    }
    config = TrainerConfig(
        bf16=False,
        gradient_checkpointing=False,
        micro_train_batch_size_per_gpu=2,
        micro_forward_batch_size_per_gpu=4,
        policy={**part, "sequence_parallel_size": sequence},
        critic=part,
    )
    return FsdpTrainer(dict.fromkeys(("policy", *roles), model), config, device="cpu")


def batch(seed: int = 0, *, roles: tuple[str, ...] = ("policy",)) -> list[TrainingSample]:
    lengths = np.random.default_rng(seed).integers(4, 12, 4)
    masks = [np.arange(length) > 1 for length in lengths]
    return [random_sample(i, mask, seed=seed, terms=roles) for i, mask in enumerate(masks)]


def train(one: FsdpTrainer, updates: range) -> list[dict[str, float]]:
    loss = Loss(fn=policy_gradient)
    return [dict(one.update(batch(k), loss, temperature=1.0).metrics) for k in updates]


def logprobs(one: FsdpTrainer, role: str = "policy") -> np.ndarray:
    return one.score(role, [ROW], temperature=1.0)[0]


def tensors(one: FsdpTrainer, role: str = "policy") -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in one.weights(role)}


def by_hand(model: Path, start: FsdpTrainer) -> Iterator[dict[str, torch.Tensor]]:
    """PEFT's own model and torch's own AdamW, row by row: gradients, then weights, of each update."""
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    settings = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear")
    adapted = peft.get_peft_model(base, settings)
    first = {n: p for n, p in start.module().named_parameters() if p.requires_grad}
    mine = {n.removeprefix("base_model.model."): p for n, p in adapted.named_parameters()}
    mine = {name: parameter for name, parameter in mine.items() if parameter.requires_grad}
    assert mine.keys() == first.keys()
    with torch.no_grad():
        for name, parameter in mine.items():
            parameter.copy_(first[name])
    optimizer = torch.optim.AdamW(mine.values(), lr=1e-2, weight_decay=0.01)
    for update in range(3):
        optimizer.zero_grad()
        for row in batch(update):
            ids = torch.from_numpy(row.tokens.astype(np.int64))[None]
            all_logprobs = adapted(input_ids=ids).logits[0].log_softmax(-1)
            found = all_logprobs[:-1].gather(-1, ids[0, 1:, None])[:, 0]
            factor = torch.from_numpy(row.advantages * row.loss_weights["policy"] * row.loss_mask)
            (-(factor[1:] * found).sum()).backward()
        gradient = {name: parameter.grad.clone() for name, parameter in mine.items()}
        optimizer.step()
        yield gradient, {name: parameter.detach().clone() for name, parameter in mine.items()}


@pytest.mark.parametrize("model", ["llama", "qwen2"])
def test_gradients_and_weights_are_those_of_peft_and_torch_by_hand(
    model: str, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(model)
    one = trainer(folder)
    expected = by_hand(folder, one)
    named = {n: p for n, p in one.module().named_parameters() if p.requires_grad}
    seen: dict[str, torch.Tensor] = {}
    for name, parameter in named.items():
        parameter.register_post_accumulate_grad_hook(
            lambda p, name=name: seen.__setitem__(name, p.grad.clone())
        )
    for update, (gradients, weights) in enumerate(expected):
        (metrics,) = train(one, range(update, update + 1))
        norm = math.sqrt(sum(float(g.square().sum()) for g in gradients.values()))
        assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-5)
        for name, gradient in gradients.items():
            assert float((seen[name] - gradient).norm()) <= 1e-5 * max(
                float(gradient.norm()), 1e-3 * norm
            ), name
        for name, weight in weights.items():
            # AdamW divides by the root of the second moment: near-zero gradients differ more
            torch.testing.assert_close(named[name].detach(), weight, rtol=0, atol=2e-4)


def test_only_adapters_are_trained_and_have_optimizer_state(llama: Path) -> None:
    one = trainer(llama)
    named = dict(one.module().named_parameters())
    before = {name: tensor.detach().clone() for name, tensor in named.items()}
    train(one, range(2))
    moved = {name for name, tensor in named.items() if not torch.equal(tensor, before[name])}
    assert moved == {name for name in named if ".lora_" in name}
    # 2 layers × 7 matrices (q, k, v, o, gate, up, down) × A and B
    assert len(moved) == 28
    (optimizer,) = one._optimizers
    assert {id(p) for p in optimizer.state} == {id(named[name]) for name in moved}


def test_a_new_adapter_changes_nothing_and_the_seed_draws_it(llama: Path) -> None:
    plain = load_causal_lm(llama)
    one = trainer(llama)
    for name, tensor in one.weights():
        assert torch.equal(tensor, plain.state_dict()[name]), name
    first, again = (
        {n: p for n, p in trainer(llama).module().named_parameters() if ".lora_A" in n}
        for _ in range(2)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    policy, value = trainer(llama, "value").module(), trainer(llama, "value")._modules["value"]
    a, b = (dict(m.named_parameters()) for m in (policy, value))
    name = "model.layers.0.self_attn.q_proj.lora_A.default.weight"
    assert torch.equal(a[name], first[name])
    assert not torch.equal(a[name], b[name])


@pytest.mark.parametrize("init_method", ["gaussian", "orthogonal"])
def test_other_first_adapters_change_nothing_either(llama: Path, init_method: str) -> None:
    one = trainer(llama, "reference", init_method=init_method)
    np.testing.assert_allclose(logprobs(one), logprobs(one, "reference"), atol=1e-5)
    assert train(one, range(1))[0]["grad_norm"] > 0


def test_the_reference_is_the_policy_without_adapters_and_no_second_copy(llama: Path) -> None:
    one = trainer(llama, "reference")
    before = logprobs(one)
    assert one._modules["reference"] is one._modules["policy"]
    train(one, range(2))
    after, reference = logprobs(one), logprobs(one, "reference")
    assert np.array_equal(reference, before)
    assert np.abs(after - before).max() > 1e-2
    assert np.array_equal(logprobs(one), after)  # the adapters are on again
    plain = load_causal_lm(llama).state_dict()
    weights = tensors(one, "reference")
    assert all(torch.equal(tensor, plain[name]) for name, tensor in weights.items())
    with pytest.raises(ValueError, match="'reference' is the policy without adapters"):
        one.module("reference")
    train(one, range(2, 3))  # and are trained


def test_a_reference_may_be_alone(llama: Path) -> None:
    both = trainer(llama, "reference")
    alone = FsdpTrainer({"reference": llama}, both._config, device="cpu")
    assert np.array_equal(logprobs(alone, "reference"), logprobs(both, "reference"))


def test_a_reference_of_another_directory_is_a_model_of_its_own(llama: Path, qwen2: Path) -> None:
    one = trainer(llama)
    config = one._config
    other = FsdpTrainer({"policy": llama, "reference": qwen2}, config, device="cpu")
    assert other._modules["reference"] is not other._modules["policy"]
    alone = FsdpTrainer({"policy": qwen2}, TrainerConfig(bf16=False), device="cpu")
    assert np.array_equal(logprobs(other, "reference"), logprobs(alone))


@pytest.mark.parametrize("model", ["llama", "qwen2"])
def test_weights_are_whole_and_merged_and_leave_the_model_alone(
    model: str, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(model)
    one = trainer(folder)
    train(one, range(3))
    before = {name: tensor.clone() for name, tensor in one.module().state_dict().items()}
    merged = tensors(one)
    after = one.module().state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    plain = load_causal_lm(folder)
    assert merged.keys() == {
        name for name, _ in FsdpTrainer({"policy": folder}, TrainerConfig(), device="cpu").weights()
    }
    plain.load_state_dict(merged, strict=False)
    with torch.no_grad():
        logits = plain(input_ids=torch.from_numpy(ROW.astype(np.int64))[None]).logits[0]
    expected = logits.log_softmax(-1)[:-1].gather(-1, torch.from_numpy(ROW[1:, None]).long())[:, 0]
    np.testing.assert_allclose(logprobs(one)[1:], expected, atol=1e-5)


def test_what_an_adapter_adds_is_the_difference_of_merged_and_first_weights(llama: Path) -> None:
    """Where the adapter goes alone: alpha / rank = 4 is in B already."""
    one = trainer(llama)
    first = tensors(one)
    train(one, range(3))
    lent = dict(one.adapter())
    assert set(lent) == {
        f"base_model.model.{name.removesuffix('.weight')}.lora_{letter}.weight"
        for name in first
        if "_proj" in name
        for letter in "AB"
    }
    for name, merged in tensors(one).items():
        layer = f"base_model.model.{name.removesuffix('.weight')}.lora_"
        if f"{layer}A.weight" in lent:
            added = lent[f"{layer}B.weight"] @ lent[f"{layer}A.weight"]
            torch.testing.assert_close(merged - first[name], added, atol=1e-6, rtol=0)
        else:
            assert torch.equal(merged, first[name])


def test_an_engine_with_weights_of_its_own_gets_merged_ones(llama: Path) -> None:
    one = trainer(llama)
    train(one, range(3))
    engine = TransformersEngine(llama)

    async def push() -> list[np.ndarray]:
        await engine.begin_update(1)
        await engine.apply_update(one.weights())
        await engine.finish_update(1)
        return await engine.logprobs([ROW], temperature=1.0)

    (found,) = asyncio.run(push())
    np.testing.assert_allclose(found, logprobs(one), atol=1e-5)


def test_an_engine_that_shares_the_module_samples_with_the_adapters(llama: Path) -> None:
    one = trainer(llama)
    train(one, range(3))
    engine = TransformersEngine(llama)
    engine.share(one.module())
    request = GenerateRequest(tokens=ROW, sampling=Sampling(max_tokens=6), seed=3)
    (completion,) = asyncio.run(engine.generate([request]))
    row = np.concatenate([ROW, completion.tokens])
    (scores,) = one.score("policy", [row], temperature=1.0)
    np.testing.assert_allclose(completion.logprobs, scores[len(ROW) :], atol=1e-5)


def test_three_updates_saved_and_three_more_are_six_updates_bit_for_bit(
    llama: Path, tmp_path: Path
) -> None:
    straight = trainer(llama, dropout=0.2)
    train(straight, range(3))
    straight.save(tmp_path)
    second = train(straight, range(3, 6))
    # A and B of 14 matrices, and nothing of the model below
    assert len(load_file(tmp_path / "weights.safetensors")) == 28

    torch.manual_seed(1234)  # which must not matter
    resumed = trainer(llama, dropout=0.2)
    resumed.load(tmp_path)
    assert train(resumed, range(3, 6)) == second
    ours, theirs = tensors(resumed), tensors(straight)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_dropout_acts_in_training_alone_and_leaves_the_generator_of_others(llama: Path) -> None:
    one, without = trainer(llama, dropout=0.5), trainer(llama)
    state = torch.get_rng_state()
    dropped, kept = train(one, range(2)), train(without, range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert dropped[1]["grad_norm"] != kept[1]["grad_norm"]
    assert np.array_equal(logprobs(one), logprobs(one))


def test_a_checkpoint_of_other_adapters_is_refused(llama: Path, tmp_path: Path) -> None:
    one = trainer(llama)
    train(one, range(1))
    one.save(tmp_path / "lora")
    with pytest.raises(
        ResumeError, match=r"adapters of rank=4, alpha=16, and this run trains adapt"
    ):
        trainer(llama, alpha=32).load(tmp_path / "lora")
    with pytest.raises(ResumeError, match=r"written with adapters .* this run trains all weights"):
        trainer(llama, rank=0).load(tmp_path / "lora")
    with pytest.raises(CheckpointError, match="tensors are only in one of the two"):
        trainer(llama, target_modules=["q_proj"]).load(tmp_path / "lora")
    full = trainer(llama, rank=0)
    full.save(tmp_path / "full")
    with pytest.raises(ResumeError, match=r"set trainer\.policy\.model\.lora as it was"):
        one.load(tmp_path / "full")


@pytest.mark.parametrize("model", ["llama", "qwen2"])
def test_an_export_is_a_whole_model_with_the_adapter_beside_it(
    model: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder = request.getfixturevalue(model)
    one = trainer(folder)
    train(one, range(3))
    one.export(tmp_path)
    alone = FsdpTrainer({"policy": tmp_path}, TrainerConfig(bf16=False), device="cpu")
    np.testing.assert_allclose(logprobs(alone), logprobs(one), atol=1e-5)
    assert not any(".base_layer." in name for name in load_file(tmp_path / "model.safetensors"))

    with no_progress_bars():
        base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        adapted = peft.PeftModel.from_pretrained(base, tmp_path / "lora_adapter")
    ids = torch.from_numpy(ROW.astype(np.int64))[None]
    with torch.no_grad():
        logits = adapted(input_ids=ids).logits[0, :-1].log_softmax(-1)
    expected = logits.gather(-1, ids[0, 1:, None])[:, 0]
    np.testing.assert_allclose(logprobs(one)[1:], expected, atol=1e-5)
    settings = json.loads((tmp_path / "lora_adapter" / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"]) == (RANK, ALPHA)
    assert settings["base_model_name_or_path"] == str(folder)


def test_the_critic_trains_adapters_and_its_whole_head(llama: Path, tmp_path: Path) -> None:
    def critic_of(inputs: ValueInputs) -> LossTerms:
        return LossTerms(terms={"value": (inputs.values - inputs.returns) ** 2})

    loss = Loss(fn=policy_gradient, critic=critic_of, coefficients={"policy": 1.0, "value": 1.0})
    one = trainer(llama, "value")
    rows = batch(roles=("policy", "value"))
    critic = dict(one._modules["value"].named_parameters())
    before = {name: tensor.detach().clone() for name, tensor in critic.items()}
    for _ in range(2):  # the head is 0 at first, so the body moves with the second
        result = one.update(rows, loss, temperature=1.0)
        assert result.metrics["critic/weights_changed"] == 1
    moved = {name for name, tensor in critic.items() if not torch.equal(tensor, before[name])}
    assert moved == {name for name in critic if ".lora_" in name} | {"value_head.weight"}
    one.save(tmp_path)
    assert len(load_file(tmp_path / "value" / "weights.safetensors")) == 29
    names = {name for name, _ in one.weights("value")}
    assert "model.layers.0.self_attn.q_proj.weight" in names
    again = trainer(llama, "value")
    again.load(tmp_path)
    assert np.array_equal(logprobs(again, "value"), logprobs(one, "value"))


def on_a_rank(model: Path, folder: Path, sequence: int = 1) -> dict[str, object]:
    """Two updates with all roles, a checkpoint, a third update, and an export."""
    torch.set_num_threads(1)
    one = trainer(model, "reference", "value", sequence=sequence)
    loss = Loss(fn=policy_gradient)
    first = {name: tensor.clone() for name, tensor in one.weights("value")}
    metrics, scores = [], {}
    for update in range(3):
        rows = batch(update)[one.share :: one.shares]
        if update == 2:
            one.save(folder / "checkpoint")
        metrics.append(dict(one.update(rows, loss, temperature=1.0).metrics))
    for role in ("policy", "reference", "value"):
        scores[role] = logprobs(one, role)
    one.export(folder / "export")
    weights = tensors(one) | {name: tensor.clone() for name, tensor in one.adapter()}
    one.close()
    return {"metrics": metrics, "scores": scores, "weights": weights, "value": first}


def resumed(model: Path, checkpoint: Path) -> dict[str, float]:
    torch.set_num_threads(1)
    one = trainer(model, "reference", "value")
    one.load(checkpoint)
    rows = batch(2)[one.share :: one.shares]
    metrics = dict(one.update(rows, Loss(fn=policy_gradient), temperature=1.0).metrics)
    one.close()
    return metrics


@pytest.mark.parametrize(("model", "sequence"), [("llama", 1), ("qwen2", 1), ("qwen2", 2)])
def test_ranks_train_the_adapters_of_one_process(
    model: str, sequence: int, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Also where they divide every row; the critic's rows stay whole."""
    folder = request.getfixturevalue(model)
    alone = on_a_rank(folder, tmp_path / "1")
    for found in on_ranks(2, on_a_rank, folder, tmp_path / "2", sequence):
        for mine, theirs in zip(found["metrics"], alone["metrics"], strict=True):
            assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-5)
        for role, scores in alone["scores"].items():
            np.testing.assert_allclose(found["scores"][role], scores, atol=1e-3)
        for kind in ("weights", "value"):
            assert found[kind].keys() == alone[kind].keys()
        for name, tensor in alone["value"].items():  # the model below, and the first adapters
            assert torch.equal(found["value"][name], tensor), name
        for name, tensor in alone["weights"].items():
            torch.testing.assert_close(found["weights"][name], tensor, atol=1e-3, rtol=1e-3)
    for number, other in (("1", 2), ("2", 1)):
        for metrics in on_ranks(other, resumed, folder, tmp_path / number / "checkpoint"):
            assert metrics == pytest.approx(alone["metrics"][2], rel=1e-3, abs=1e-4)
    exported = FsdpTrainer({"policy": tmp_path / "2" / "export"}, TrainerConfig(bf16=False))
    np.testing.assert_allclose(logprobs(exported), alone["scores"]["policy"], atol=1e-3)
    one, two = (
        load_file(tmp_path / number / "export" / "lora_adapter" / "adapter_model.safetensors")
        for number in "12"
    )
    assert one.keys() == two.keys()


def test_layers_are_chosen_as_peft_chooses_them(llama: Path) -> None:
    def adapted(**lora: object) -> set[str]:
        named = trainer(llama, **lora).module().named_parameters()
        return {n.split(".")[-4] for n, _ in named if ".lora_A" in n}

    assert adapted() == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    }
    assert adapted(target_modules=["q_proj", "v_proj"]) == {"q_proj", "v_proj"}
    assert adapted(target_modules=r".*\.layers\.1\..*_proj", exclude_modules=["down_proj"]) == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj")
    }


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"target_modules": ["query"]}, r"linear layers of this model are called .*q_proj"),
        ({"exclude_modules": ["query"]}, r"lora with .*exclude_modules=\['query'\] finds nothing"),
        (
            {"target_modules": ["embed_tokens"]},
            r"'model\.embed_tokens', a Embedding; adapters stand",
        ),
        ({"target_modules": ["lm_head"]}, r"'lm_head', a layer that shares its weight"),
        ({"target_modules": ["norm"]}, r"policy\.model\.lora with target_modules=\['norm'\]"),
    ],
)
def test_layers_that_can_have_no_adapter_are_refused(
    llama: Path, lora: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        trainer(llama, **lora)


def test_orthogonal_adapters_have_an_even_rank() -> None:
    with pytest.raises(ValueError, match="rank=3 with init_method=orthogonal: half of the rank"):
        TrainerConfig(policy={"model": {"lora": {"rank": 3, "init_method": "orthogonal"}}})


@pytest.mark.parametrize("init_method", ["kaiming", "gaussian", "orthogonal"])
def test_adapters_are_drawn_as_peft_draws_them(init_method: str) -> None:
    class Layer:
        in_features, out_features = 24, 16

    config = LoraConfig(rank=8, init_method=init_method)
    torch.manual_seed(5)
    down, up = _drawn(Layer(), config)
    settings = peft.LoraConfig(
        r=8,
        target_modules=["0"],
        init_lora_weights=True if init_method == "kaiming" else init_method,
    )
    model = torch.nn.Sequential(torch.nn.Linear(24, 16))
    # PEFT draws the weights of two layers that it then draws anew
    layer = peft.inject_adapter_in_model(settings, model)[0]
    torch.manual_seed(5)
    if init_method == "orthogonal":
        layer.orthogonal_init("default")
    else:
        layer.reset_lora_parameters("default", settings.init_lora_weights)
    assert torch.equal(layer.lora_A["default"].weight, down)
    assert torch.equal(layer.lora_B["default"].weight, up)


def test_a_model_without_weights_gets_the_same_adapters(llama: Path) -> None:
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(llama))
    config = LoraConfig(rank=RANK, alpha=ALPHA)
    add_adapters(empty, config, key="trainer.policy.model.lora", seed=42)
    stored = load_causal_lm(llama).state_dict()
    first = FirstTensors(empty, stored, config, key="trainer.policy.model.lora", seed=42)
    one = trainer(llama).module()
    assert all(parameter.is_meta for parameter in empty.parameters())
    expected = one.state_dict()
    assert first.keys() == expected.keys()
    assert all(torch.equal(first[name], expected[name]) for name in expected)


def test_an_init_method_that_changes_the_weights_below_is_refused() -> None:
    with pytest.raises(ValueError, match="'kaiming', 'gaussian' or 'orthogonal'"):
        TrainerConfig(policy={"model": {"lora": {"rank": 8, "init_method": "pissa"}}})


def test_without_peft_a_run_says_what_to_install(llama: Path) -> None:
    program = f"""
import sys
sys.modules["peft"] = None  # as if it were not installed
from pathlib import Path
from skyrl_fsdp.trainer import FsdpTrainer
from skyrl_kernel.config.roles import LoraConfig
from skyrl_kernel.config.trainer import TrainerConfig
models = {{"policy": Path({str(llama)!r})}}
FsdpTrainer(models, TrainerConfig(), device="cpu")  # which needs none
try:
    FsdpTrainer(models, TrainerConfig(policy={{"model": {{"lora": {{"rank": 8}}}}}}), device="cpu")
except Exception as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("ConfigError trainer.policy.model.lora.rank=8 trains adapters")
    assert "pip install 'skyrl-fsdp[lora]'" in done.stdout


@pytest.mark.parametrize("checkpointing", [False, True])
def test_micro_batches_and_recomputation_change_nothing(llama: Path, checkpointing: bool) -> None:
    one = trainer(llama)
    config = one._config.model_copy(
        update={"gradient_checkpointing": checkpointing, "micro_train_batch_size_per_gpu": 4}
    )
    other = FsdpTrainer({"policy": llama}, config, device="cpu")
    ours, theirs = train(one, range(3)), train(other, range(3))
    for a, b in zip(ours, theirs, strict=True):
        assert a == pytest.approx(b, rel=1e-4)


def test_muon_takes_adapters_and_no_frozen_matrix(llama: Path) -> None:
    one = trainer(llama, optimizer={"name": "muon"})
    (metrics,) = train(one, range(1))
    assert metrics["grad_norm"] > 0
    assert sum(len(group["params"]) for o in one._optimizers for group in o.param_groups) == 28


def test_nan_in_an_adapter_is_found_before_a_step(llama: Path) -> None:
    one = trainer(llama)
    rows = [replace(row, advantages=row.advantages * np.float32("nan")) for row in batch()]
    before = tensors(one)
    with pytest.raises(NonFiniteError, match="NaN or infinite"):
        one.update(rows, Loss(fn=policy_gradient), temperature=1.0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in one.weights())
