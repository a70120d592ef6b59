"""Rows that share a row of the forward pass: which, and that nothing else changes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from skyrl_fsdp.critic import Critic
from skyrl_fsdp.microbatch import forward, forward_values
from skyrl_fsdp.packing import first_fit_decreasing, keeps_rows_apart, lay_out, pack_rows
from skyrl_fsdp.trainer import FsdpTrainer
from skyrl_kernel.config.trainer import TrainerConfig
from skyrl_kernel.protocols import Loss
from skyrl_kernel.records import Scores, TrainingSample
from skyrl_kernel.torch import LossInputs, LossTerms

VOCABULARY = 40
CPU = torch.device("cpu")


# --- which rows share one -------------------------------------------------------------------------


def test_the_longest_come_first_each_into_the_first_bin_with_room() -> None:
    lengths = [820, 410, 520, 110, 250, 700, 50]
    # 820; 700; 520 and 410; then 250 beside 700, 110 beside 820, 50 beside both
    bins = first_fit_decreasing(lengths, 1024)
    assert bins == [[0, 3, 6], [5, 4], [2, 1]]
    assert first_fit_decreasing(lengths, 1024) == bins
    assert len(first_fit_decreasing([60, 70, 80], 100)) == 3


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="150 tokens exceeds bin capacity, which is 100"):
        first_fit_decreasing([50, 150], 100)


def test_more_bins_can_be_asked_for_than_are_needed() -> None:
    assert len(first_fit_decreasing([10, 10, 10], 100, min_bins=3)) == 3
    bins = first_fit_decreasing([40, 30, 20, 10, 5], 1000, multiple=4)
    assert len(bins) == 4
    assert all(bins)
    with pytest.raises(ValueError, match="Cannot create 4 bins of 2 rows"):
        first_fit_decreasing([10, 10], 100, multiple=4)
    assert first_fit_decreasing([], 100) == []


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(1, 4))
@settings(deadline=None)
def test_every_row_is_in_one_bin_and_no_bin_is_too_full(lengths: list[int], ranks: int) -> None:
    bins = first_fit_decreasing(lengths, 50)
    assert sorted(i for members in bins for i in members) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in members) <= 50 for members in bins)
    assert sum(sum(lengths[i] for i in members) <= 25 for members in bins) <= 1
    if len(lengths) >= len(bins) + ranks:
        assert len(first_fit_decreasing(lengths, 50, multiple=ranks)) % ranks == 0


def rows_of(*lengths: int) -> list[Any]:
    numbers = np.random.default_rng(sum(lengths))
    return [numbers.integers(0, VOCABULARY, count, dtype=np.int32) for count in lengths]


def test_rows_are_found_where_the_layout_says() -> None:
    rows = rows_of(3, 1, 2, 7, 4)
    layout = pack_rows(rows, first_fit_decreasing([3, 1, 2, 7, 4], 7))
    assert layout.ids.shape == (3, 7)
    assert layout.positions is not None
    for i, row in enumerate(rows):
        place = slice(int(layout.start[i]), int(layout.start[i]) + len(row))
        assert layout.ids[int(layout.row[i]), place].tolist() == row.tolist()
        assert layout.positions[int(layout.row[i]), place].tolist() == list(range(len(row)))


def test_rows_that_cannot_share_are_padded() -> None:
    layout = lay_out(rows_of(5, 4, 3), CPU, packs=True)
    assert layout.positions is None
    assert layout.ids.shape == (3, 5)
    assert layout.row.tolist() == [0, 1, 2]
    assert lay_out(rows_of(5, 2, 3), CPU, packs=True).ids.shape == (2, 5)
    assert lay_out(rows_of(5, 2, 3), CPU, packs=False).ids.shape == (3, 5)


def test_a_mask_that_would_be_huge_is_not_made() -> None:
    lengths = [10_000, 100, 100]  # 2 · 10⁸ places
    assert lay_out(rows_of(*lengths), CPU, packs=True).positions is None


# --- nothing else changes ---------------------------------------------------------------------------

SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
GPT2 = {
    "vocab_size": VOCABULARY,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", SHAPE),
    "qwen2": ("qwen2", SHAPE),
    "qwen3": ("qwen3", SHAPE | {"head_dim": 8}),
    "mistral, sliding window": ("mistral", SHAPE | {"sliding_window": 4}),
    "gpt2, absolute positions": ("gpt2", GPT2),
}


def model(name: str, attention: str = "sdpa") -> PreTrainedModel:
    kind, shape = MODELS[name]
    torch.manual_seed(0)
    made: PreTrainedModel = AutoModelForCausalLM.from_config(
        CONFIG_MAPPING[kind](**shape), attn_implementation=attention
    )
    with torch.no_grad():
        for parameter in made.parameters():  # large enough for what is attended to to matter
            parameter.mul_(3)
    return made.eval()


def samples(*lengths: int) -> list[TrainingSample]:
    """Rows of which the last half is trained."""
    made = []
    for i, row in enumerate(rows_of(*lengths)):
        mask = np.arange(len(row)) >= max(len(row) // 2, 1)
        made.append(
            TrainingSample(
                trajectory_id=f"0:{i}/0",
                group=i,
                trajectory=i,
                tokens=row,
                loss_mask=mask,
                advantages=np.linspace(-1, 1, len(row)).astype(np.float32),
                returns=np.linspace(1, 2, len(row)).astype(np.float32),
                sampler_logprobs=None,
                scores=Scores(),
                loss_weights=dict.fromkeys(
                    ("policy", "entropy"), mask.astype(np.float32) / (len(lengths) * mask.sum())
                ),
            )
        )
    return made


ROWS = samples(12, 3, 5, 9, 2, 4, 11, 6)


def policy_numbers(
    module: PreTrainedModel, rows: Sequence[TrainingSample], packs: bool
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Log-probs and entropies, and the gradient of both."""
    module.zero_grad()
    logprobs, entropy = forward(module, rows, 0.7, entropy_has_gradient=True, packs=packs)
    (logprobs * torch.linspace(-1, 1, len(logprobs)) + 0.3 * entropy).sum().backward()  # type: ignore[no-untyped-call]
    gradients = {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}
    return torch.stack([logprobs, entropy]).detach(), gradients


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", MODELS)
def test_packed_rows_have_the_log_probs_and_gradients_of_padded_ones(
    name: str, attention: str
) -> None:
    module = model(name, attention)
    assert keeps_rows_apart(module, VOCABULARY)
    padded, packed = (policy_numbers(module, ROWS, packs) for packs in (False, True))
    torch.testing.assert_close(packed[0], padded[0], rtol=1e-5, atol=1e-5)
    for name_of, gradient in padded[1].items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(packed[1][name_of], gradient, rtol=1e-5, atol=1e-5 * scale)


def test_a_critic_s_values_are_those_of_padded_rows() -> None:
    critic = Critic(model("llama").model, "value_head")
    torch.nn.init.normal_(critic.get_output_embeddings().weight)
    padded = forward_values(critic, ROWS)
    torch.testing.assert_close(
        forward_values(critic, ROWS, packs=True), padded, rtol=1e-5, atol=1e-5
    )


def test_a_row_of_its_own_stays_as_it_was_to_the_bit() -> None:
    """Rows of about the same length, as in most of RL, cost nothing and change nothing."""
    module, rows = model("llama"), samples(12, 11, 10)
    padded, packed = (policy_numbers(module, rows, packs) for packs in (False, True))
    assert torch.equal(padded[0], packed[0])


def test_a_model_with_a_state_along_the_row_is_recognised() -> None:
    shape = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 1, "state_size": 4}
    torch.manual_seed(0)
    mamba = AutoModelForCausalLM.from_config(CONFIG_MAPPING["mamba"](**shape)).eval()
    assert not keeps_rows_apart(mamba, VOCABULARY)


# --- the trainer ------------------------------------------------------------------------------------


def likelihood(inputs: LossInputs) -> LossTerms:
    return LossTerms(terms={"policy": -inputs.logprobs * inputs.advantages})


@pytest.mark.parametrize("rows_at_once", [1, 3, 8])
def test_an_update_is_the_same_with_and_without_padding(tmp_path: Path, rows_at_once: int) -> None:
    model("qwen2").save_pretrained(tmp_path)
    results = []
    for removes in (False, True):
        config = TrainerConfig(
            bf16=False,
            gradient_checkpointing=True,
            micro_train_batch_size_per_gpu=rows_at_once,
            remove_microbatch_padding=removes,
        )
        trainer = FsdpTrainer({"policy": tmp_path}, config, device="cpu")
        results.append(trainer.update(ROWS, Loss(fn=likelihood), temperature=1.0).metrics)
    padded, packed = results
    assert packed.keys() == padded.keys()
    for name, value in padded.items():
        assert packed[name] == pytest.approx(value, rel=1e-5, abs=1e-6), name
