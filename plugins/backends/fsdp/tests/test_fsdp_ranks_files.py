"""Checkpoints of any number of ranks for any other, exports as a stream, models filled by layer."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from skyrl_fsdp.export import WeightFiles
from skyrl_fsdp.ranks import join
from skyrl_fsdp.sharding import shard
from skyrl_fsdp.trainer import FsdpTrainer
from skyrl_kernel.config.sharding import ShardingConfig
from skyrl_kernel.config.trainer import TrainerConfig
from skyrl_kernel.errors import CheckpointError
from skyrl_kernel.logs import logging_to
from skyrl_kernel.protocols import Loss
from skyrl_kernel.records import Scores, TrainingSample
from skyrl_kernel.testing.ranks import RanksFailed, on_ranks
from skyrl_kernel.testing.samples import policy_gradient
from skyrl_kernel.torch import LossTerms, ValueInputs
from skyrl_transformers.loading import load_causal_lm, no_progress_bars
from skyrl_transformers.stored import StoredTensors, empty_causal_lm
from skyrl_transformers.testing import write_random_model

ROWS = [np.arange(5 + length, 5 + 2 * length, dtype=np.int32) for length in (4, 7, 5, 6)]
Weights = Mapping[str, torch.Tensor]


def trainer(models: Mapping[str, Path], **sharding: Any) -> FsdpTrainer:
    torch.set_num_threads(1)
    optimizer = {"lr": 1e-3, "name": sharding.pop("optimizer", "adamw")}
    role = {"optimizer_config": optimizer, "fsdp_config": sharding}
    config = TrainerConfig(bf16=False, gradient_checkpointing=False, policy=role, critic=role)
    return FsdpTrainer(models, config, device="cpu", timeout_s=60)


def squares(inputs: ValueInputs) -> LossTerms:
    return LossTerms(terms={"value": (inputs.values - 1) ** 2})


def train(one: FsdpTrainer, updates: Sequence[int]) -> list[dict[str, float]]:
    coefficients = {"policy": 1.0, "value": 1.0}
    critic = squares if "value" in one._modules else None
    loss = Loss(fn=policy_gradient, critic=critic, coefficients=coefficients)
    metrics = []
    for update in updates:
        rng = np.random.default_rng(update)
        batch = [
            TrainingSample(
                trajectory_id=f"p/{number}",
                group=0,
                trajectory=number,
                tokens=row,
                loss_mask=np.arange(len(row)) > 1,
                advantages=rng.normal(size=len(row)).astype(np.float32),
                returns=None,
                sampler_logprobs=None,
                scores=Scores(),
                loss_weights=dict.fromkeys(coefficients, np.full(len(row), 0.1, np.float32)),
            )
            for number, row in enumerate(ROWS)
        ]
        mine = batch[one.share :: one.shares]
        metrics.append(dict(one.update(mine, loss, temperature=1.0).metrics))
    return metrics


def step(
    models: Mapping[str, Path],
    updates: Sequence[int],
    read: Path | None,
    written: Path | None,
    sharding: Mapping[str, Any],
) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    """Start, continue from a checkpoint if one is given, train, write one if told where."""
    one = trainer(models, **sharding)
    if read is not None:
        one.load(read)
    metrics = train(one, updates)
    if written is not None:
        one.save(written)
    weights = {f"{role}/{name}": t for role in models for name, t in one.weights(role)}
    one.close()
    return metrics, weights


def assert_close(found: Weights, expected: Weights, *, atol: float) -> None:
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=atol, rtol=0, msg=name)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_checkpoint_is_continued_on_another_number_of_ranks(
    llama: Path, tmp_path: Path, optimizer: str
) -> None:
    """1 → 2 → 4 → 1 with a critic: six updates like those of one process."""
    models = {"policy": llama, "value": llama}
    sharding = {"optimizer": optimizer}
    ((expected, weights),) = on_ranks(1, step, models, range(6), None, None, sharding)

    (first,) = on_ranks(1, step, models, [0, 1], None, tmp_path / "one", sharding)
    second = on_ranks(2, step, models, [2, 3], tmp_path / "one", tmp_path / "two", sharding)
    third = on_ranks(4, step, models, [4], tmp_path / "two", tmp_path / "four", sharding)
    (last,) = on_ranks(1, step, models, [5], tmp_path / "four", None, sharding)

    for metrics, _ in second:
        assert metrics == second[0][0]
    found = [*first[0], *second[0][0], *third[0][0], *last[0]]
    # Muon orthogonalises in bfloat16.
    tolerance = 1e-5 if optimizer == "adamw" else 1e-2
    for mine, theirs in zip(found, expected, strict=True):
        assert mine == pytest.approx(theirs, rel=tolerance, abs=tolerance)
    assert_close(last[1], weights, atol=2e-4 if optimizer == "adamw" else 2e-2)


def test_ranks_continue_bit_for_bit_on_as_many(qwen2: Path, tmp_path: Path) -> None:
    """Also with copies of the weights and offloaded ones: every copy is written once."""
    models = {"policy": qwen2}
    sharding = {"fsdp_size": 2, "cpu_offload": True}
    straight = on_ranks(4, step, models, range(4), None, None, sharding)
    on_ranks(4, step, models, [0, 1], None, tmp_path, sharding)
    resumed = on_ranks(4, step, models, [2, 3], tmp_path, None, sharding)
    for mine, theirs in zip(resumed, straight, strict=True):
        assert mine[0] == theirs[0][2:]
        assert_close(mine[1], theirs[1], atol=0)

    parts = sorted(tmp_path.glob("weights-*.safetensors"))
    assert [part.name for part in parts] == [
        f"weights-0000{k}-of-00004.safetensors" for k in (1, 2, 3, 4)
    ]
    sizes = [sum(t.numel() for t in load_file(part).values()) for part in parts]
    whole = sum(t.numel() for t in load_causal_lm(qwen2).parameters())
    assert sum(sizes) == whole
    assert sizes[2:] == [0, 0]  # ranks 2 and 3 have the copy of 0 and 1


def test_a_part_that_is_missing_is_named_on_every_rank(llama: Path, tmp_path: Path) -> None:
    models = {"policy": llama}
    on_ranks(2, step, models, [0], None, tmp_path, {})
    (tmp_path / "optimizer-00002-of-00002.safetensors").unlink()
    with pytest.raises(
        RanksFailed, match=r"optimizer-00002-of-00002.safetensors' cannot"
    ) as failed:
        on_ranks(2, step, models, [1], tmp_path, None, {})
    assert all(isinstance(one, CheckpointError) for one in failed.value.outcomes)


def export_policy(model: Path, folder: Path) -> None:
    one = trainer({"policy": model})
    train(one, [0])
    one.export(folder)
    one.close()


def test_an_export_of_ranks_is_the_directory_that_one_process_writes(
    llama: Path, tmp_path: Path
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    on_ranks(1, export_policy, llama, one)
    on_ranks(2, export_policy, llama, two)
    expected, found = (load_file(folder / "model.safetensors") for folder in (one, two))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-5, rtol=0)
    assert {file.name for file in two.iterdir()} == {file.name for file in one.iterdir()}
    for name in ("config.json", "generation_config.json", "tokenizer.json"):
        assert (two / name).read_text() == (one / name).read_text()
    with no_progress_bars():
        AutoModelForCausalLM.from_pretrained(two)


def test_a_large_export_is_several_files_of_bounded_size(llama: Path, tmp_path: Path) -> None:
    stored = StoredTensors(llama)
    files = WeightFiles(tmp_path, max_bytes=20_000)
    for name, tensor in stored.items():
        files.add(name, tensor)
    files.close()
    shutil.copyfile(llama / "config.json", tmp_path / "config.json")

    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    names = sorted(set(index["weight_map"].values()))
    assert names == [
        f"model-{k:05d}-of-{len(names):05d}.safetensors" for k in range(1, len(names) + 1)
    ]
    assert len(names) > 2
    again = StoredTensors(tmp_path)
    assert again.keys() == stored.keys()
    with no_progress_bars():
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()
    for name, tensor in stored.items():
        torch.testing.assert_close(loaded[name], tensor.float(), atol=0, rtol=0)
        torch.testing.assert_close(again[name], tensor, atol=0, rtol=0)


class Watched(Mapping[str, torch.Tensor]):
    """The tensors of a directory; remembers the most numbers that the module held whole at a read."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], module: PreTrainedModel) -> None:
        self._tensors, self._module = tensors, module
        self.most = 0

    def __getitem__(self, name: str) -> torch.Tensor:
        matrices = {id(p): p for p in self._module.parameters() if p.ndim > 1 and not p.is_meta}
        held = sum(p.numel() for p in matrices.values() if not isinstance(p, DTensor))
        tensor = self._tensors[name]
        self.most = max(self.most, held + (tensor.numel() if tensor.ndim > 1 else 0))
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def fill_by_layer(folder: Path) -> tuple[int, list[torch.Tensor]]:
    """Most numbers that were whole at once, and the rotary frequencies."""
    ranks = join("cpu", timeout_s=60)
    module = empty_causal_lm(folder)
    tensors = Watched(StoredTensors(folder), module)
    shard(
        module,
        ranks.mesh(),
        ShardingConfig(),
        bf16=False,
        device=torch.device("cpu"),
        tensors=tensors,
    )
    assert all(isinstance(p, DTensor) for p in module.parameters() if p.ndim > 1)
    ranks.close()
    return tensors.most, [buffer for _, buffer in module.named_buffers()]


def test_a_model_is_read_a_layer_at_a_time_and_its_frequencies_are_computed(tmp_path: Path) -> None:
    write_random_model(tmp_path, num_hidden_layers=8, tie_word_embeddings=True)
    expected = load_causal_lm(tmp_path)
    layer = sum(p.numel() for p in expected.model.layers[0].parameters() if p.ndim > 1)
    embedding = expected.get_input_embeddings().weight.numel()
    for most, buffers in on_ranks(2, fill_by_layer, tmp_path):
        assert most == max(layer, embedding)
        for found, buffer in zip(buffers, expected.buffers(), strict=True):
            assert torch.equal(found, buffer)
        assert buffers


def fill_what_cannot_be_computed(folder: Path) -> None:
    ranks = join("cpu", timeout_s=60)
    module = empty_causal_lm(folder)
    module.model.norm.register_buffer("table", torch.empty(3, device="meta"), persistent=False)
    shard(
        module,
        ranks.mesh(),
        ShardingConfig(),
        bf16=False,
        device=torch.device("cpu"),
        tensors=StoredTensors(folder),
    )


def test_what_no_file_has_and_nobody_computes_is_refused_and_not_garbage(llama: Path) -> None:
    with pytest.raises(RanksFailed, match=r"'model\.norm\.table' of LlamaRMSNorm is in no file"):
        on_ranks(1, fill_what_cannot_be_computed, llama)


def load_with_a_log(folder: Path, logs: Path) -> None:
    with logging_to(logs / os.environ["RANK"]):
        trainer({"policy": folder}).close()


def test_a_model_that_every_rank_reads_whole_is_told_once(tmp_path: Path) -> None:
    model = write_random_model(tmp_path, tie_word_embeddings=True)
    with no_progress_bars():
        model.model.save_pretrained(tmp_path)  # 'norm.weight', which transformers knows to rename
    on_ranks(2, load_with_a_log, tmp_path, tmp_path)
    logs = [(tmp_path / rank / "log.jsonl").read_text().splitlines() for rank in ("0", "1")]
    told = [json.loads(line) for log in logs for line in log if "reads a whole model" in line]
    assert [(one["role"], one["model"]) for one in told] == [("policy", str(tmp_path))]
    assert "names" in told[0]["why"]
