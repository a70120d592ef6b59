"""Dr. GRPO by its name alone."""

import numpy as np
import pytest

from skyrl_grpo.advantage import advantage
from skyrl_kernel.config import AlgorithmConfig
from skyrl_kernel.plan import make_plan


def test_the_name_sets_the_paper_s_advantage_and_reduction() -> None:
    plan = make_plan(["demo", "dr_grpo"])
    algorithm = plan.tree.trainer.algorithm
    assert not algorithm.grpo_norm_by_std
    assert not algorithm.use_kl_loss
    name = algorithm.loss_reduction
    reduction = plan.manager.make("make_reduction", name, name=name, settings=plan.config)
    # two answers of 2 and 1 tokens; the demo's budget is 48 tokens
    masks = [np.array([True, True]), np.array([True])]
    weights = np.concatenate(reduction(masks, [0, 1], [0, 0]))
    assert weights.tolist() == pytest.approx([1 / (2 * 48)] * 3)


def test_it_is_a_preset_and_no_estimator_of_its_own() -> None:
    assert advantage("dr_grpo", {AlgorithmConfig: AlgorithmConfig()}) is None
