"""Rows divided among partners: each computes a part, and together they compute what one does."""

import itertools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.distributed as dist

from skyrl_fsdp.packing import lay_out
from skyrl_fsdp.testing import first_gradients
from skyrl_fsdp.trainer import FsdpTrainer
from skyrl_fsdp.ulysses import Part, Partners
from skyrl_kernel.config.trainer import TrainerConfig
from skyrl_kernel.testing.contracts.parity import (
    LEARNING_RATE,
    ROLES,
    ParityContract,
    Recording,
    differences,
    record,
)
from skyrl_kernel.testing.ranks import RanksFailed, on_ranks
from skyrl_kernel.torch import selected_logprobs
from skyrl_transformers.loading import load_causal_lm
from skyrl_transformers.testing import write_random_model

KEY = "trainer.policy.sequence_parallel_size"
SHAPES = {
    "tied, fewer key heads than partners": {"num_attention_heads": 4, "num_key_value_heads": 1},
    "three key heads": {"num_attention_heads": 12, "num_key_value_heads": 3, "hidden_size": 96},
    "a window": {
        **{"architecture": "qwen2", "num_attention_heads": 4, "num_key_value_heads": 2},
        **{"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    },
    "norms of heads": {
        **{"architecture": "qwen3", "num_attention_heads": 4, "num_key_value_heads": 4}
    },
    # Of 13 places the first partner has only some below the bound, and the last some that fill up.
    "frequencies of the longest row": {
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 12},
        "rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4},
    },
    "frequencies of long rows": {
        **{"architecture": "phi3", "num_attention_heads": 4, "num_key_value_heads": 2},
        "rope_parameters": {
            **{"rope_type": "longrope", "factor": 4.0, "rope_theta": 1e4},
            "original_max_position_embeddings": 8,
            "short_factor": [1.0] * 4,
            "long_factor": [4.0] * 4,
        },
    },
}
CPU = torch.device("cpu")


@pytest.fixture(scope="session", params=SHAPES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("divided")
    shape = {"tie_word_embeddings": request.param.startswith("tied"), **SHAPES[request.param]}
    write_random_model(folder, **shape)
    return folder


def partners() -> Partners:
    """All ranks, or nobody where there is one."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Partners()
    dist.init_process_group("gloo")
    return Partners(dist.new_group(), key=KEY)


def gradients(
    folder: Path, packs: bool, recompute: bool
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Log-probs of five rows, and the gradient of a sum of them, summed over ranks."""
    torch.set_num_threads(1)
    model, together = load_causal_lm(folder), partners()
    together.divide(model, CPU, packs=packs)
    if recompute:
        model.train()
        model.activation_checkpointing_enable({"use_reentrant": False})
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 256, count).astype(np.int32) for count in (13, 6, 7, 4, 9)]
    layout = lay_out(rows, CPU, packs=packs)
    chosen = np.concatenate(
        [np.arange(len(row) - 1) + start for row, start in zip(rows, layout.start, strict=True)]
    )
    line = np.repeat(layout.row, [len(row) - 1 for row in rows])
    targets = torch.from_numpy(np.concatenate([row[1:] for row in rows]).astype(np.int64))
    part = together.part(layout, chosen)
    with together.at(layout):
        logits = model(input_ids=part.ids, **part.extra, use_cache=False).logits
    logprobs = together.join(
        selected_logprobs(logits[line[part.mine], part.places], targets[part.mine], 1.0), part
    )
    (logprobs * torch.linspace(-1, 1, len(logprobs))).sum().backward()
    found = {}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        if dist.is_initialized():
            dist.all_reduce(parameter.grad)
        found[name] = parameter.grad.numpy().copy()
    return logprobs.detach().numpy(), found


@pytest.mark.parametrize("packs", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("size", [2, 4])
def test_partners_compute_log_probs_and_gradients_of_one_process(
    model: Path, size: int, packs: bool
) -> None:
    logprobs, expected = gradients(model, packs, False)
    norm = np.sqrt(sum(float((one**2).sum()) for one in expected.values()))
    for found, theirs in on_ranks(size, gradients, model, packs, size == 2):
        np.testing.assert_allclose(found, logprobs, atol=1e-5)
        for name, gradient in expected.items():
            bound = max(float(np.linalg.norm(gradient)), 1e-3 * norm)
            assert np.linalg.norm(theirs[name] - gradient) <= 1e-5 * bound, name


def whole(folder: Path) -> np.ndarray:
    model, together = load_causal_lm(folder), partners()
    together.divide(model, CPU)
    layout = lay_out([np.arange(9, dtype=np.int32), np.arange(4, dtype=np.int32)], CPU, packs=False)

    def compute(part: Part) -> torch.Tensor:
        with torch.no_grad():
            out = model(input_ids=part.ids, **part.extra, use_cache=False)
            return out.logits[:, : len(part.places)]

    return together.whole(layout, compute).numpy()


def test_numbers_of_all_places_come_in_order(model: Path) -> None:
    expected = whole(model)  # 9 places, which 2 and 4 partners fill up to 10 and 12
    assert expected.shape[:2] == (2, 9)
    for size in (2, 4):
        for found in on_ranks(size, whole, model):
            np.testing.assert_allclose(found[0], expected[0], atol=2e-5)
            np.testing.assert_allclose(found[1, :4], expected[1, :4], atol=2e-5)


def test_heads_that_cannot_be_divided_are_refused_with_the_numbers(tmp_path: Path) -> None:
    write_random_model(tmp_path, num_attention_heads=6, num_key_value_heads=2, hidden_size=48)
    with pytest.raises(
        RanksFailed,
        match=r"ConfigError: trainer\.policy\.sequence_parallel_size=4 does not divide the 6 attention "
        r"heads of the model; it may be 1, 2, 3, 6",
    ):
        on_ranks(4, whole, tmp_path)


def test_layers_that_look_along_a_row_by_themselves_are_refused(tmp_path: Path) -> None:
    # LFM2 has convolutions along the row between its attention layers.
    write_random_model(
        tmp_path,
        architecture="lfm2",
        num_attention_heads=2,
        num_key_value_heads=2,
        layer_types=["conv", "full_attention"],
    )
    with pytest.raises(RanksFailed, match=r"Lfm2ForCausalLM computes other numbers when its rows"):
        on_ranks(2, whole, tmp_path)


def on_a_rank(model: Path, precision: str, options: Mapping[str, Any]) -> Recording:
    """All ranks are partners, unless told otherwise."""
    torch.set_num_threads(1)
    size = options.get("policy", int(os.environ.get("WORLD_SIZE", "1")))
    trained = {"optimizer_config": {"lr": LEARNING_RATE, "max_grad_norm": 1e9}}
    config = TrainerConfig(
        bf16=precision == "bf16",
        gradient_checkpointing=options.get("gradient_checkpointing", False),
        remove_microbatch_padding=options.get("remove_microbatch_padding", True),
        micro_train_batch_size_per_gpu=4,
        micro_forward_batch_size_per_gpu=4,
        policy={**trained, "sequence_parallel_size": size},
        critic={**trained, "sequence_parallel_size": options.get("critic", size)},
        ref={"sequence_parallel_size": options.get("ref", size)},
    )
    trainer = FsdpTrainer(dict.fromkeys(ROLES, model), config, device="cpu", timeout_s=30)
    try:
        world = int(os.environ.get("WORLD_SIZE", "1"))
        assert (trainer.shares, trainer.share) == (world // size, int(os.environ["RANK"]) // size)
        return record(trainer, first_gradients)
    finally:
        trainer.close()


def test_a_trainer_of_two_partners_is_one_process(tmp_path: Path) -> None:
    write_random_model(tmp_path, architecture="qwen2", tie_word_embeddings=True)
    (alone,) = on_ranks(1, on_a_rank, tmp_path, "fp32", {})
    for found in on_ranks(2, on_a_rank, tmp_path, "fp32", {}):
        assert not differences(found, alone, 1e-5)


@pytest.mark.slow
class TestDividedParity(ParityContract):
    on_a_rank = staticmethod(on_a_rank)
    options: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "two shares of two": {"policy": 2},
        "critic and reference whole": {"policy": 2, "critic": 1, "ref": 1},
        "recomputed activations": {"policy": 2, "gradient_checkpointing": True},
        "padded rows": {"remove_microbatch_padding": False},
    }

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _models(cls, tmp_path_factory: pytest.TempPathFactory) -> None:
        cls.folders = {}
        for architecture, spread in itertools.product(cls.architectures, (0.02, 0.3)):
            folder = tmp_path_factory.mktemp(architecture)
            cls.folders[architecture, spread] = folder
            module = write_random_model(
                folder,
                architecture=architecture,
                tie_word_embeddings=architecture == "qwen2",
                num_attention_heads=4,
                num_key_value_heads=2,
                initializer_range=spread,
                seed=3,
            )
            module.bfloat16().save_pretrained(folder)

    def model(self, architecture: str, precision: str) -> Path:
        """In bfloat16 with weights as large as training begins with.

        Each part of a row rounds by itself, and weights fifteen times as large make 1e-2 of
        it: in one process too, where rows are packed otherwise.
        """
        return self.folders[architecture, 0.02 if precision == "bf16" else 0.3]
