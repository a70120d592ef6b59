"""Saving, loading, exporting, scoring, and the models that are refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from skyrl_fsdp.trainer import FsdpTrainer
from skyrl_kernel.config.roles import OptimizerConfig, PolicyConfig
from skyrl_kernel.config.trainer import TrainerConfig
from skyrl_kernel.errors import CheckpointError, ConfigError, ModelError, ResumeError
from skyrl_kernel.protocols import Loss, Trainer
from skyrl_kernel.records import TrainingSample
from skyrl_kernel.testing.samples import policy_gradient, random_sample
from skyrl_transformers.loading import no_progress_bars


def trainer(model: Path, *, roles: tuple[str, ...] = ("policy",), **optimizer) -> FsdpTrainer:
    settings = {"lr": 1e-3, "num_warmup_steps": 2, **optimizer}
    config = TrainerConfig(
        bf16=False,
        gradient_checkpointing=False,
        micro_train_batch_size_per_gpu=2,
        micro_forward_batch_size_per_gpu=3,
        policy=PolicyConfig(optimizer_config=OptimizerConfig(**settings)),
    )
    return FsdpTrainer(dict.fromkeys(roles, model), config, device="cpu")


def batch(update: int) -> list[TrainingSample]:
    lengths = np.random.default_rng(update).integers(3, 9, 3)
    masks = [np.arange(length) > 1 for length in lengths]
    return [random_sample(i, mask, seed=update) for i, mask in enumerate(masks)]


def train(one: FsdpTrainer, updates: range) -> list[dict[str, float]]:
    loss = Loss(fn=policy_gradient)
    return [dict(one.update(batch(k), loss, temperature=1.0).metrics) for k in updates]


def state(one: FsdpTrainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in one.weights()}


def assert_same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("scheduler", ["constant_with_warmup", "linear"])
def test_three_updates_saved_and_three_more_are_six_updates_bit_for_bit(
    llama: Path, tmp_path: Path, optimizer: str, scheduler: str
) -> None:
    straight = trainer(llama, name=optimizer, scheduler=scheduler)
    straight.set_total_updates(6)
    first = train(straight, range(3))
    straight.save(tmp_path / "checkpoint")
    second = train(straight, range(3, 6))

    resumed = trainer(llama, name=optimizer, scheduler=scheduler)
    resumed.load(tmp_path / "checkpoint")
    assert train(resumed, range(3, 6)) == second
    assert first != second
    assert_same_bits(state(resumed), state(straight))


def test_the_rate_warms_up_and_then_falls_linearly(llama: Path) -> None:
    one = trainer(llama, scheduler="linear", min_lr_frac=0.1)
    one.set_total_updates(6)
    rates = [metrics["policy_lr"] for metrics in train(one, range(6))]
    # two updates of warm-up, then 0.9 of the peak are lost over the four that remain
    assert rates == pytest.approx([0.5e-3, 1e-3, 1e-3, 0.775e-3, 0.55e-3, 0.325e-3])


def test_linear_without_the_number_of_updates_says_what_is_missing(llama: Path) -> None:
    with pytest.raises(ConfigError, match="scheduler=linear needs the number of updates"):
        train(trainer(llama, scheduler="linear"), range(3))


def test_a_checkpoint_holds_tensors_and_numbers_and_no_pickle(llama: Path, tmp_path: Path) -> None:
    one = trainer(llama)
    train(one, range(1))
    one.save(tmp_path)
    names = {file.name for file in tmp_path.iterdir()}
    assert names == {"weights.safetensors", "optimizer.safetensors", "trainer.json"}
    assert json.loads((tmp_path / "trainer.json").read_text()) == {
        "updates": 1,
        "total_updates": None,
        "optimizer": "adamw",
    }
    weights = load_file(tmp_path / "weights.safetensors")
    assert "model.embed_tokens.weight" in weights
    assert "lm_head.weight" not in weights  # tied: once
    keys = {name.partition("|")[2] for name in load_file(tmp_path / "optimizer.safetensors")}
    assert keys == {"step", "exp_avg", "exp_avg_sq"}


def test_a_damaged_checkpoint_is_refused_by_file(llama: Path, tmp_path: Path) -> None:
    one = trainer(llama)
    train(one, range(1))
    one.save(tmp_path)
    whole = (tmp_path / "optimizer.safetensors").read_bytes()
    (tmp_path / "optimizer.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"optimizer\.safetensors' cannot be read"):
        trainer(llama).load(tmp_path)
    (tmp_path / "trainer.json").unlink()
    with pytest.raises(CheckpointError, match=r"trainer\.json' cannot be read"):
        trainer(llama).load(tmp_path)


def test_a_checkpoint_of_another_model_is_refused_and_changes_nothing(
    llama: Path, qwen2: Path, tmp_path: Path
) -> None:
    trainer(qwen2).save(tmp_path)
    one = trainer(llama)
    before = state(one)
    with pytest.raises(CheckpointError, match=r"of another model: .* only in one of the two"):
        one.load(tmp_path)
    weights = dict(trainer(llama).weights())
    weights["model.norm.weight"] = torch.ones(5)
    save_file(weights, tmp_path / "weights.safetensors")
    with pytest.raises(CheckpointError, match=r"'model.norm.weight' has shape \(5,\), .* \(32,\)"):
        one.load(tmp_path)
    assert_same_bits(before, state(one))


def test_a_checkpoint_of_another_optimizer_is_refused(llama: Path, tmp_path: Path) -> None:
    trainer(llama, name="muon").save(tmp_path)
    with pytest.raises(ResumeError, match=r"name=adamw, but the checkpoint .* written with muon"):
        trainer(llama).load(tmp_path)


def test_an_export_is_a_model_directory_with_the_same_weights_and_tokenizer(
    llama: Path, tmp_path: Path
) -> None:
    one = trainer(llama)
    train(one, range(1))
    one.export(tmp_path / "export")
    with no_progress_bars():
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    exported = dict(again.state_dict())
    assert all(torch.equal(exported[name], tensor) for name, tensor in one.weights())
    chat = [{"role": "user", "content": "2 * 3"}]
    before, after = (AutoTokenizer.from_pretrained(path) for path in (llama, tmp_path / "export"))
    assert after.apply_chat_template(chat) == before.apply_chat_template(chat)


def test_scores_are_those_of_a_plain_forward_pass_in_the_order_given(qwen2: Path) -> None:
    one = trainer(qwen2, roles=("policy", "reference"))
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 256, n).astype(np.int32) for n in (7, 1, 12, 3, 7)]
    for temperature in (1.0, 0.6):
        scores = one.score("reference", rows, temperature=temperature)
        for row, got in zip(rows, scores, strict=True):
            ids = torch.from_numpy(row.astype(np.int64))[None]
            with torch.no_grad():
                logprobs = one.module()(input_ids=ids).logits[0] / temperature
            expected = logprobs.log_softmax(-1)[:-1].gather(1, ids[0, 1:, None])[:, 0]
            assert got.dtype == np.float32
            assert got[0] == 0
            np.testing.assert_allclose(got[1:], expected.numpy(), atol=2e-5)


def test_the_reference_stays_where_it_was_while_the_policy_moves(llama: Path) -> None:
    one = trainer(llama, roles=("policy", "reference"))
    rows = [sample.tokens for sample in batch(0)]
    before = {role: one.score(role, rows, temperature=1.0) for role in ("policy", "reference")}
    train(one, range(1))
    after = {role: one.score(role, rows, temperature=1.0) for role in ("policy", "reference")}
    np.testing.assert_array_equal(before["policy"][0], before["reference"][0])
    np.testing.assert_array_equal(before["reference"][0], after["reference"][0])
    assert not np.array_equal(before["policy"][0], after["policy"][0])
    assert not any(p.requires_grad for p in one.module("reference").parameters())


def test_weights_come_once_each_by_their_hugging_face_names(llama: Path, qwen2: Path) -> None:
    tied = [name for name, _ in trainer(llama).weights()]
    untied = [name for name, _ in trainer(qwen2).weights()]
    assert len(tied) == len(set(tied))
    assert "lm_head.weight" not in tied
    assert "lm_head.weight" in untied
    stored = load_file(llama / "model.safetensors")
    assert set(tied) == set(stored)


def test_a_trainer_keeps_the_protocol_and_offload_is_harmless_on_a_cpu(llama: Path) -> None:
    one = trainer(llama)
    assert isinstance(one, Trainer)
    before = state(one)
    one.offload()
    one.onload()
    assert_same_bits(before, state(one))


def test_a_role_without_a_model_is_refused_with_those_that_have_one(llama: Path) -> None:
    with pytest.raises(ValueError, match="no model for the role 'reference'; it has policy"):
        trainer(llama).score("reference", [], temperature=1.0)


def test_a_cuda_device_is_refused_where_there_is_none(llama: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device: the refusal was not checked")
    with pytest.raises(ConfigError, match=r"trainer.fsdp.device=cuda, but torch finds no CUDA"):
        FsdpTrainer({"policy": llama}, TrainerConfig(), device="cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="offload to the CPU was not checked")
def test_offload_frees_the_device_and_training_goes_on_as_if_it_had_not(llama: Path) -> None:
    one, other = (
        FsdpTrainer({"policy": llama}, TrainerConfig(gradient_checkpointing=False), device="cuda")
        for _ in range(2)
    )
    train(one, range(2))
    train(other, range(1))
    other.offload()
    assert {tensor.device.type for _, tensor in other.weights()} == {"cpu"}
    other.onload()
    train(other, range(1, 2))
    assert_same_bits(state(one), state(other))


def test_a_missing_model_directory_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"empty' cannot be loaded .* has no config.json") as info:
        trainer(tmp_path / "empty")
    assert "\n" not in str(info.value)
    assert info.value.exit_code == 2
