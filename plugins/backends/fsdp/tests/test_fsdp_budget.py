"""Micro-batches by tokens: no pass is larger than was allowed, and what is computed stays the same."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyrl_fsdp import microbatch
from skyrl_fsdp.budget import fill
from skyrl_fsdp.packing import places
from skyrl_fsdp.trainer import FsdpTrainer
from skyrl_kernel.config.trainer import TrainerConfig
from skyrl_kernel.protocols import Loss
from skyrl_kernel.records import Scores, TrainingSample
from skyrl_kernel.testing.samples import policy_gradient
from skyrl_transformers.testing import write_random_model

atoms = st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=3), min_size=1, max_size=30)


@given(atoms, st.integers(1, 200), st.booleans())
def test_every_atom_is_in_one_pass_and_only_a_lone_one_exceeds_the_budget(
    lengths: list[list[int]], budget: int, packs: bool
) -> None:
    passes = fill(lengths, budget, packs=packs)
    assert sorted(itertools.chain(*passes)) == list(range(len(lengths)))
    for one in passes:
        rows = [length for place in one for length in lengths[place]]
        assert places(rows, packs=packs) <= budget or len(one) == 1


@given(st.lists(st.integers(1, 64), min_size=1, max_size=200))
def test_passes_of_single_rows_are_never_half_empty_but_for_one(lengths: list[int]) -> None:
    passes = fill([[length] for length in lengths], 64, packs=True)
    used = sorted(sum(lengths[place] for place in one) for one in passes)
    assert all(one > 32 for one in used[1:])  # two such would have shared a pass
    assert len(passes) <= 11 / 9 * -(-sum(lengths) // 32) + 1


def test_long_and_short_rows_share_a_pass() -> None:
    assert fill([[100], [3], [90], [7], [60], [40]], 200, packs=True) == [[0, 2, 3, 1], [4, 5]]
    # Counted in rows they would not: the shortest go together.
    assert fill([[100], [3], [90], [7], [60], [40]], 200, packs=False) == [[0, 2], [4, 5, 3], [1]]


def rows() -> Iterator[TrainingSample]:
    """Sixteen of 2 to 60 tokens."""
    rng = np.random.default_rng(0)
    for number, length in enumerate(rng.integers(2, 61, 16).tolist()):
        mask = np.arange(length) >= 1 + number % (length - 1)
        weights = np.where(mask, 1 / length, 0).astype(np.float32)
        yield TrainingSample(
            trajectory_id=f"row/{number}",
            trajectory=number,
            group=number // 4,
            tokens=rng.integers(0, 256, length, dtype=np.int32),
            loss_mask=mask,
            advantages=rng.normal(size=length).astype(np.float32),
            returns=None,
            sampler_logprobs=None,
            scores=Scores(),
            loss_weights={"policy": weights},
        )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_random_model(folder)
    return folder


@pytest.mark.parametrize("packs", [True, False])
@pytest.mark.parametrize("atom", ["trajectory", "group"])
def test_an_update_by_tokens_is_that_by_rows_and_no_pass_is_larger_than_allowed(
    model: Path, packs: bool, atom: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    lay_out = microbatch.lay_out

    def watched(*args: Any, **kwargs: Any) -> Any:
        layout = lay_out(*args, **kwargs)
        sizes.append(layout.ids.numel())
        return layout

    monkeypatch.setattr(microbatch, "lay_out", watched)
    loss = Loss(fn=policy_gradient, atom=atom)
    updates = {}
    for name, bound in {
        "rows": {"micro_train_batch_size_per_gpu": 1},
        "tokens": {"max_tokens_per_microbatch": 240},
    }.items():
        config = {"bf16": False, "remove_microbatch_padding": packs, **bound}
        trainer = FsdpTrainer({"policy": model}, TrainerConfig.model_validate(config), device="cpu")
        sizes.clear()
        result = trainer.update(list(rows()), loss, temperature=1.0)
        updates[name] = result.metrics
    assert 1 < len(sizes) <= (8 if atom == "group" else 5)
    assert max(sizes) <= 240
    for metric in ("final_loss", "grad_norm", "trained_tokens"):
        assert updates["tokens"][metric] == pytest.approx(updates["rows"][metric], rel=1e-5)


def test_scores_by_tokens_are_those_by_rows(model: Path) -> None:
    given_rows = [one.tokens for one in rows()]
    scores = []
    for bound in ({"micro_forward_batch_size_per_gpu": 1}, {"max_tokens_per_microbatch": 100}):
        config = TrainerConfig.model_validate({"bf16": False, **bound})
        trainer = FsdpTrainer({"policy": model}, config, device="cpu")
        seen: list[int] = []
        trainer.module().register_forward_pre_hook(
            lambda module, args, kwargs, seen=seen: seen.append(kwargs["input_ids"].numel()),
            with_kwargs=True,
        )
        scores.append(trainer.score("policy", given_rows, temperature=1.0))
    assert max(seen) <= 100
    assert len(seen) < 16
    for one, other in zip(*scores, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
