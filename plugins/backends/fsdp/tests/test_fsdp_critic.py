"""The critic beside the policy: its values, its gradient, its part of a checkpoint."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from skyrl_fsdp.critic import Critic, load_critic
from skyrl_fsdp.testing import first_gradients
from skyrl_fsdp.trainer import FsdpTrainer
from skyrl_kernel.config.trainer import TrainerConfig
from skyrl_kernel.errors import (
    CheckpointError,
    ConfigError,
    ModelError,
    NonFiniteError,
    ResumeError,
)
from skyrl_kernel.protocols import Loss
from skyrl_kernel.records import Scores, TrainingSample, UpdateResult
from skyrl_kernel.testing.samples import policy_gradient, random_sample
from skyrl_kernel.torch import LossInputs, LossTerms, ValueInputs
from skyrl_transformers.loading import no_progress_bars

HEAD = "value_head.weight"


@pytest.fixture
def valued(llama: Path, tmp_path: Path) -> Path:
    """The model with a head that says something."""
    return with_head(llama, tmp_path / "valued")


def with_head(model: Path, folder: Path, **tensors: torch.Tensor) -> Path:
    shutil.copytree(model, folder)
    head = torch.linspace(-1, 1, 32)[None]
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {HEAD: head} | tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def trainer(model: Path, *, critic: Path | None = None, **config: object) -> FsdpTrainer:
    optimizer = {"lr": 1e-3, "max_grad_norm": 1e9, **config.pop("optimizer", {})}
    return FsdpTrainer(
        {"policy": model, "value": critic or model},
        TrainerConfig(
            **{
                "bf16": False,
                "gradient_checkpointing": False,
                "micro_train_batch_size_per_gpu": 2,
                "micro_forward_batch_size_per_gpu": 3,
                **config,
            },
            policy={"optimizer_config": {"lr": 1e-3}},
            critic={"optimizer_config": optimizer},
        ),
        device="cpu",
    )


def batch(*masks: Sequence[bool], seed: int = 0) -> list[TrainingSample]:
    terms = ("policy", "value")
    return [random_sample(i, mask, seed=seed, terms=terms) for i, mask in enumerate(masks)]


MASKS = ([False, True, True], [False, False, True, False, True, False], [False] + [True] * 8)


def squares(inputs: ValueInputs) -> LossTerms:
    assert inputs.returns is not None
    return LossTerms(terms={"value": 0.5 * (inputs.values - inputs.returns) ** 2})


BOTH = Loss(
    fn=policy_gradient,
    critic=squares,
    needs=frozenset({"values"}),
    coefficients={"policy": 1.0, "value": 1.0},
)


def update(one: FsdpTrainer, rows: Sequence[TrainingSample]) -> UpdateResult:
    return one.update(rows, BOTH, temperature=1.0)


def gradients(one: FsdpTrainer, role: str) -> dict[str, torch.Tensor]:
    """Of the first update, by name."""
    return {
        name.removeprefix(f"{role}/"): torch.from_numpy(found)
        for name, found in first_gradients(one).items()
        if name.startswith(f"{role}/")
    }


def state(one: FsdpTrainer, role: str = "value") -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in one.weights(role)}


def same_bits(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# --- values -----------------------------------------------------------------------------


def plain_values(model: Path, tokens: np.ndarray) -> torch.Tensor:
    """[T] after each token, in plain Hugging Face code; carries the gradient."""
    with no_progress_bars():
        body = AutoModel.from_pretrained(model, dtype=torch.float32)
    head = load_file(model / "model.safetensors")[HEAD]
    hidden: torch.Tensor = body(torch.from_numpy(tokens.astype(np.int64))[None]).last_hidden_state
    return hidden[0] @ head[0]


@pytest.mark.parametrize("bf16", [False, True])
def test_a_value_is_the_head_of_the_hidden_state_before_each_token(
    valued: Path, bf16: bool
) -> None:
    one = trainer(valued, bf16=bf16)
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 256, n).astype(np.int32) for n in (7, 1, 12, 3, 7)]
    got = one.score("value", rows, temperature=0.7)
    for row, values in zip(rows, got, strict=True):
        assert values.dtype == np.float32
        assert values[0] == 0
        expected = plain_values(valued, row).detach().numpy()[:-1]
        np.testing.assert_allclose(values[1:], expected, atol=0.2 if bf16 else 2e-5)


def test_a_new_head_says_zero_and_one_from_the_directory_is_taken(
    llama: Path, valued: Path
) -> None:
    rows = [np.arange(5, dtype=np.int32)]
    (values,) = trainer(llama).score("value", rows, temperature=1.0)
    assert not values.any()
    assert torch.equal(state(trainer(llama, critic=valued))[HEAD], torch.linspace(-1, 1, 32)[None])
    other = trainer(llama, critic=valued, algorithm={"value_head_prefix": "judge"})
    assert not state(other)["judge.weight"].any()


def test_the_tensors_are_called_as_in_the_language_model(llama: Path, qwen2: Path) -> None:
    for model in (llama, qwen2):
        stored = set(load_file(model / "model.safetensors")) - {"lm_head.weight"}
        assert set(state(trainer(model))) == stored | {HEAD}


def test_a_sharded_directory_is_searched_by_its_index(valued: Path) -> None:
    weights = load_file(valued / "model.safetensors")
    (valued / "model.safetensors").unlink()
    parts = {"one.safetensors": {}, "two.safetensors": {HEAD: weights.pop(HEAD)}}
    parts["one.safetensors"] = weights
    index = {name: file for file, tensors in parts.items() for name in tensors}
    for file, tensors in parts.items():
        save_file(tensors, valued / file, {"format": "pt"})
    (valued / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": index})
    )
    assert state(trainer(valued))[HEAD].any()


def test_a_head_that_is_no_critic_s_is_refused(llama: Path, tmp_path: Path) -> None:
    wide = with_head(llama, tmp_path / "wide", **{HEAD: torch.ones(2, 32)})
    with pytest.raises(ModelError, match=r"'value_head.weight' of shape \(2, 32\), .* \(1, 32\)"):
        trainer(wide)
    biased = with_head(llama, tmp_path / "biased", **{"value_head.bias": torch.ones(1)})
    with pytest.raises(ModelError, match=r"'value_head\.bias', and .* no bias"):
        trainer(biased)


@pytest.mark.parametrize("name", ["model", "a.b", "forward", ""])
def test_a_head_is_not_called_like_anything_else(llama: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"value_head_prefix=.* cannot name the critic's head"):
        load_critic(llama, torch.device("cpu"), name)


def test_a_directory_that_is_no_model_is_refused_by_the_critic_s_key(
    llama: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=r"no config.json.* set trainer\.critic\.model\.path"):
        trainer(llama, critic=tmp_path)


def test_a_head_that_is_left_out_is_not_reported(
    qwen2: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    load_critic(qwen2, torch.device("cpu"), "value_head")
    assert capfd.readouterr() == ("", "")


def test_a_critic_is_no_language_model(llama: Path) -> None:
    with pytest.raises(ValueError, match="'value' is a critic"):
        trainer(llama).module("value")


# --- updates ----------------------------------------------------------------------------


@pytest.mark.parametrize("checkpointing", [False, True])
def test_its_gradient_is_that_of_a_plain_loop_whatever_the_micro_batch(
    valued: Path, checkpointing: bool
) -> None:
    rows = batch(*MASKS)
    with no_progress_bars():
        critic = Critic(AutoModel.from_pretrained(valued, dtype=torch.float32), "value_head")
    with torch.no_grad():
        critic.get_output_embeddings().weight.copy_(torch.linspace(-1, 1, 32)[None])
    expected_loss = 0.0
    for row in rows:
        values = critic(torch.from_numpy(row.tokens.astype(np.int64))[None])[0, :-1]
        weight, target = (torch.from_numpy(x[1:]) for x in (row.loss_weights["value"], row.returns))
        term = 0.5 * weight * (values - target) ** 2
        loss = term[torch.from_numpy(row.loss_mask[1:])].sum()
        loss.backward()
        expected_loss += float(loss.detach())
    expected = {name: p.grad for name, p in critic.named_parameters()}
    scale = max(float(g.abs().max()) for g in expected.values())
    for size in (1, 2, 8):
        one = trainer(
            valued, micro_train_batch_size_per_gpu=size, gradient_checkpointing=checkpointing
        )
        result = update(one, rows)
        got = gradients(one, "value")
        assert got.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(got[name], gradient, atol=2e-6 * scale, rtol=1e-4)
        assert result.metrics["critic/critic_loss"] == pytest.approx(expected_loss, rel=1e-5)
        norm = float(sum((g**2).sum() for g in expected.values()) ** 0.5)
        assert result.metrics["critic/grad_norm"] == pytest.approx(norm, rel=1e-4)


def test_the_split_into_micro_batches_changes_neither_model(valued: Path) -> None:
    first, second = (trainer(valued, micro_train_batch_size_per_gpu=size) for size in (1, 8))
    for one in (first, second):
        update(one, batch(*MASKS))
    for role in ("policy", "value"):
        left, right = gradients(first, role), gradients(second, role)
        scale = max(float(g.abs().max()) for g in left.values())
        for name, gradient in left.items():
            torch.testing.assert_close(right[name], gradient, atol=2e-6 * scale, rtol=1e-4)


def test_the_policy_moves_as_it_does_without_a_critic(valued: Path) -> None:
    rows = batch(*MASKS)
    one, other = trainer(valued), trainer(valued)
    alone = Loss(fn=policy_gradient)
    update(one, rows)
    critic = state(other)
    result = other.update(rows, alone, temperature=1.0)
    assert same_bits(state(one, "policy"), state(other, "policy"))
    assert same_bits(state(other), critic)  # which the loss did not ask for
    assert not [name for name in result.metrics if name.startswith("critic/")]


def test_masked_tokens_give_the_critic_exactly_no_gradient(valued: Path) -> None:
    rows = batch(*MASKS)
    spoilt = [
        replace(
            row,
            returns=np.where(row.loss_mask, row.returns, np.float32(1e6)),
            scores=Scores(values=np.where(row.loss_mask, row.scores.values, np.float32(-1e6))),
        )
        for row in rows
    ]
    one, other, without = trainer(valued), trainer(valued), trainer(valued)
    update(one, rows)
    update(other, spoilt)
    assert same_bits(gradients(one, "value"), gradients(other, "value"))
    # a row of which nothing is trained on is as good as no row
    extra = batch(*MASKS, [False] * 5)
    extra = [replace(row, loss_weights=rows[i].loss_weights) for i, row in enumerate(extra[:3])] + [
        extra[3]
    ]
    update(without, extra)
    assert same_bits(gradients(one, "value"), gradients(without, "value"))


def test_a_new_critic_learns_one_batch_from_zero(llama: Path) -> None:
    one = trainer(llama, optimizer={"lr": 1e-2})
    rows = batch(*MASKS)
    losses = [update(one, rows).metrics["critic/critic_loss"] for _ in range(40)]
    assert losses[-1] < 0.1 * losses[0]


def test_each_model_has_its_own_rate_clip_and_schedule(llama: Path) -> None:
    one = trainer(llama, optimizer={"lr": 4e-3, "num_warmup_steps": 4, "max_grad_norm": 1e-3})
    rates = [update(one, batch(*MASKS)).metrics for _ in range(3)]
    assert [m["critic/critic_lr"] for m in rates] == pytest.approx([1e-3, 2e-3, 3e-3])
    assert [m["policy_lr"] for m in rates] == pytest.approx([1e-3] * 3)
    assert rates[0]["critic/grad_norm"] > 1e-3  # told before clipping
    linear = trainer(llama, optimizer={"scheduler": "linear"})
    with pytest.raises(ConfigError, match=r"trainer\.critic\.optimizer_config\.scheduler=linear"):
        update(linear, batch(*MASKS))
    linear.set_total_updates(2)
    rates = [update(linear, batch(*MASKS)).metrics for _ in range(2)]
    assert [m["critic/critic_lr"] for m in rates] == pytest.approx([1e-3, 0.5e-3])


def test_a_critic_that_stays_as_it_was_is_told(llama: Path) -> None:
    one = trainer(llama, optimizer={"lr": 0.0})
    result = update(one, batch(*MASKS))
    assert result.weights_changed  # the policy's
    assert result.metrics["critic/weights_changed"] == 0
    assert update(trainer(llama), batch(*MASKS)).metrics["critic/weights_changed"] == 1


def test_values_that_are_not_finite_name_the_trajectory_and_leave_both_models(
    valued: Path,
) -> None:
    one = trainer(valued)
    rows = batch(*MASKS)
    with torch.no_grad():  # an embedding that only the second row has
        critic = one._modules["value"]
        token = int(next(t for t in rows[1].tokens if t not in [*rows[0].tokens, *rows[2].tokens]))
        critic.body.embed_tokens.weight[token] = float("nan")
    before = {role: state(one, role) for role in ("policy", "value")}
    with pytest.raises(NonFiniteError, match=r"values of \d tokens .* trajectories p/1; the"):
        update(one, rows)
    assert same_bits(state(one, "policy"), before["policy"])
    assert all(p.grad is None for p in one.module().parameters())
    assert all(p.grad is None for p in critic.parameters())
    assert not critic.training


def test_an_overflowing_gradient_of_the_critic_leaves_the_policy_too(valued: Path) -> None:
    one = trainer(valued)
    rows = batch(*MASKS)
    rows[0].loss_weights["value"][:] = 3e38
    before = {role: state(one, role) for role in ("policy", "value")}
    with pytest.raises(NonFiniteError, match=r"the gradient's norm is (inf|nan)"):
        update(one, rows)
    for role in ("policy", "value"):
        assert same_bits(state(one, role), before[role])


def test_a_loss_with_values_and_no_critic_is_refused(llama: Path) -> None:
    one = FsdpTrainer({"policy": llama}, TrainerConfig(bf16=False), device="cpu")
    with pytest.raises(ValueError, match="no model for the role 'value'; it has policy"):
        update(one, batch(*MASKS))


# --- in other processes than the policy ---------------------------------------------------


def alone(model: Path, role: str, **config: object) -> FsdpTrainer:
    """One of the two, in a run that has both."""
    both = trainer(model, **config)
    return FsdpTrainer(
        {role: model},
        both._config,
        device="cpu",
        elsewhere={"policy", "value"} - {role},
    )


def test_policy_and_critic_in_other_processes_take_the_steps_of_one(valued: Path) -> None:
    together, rows = trainer(valued), batch(*MASKS)
    policy, critic = (alone(valued, role) for role in ("policy", "value"))
    for _ in range(2):
        expected = update(together, rows)
        of_policy, of_critic = update(policy, rows), update(critic, rows)
    assert same_bits(state(policy, "policy"), state(together, "policy"))
    assert same_bits(state(critic), state(together))
    assert of_policy.weights_changed
    total = of_policy.metrics["final_loss"] + of_critic.metrics["final_loss"]
    assert total == pytest.approx(expected.metrics["final_loss"], rel=1e-6)
    joined = {**of_policy.metrics, **of_critic.metrics, "final_loss": 0.0}
    assert joined == {**expected.metrics, "final_loss": 0.0}
    shared = of_policy.metrics.keys() & of_critic.metrics.keys()
    assert shared == {"final_loss", "trained_tokens"}


def test_the_critic_alone_gives_values_and_knows_no_policy(valued: Path) -> None:
    one, row = alone(valued, "value"), batch(*MASKS)[2].tokens
    (values,) = one.score("value", [row], temperature=1.0)
    (expected,) = trainer(valued).score("value", [row], temperature=1.0)
    assert values.tolist() == expected.tolist()
    with pytest.raises(ValueError, match="no model for the role 'policy'; it has value"):
        one.score("policy", [row], temperature=1.0)


def test_a_loss_with_a_prepare_pass_asks_it_of_the_policy_alone(valued: Path) -> None:
    def prepare(inputs: LossInputs) -> dict[str, torch.Tensor]:
        return {"all": inputs.logprobs}

    def centred(inputs: LossInputs) -> LossTerms:
        return LossTerms(terms={"policy": inputs.logprobs - inputs.minibatch["all"].mean()})

    loss = replace(BOTH, fn=centred, prepare=prepare)
    together, critic = trainer(valued), alone(valued, "value")
    for one in (together, critic):
        one.update(batch(*MASKS), loss, temperature=1.0)
    assert same_bits(state(critic), state(together))


def test_where_the_critic_is_changes_nothing_of_a_checkpoint(valued: Path, tmp_path: Path) -> None:
    rows = batch(*MASKS)
    together = trainer(valued)
    policy, critic = (alone(valued, role) for role in ("policy", "value"))
    for one in (together, policy, critic):
        update(one, rows)
    together.save(tmp_path / "together")
    for one in (policy, critic):
        one.save(tmp_path / "apart")
    files = [
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.*")}
        for folder in (tmp_path / "together", tmp_path / "apart")
    ]
    assert files[0] == files[1]
    for role in ("policy", "value"):
        again = alone(valued, role)
        again.load(tmp_path / "together")
        update(again, rows)
        if role == "policy":
            update(together, rows)
        assert same_bits(state(again, role), state(together, role))
    policy.save(tmp_path / "policy alone")
    with pytest.raises(CheckpointError, match=r"trains a critic, and the checkpoint .* has none"):
        alone(valued, "value").load(tmp_path / "policy alone")


# --- checkpoints ------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_three_updates_saved_and_three_more_are_six_bit_for_bit(
    llama: Path, tmp_path: Path, optimizer: str
) -> None:
    def fresh() -> FsdpTrainer:
        one = trainer(llama, optimizer={"name": optimizer, "scheduler": "linear"})
        one.set_total_updates(6)
        return one

    def train(one: FsdpTrainer, updates: range) -> list[Mapping[str, float]]:
        return [update(one, batch(*MASKS, seed=k)).metrics for k in updates]

    straight = fresh()
    train(straight, range(3))
    straight.save(tmp_path)
    second = train(straight, range(3, 6))
    resumed = fresh()
    resumed.load(tmp_path)
    assert train(resumed, range(3, 6)) == second
    for role in ("policy", "value"):
        assert same_bits(state(resumed, role), state(straight, role))


def test_the_critic_has_a_folder_of_its_own_without_pickle(llama: Path, tmp_path: Path) -> None:
    one = trainer(llama)
    update(one, batch(*MASKS))
    one.save(tmp_path)
    files = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")}
    names = ("weights.safetensors", "optimizer.safetensors", "trainer.json")
    assert files == {*names, *(f"value/{name}" for name in names)}
    assert HEAD in load_file(tmp_path / "value" / "weights.safetensors")


def test_a_checkpoint_without_a_critic_is_refused_and_so_is_one_too_many(
    llama: Path, tmp_path: Path
) -> None:
    config = TrainerConfig(bf16=False)
    alone = FsdpTrainer({"policy": llama}, config, device="cpu")
    alone.save(tmp_path / "alone")
    one = trainer(llama)
    before = state(one, "policy")
    with pytest.raises(CheckpointError, match=r"trains a critic, and the checkpoint .* has none"):
        one.load(tmp_path / "alone")
    assert same_bits(before, state(one, "policy"))
    one.save(tmp_path / "both")
    with pytest.raises(ResumeError, match=r"has a critic \(in 'value'\), and this run trains none"):
        alone.load(tmp_path / "both")


def test_missing_damaged_and_foreign_files_of_the_critic_are_refused_by_name(
    llama: Path, qwen2: Path, tmp_path: Path
) -> None:
    one = trainer(llama)
    update(one, batch(*MASKS))
    one.save(tmp_path)
    file = tmp_path / "value" / "optimizer.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"value/optimizer\.safetensors' cannot be read"):
        trainer(llama).load(tmp_path)
    file.unlink()
    with pytest.raises(CheckpointError, match=r"value/optimizer\.safetensors' cannot be read"):
        trainer(llama).load(tmp_path)
    with pytest.raises(CheckpointError, match=r"value/weights\.safetensors' is of another model"):
        trainer(llama, critic=qwen2).load(tmp_path)
    other = trainer(llama, algorithm={"value_head_prefix": "judge"})
    with pytest.raises(CheckpointError, match=r"is of another model: .* such as 'judge\.weight'"):
        other.load(tmp_path)
    muon = trainer(llama, optimizer={"name": "muon"})
    with pytest.raises(
        ResumeError, match=r"trainer\.critic\.optimizer_config\.name=muon, .* written with adamw"
    ):
        muon.load(tmp_path)


def test_an_export_is_the_policy_alone(llama: Path, tmp_path: Path) -> None:
    one = trainer(llama)
    update(one, batch(*MASKS))
    one.export(tmp_path)
    assert set(load_file(tmp_path / "model.safetensors")) == set(state(one, "policy"))
