"""The plugin path against the same mathematics written down once more, in plain torch.

A recorded batch of judged trajectories goes through the stages that a run resolves and through
the trainer; beside it stands a loop over rows that uses Hugging Face's logits, autograd and
AdamW's formula, and nothing of this project. Loss, gradient norm and weights must agree.
"""

import asyncio
import json
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from skyrl_fsdp.trainer import FsdpTrainer
from skyrl_kernel.batch import Scorer, credit, training_samples
from skyrl_kernel.plan import make_plan
from skyrl_kernel.records import (
    Group,
    Prompt,
    Reward,
    Segment,
    StopReason,
    Trajectory,
    UpdateResult,
)
from skyrl_sft.config import SftConfig
from skyrl_sft.plugin import Reader
from skyrl_transformers.loading import no_progress_bars
from skyrl_transformers.testing import write_random_model
from skyrl_transformers.tokenizer import HuggingFaceTokenizer

LEARNING_RATE = 3e-5
"""AdamW moves a weight whose gradient is mere rounding by a random part of this."""
BETAS = (0.9, 0.99)
WEIGHT_DECAY = 0.01
MAX_GRAD_NORM = 0.5

BASE = {
    "data.val_data": [],
    "trainer.bf16": False,
    "trainer.gradient_checkpointing": False,
    "trainer.micro_train_batch_size_per_gpu": 5,
    "trainer.micro_forward_batch_size_per_gpu": 4,
    "trainer.policy.optimizer_config.lr": LEARNING_RATE,
    "trainer.policy.optimizer_config.adam_betas": list(BETAS),
    "trainer.policy.optimizer_config.weight_decay": WEIGHT_DECAY,
    "trainer.policy.optimizer_config.max_grad_norm": MAX_GRAD_NORM,
    "trainer.fsdp.device": "cpu",
}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy")
    write_random_model(folder, tie_word_embeddings=True, initializer_range=0.1)
    return folder


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reference")
    write_random_model(folder, seed=1, tie_word_embeddings=True, initializer_range=0.1)
    return folder


def load(path: Path) -> torch.nn.Module:
    with no_progress_bars():
        return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


# --- the recorded batch -----------------------------------------------------------------


def row_logprobs(model: torch.nn.Module, tokens: np.ndarray, temperature: float) -> torch.Tensor:
    """[T - 1, V] log-probs of what may stand at places 1 to T - 1."""
    ids = torch.from_numpy(tokens.astype(np.int64))[None]
    return (model(input_ids=ids).logits[0, :-1] / temperature).log_softmax(-1)


def chosen(logprobs: torch.Tensor, tokens: np.ndarray) -> torch.Tensor:
    """[T - 1] of the tokens that stand there."""
    return logprobs.gather(-1, torch.from_numpy(tokens[1:].astype(np.int64))[:, None])[:, 0]


@torch.no_grad()
def record(path: Path, rewards: Sequence[Sequence[float]], temperature: float) -> list[Group]:
    """Groups with these rewards; the sampler was a policy some nats away, so that ratios clip."""
    model = load(path)
    rng = np.random.default_rng(7)
    groups = []
    for index, totals in enumerate(rewards):
        prompt = Prompt(uid=f"0:{index}", messages=[], env_class="none")
        start = int(rng.integers(2, 6))
        trajectories = []
        for sample, total in enumerate(totals):
            length = start + int(rng.integers(2, 9))
            tokens = rng.integers(0, 256, length).astype(np.int32)
            mask = np.arange(length) >= start
            if length > start + 3:
                mask[start + 1 : start + 3] = False  # an env spoke here
            now = chosen(row_logprobs(model, tokens, temperature), tokens).numpy()
            away = rng.normal(0, 0.4, length)
            sampled = np.minimum(np.concatenate([[0], now]) + away, 0) * mask
            segment = Segment(
                tokens=tokens,
                num_prompt_tokens=start,
                loss_mask=mask,
                logprobs=sampled.astype(np.float32),
                versions=np.where(mask, 0, -1).astype(np.int32),
            )
            trajectories.append(
                Trajectory(
                    prompt=prompt,
                    sample=sample,
                    segments=(segment,),
                    turns=(),
                    stop_reason=StopReason.STOP,
                    reward=Reward(turns=(total,)),
                )
            )
        groups.append(Group(index=index, prompt=prompt, trajectories=tuple(trajectories)))
    return groups


REWARDS = [[1.0, 0.0, 0.0, 0.5], [0.0, 0.0, 1.0], [1.0, 1.0], [2.0]]
"""Four groups, one of which learns nothing, and one of a single trajectory."""


# --- the plugin path --------------------------------------------------------------------


class PluginPath:
    """What a run makes of its command line, as far as a step needs it."""

    def __init__(self, policy: Path, reference: Path, *plugins: str, **changes: object) -> None:
        values = BASE | {"trainer.policy.model.path": str(policy)}
        values |= {key.replace("__", "."): value for key, value in changes.items()}
        self.plan = make_plan(
            [*plugins, "fsdp"], overrides=[f"{k}={json.dumps(v)}" for k, v in values.items()]
        )
        self.advantage = self.plan.stages["advantage"].value
        self.loss = self.plan.stages["loss"].value
        self.needs = frozenset(self.advantage.needs | self.loss.needs)
        name = self.plan.tree.trainer.algorithm.loss_reduction
        self.reduction = self.plan.manager.make(
            "make_reduction", name, name=name, settings=self.plan.config
        )
        models = {"policy": policy}
        if "ref_logprobs" in self.needs:
            models["reference"] = reference
        self.trainer = FsdpTrainer(models, self.plan.tree.trainer, device="cpu")

    def step(
        self,
        groups: Sequence[Group],
        mini_batch_size: int,
        temperature: float,
        masked: Collection[int] = (),
    ) -> list[UpdateResult]:
        """Score, credit and update, as `skyrl_kernel.loop` does."""
        scorer = Scorer(
            trainer=self.trainer, needs=self.needs, recompute_old=False, temperature=temperature
        )
        credited = credit(self.advantage, scorer(groups), masked)
        return [
            self.trainer.update(
                training_samples(
                    credited[start : start + mini_batch_size],
                    self.reduction,
                    self.loss.coefficients,
                ),
                self.loss,
                temperature=temperature,
            )
            for start in range(0, len(credited), mini_batch_size)
        ]

    def gradients(self) -> dict[str, torch.Tensor]:
        """Of the only update, after clipping: AdamW's first moments hold (1 - β) of them."""
        names = {id(p): name for name, p in self.trainer.module().named_parameters()}
        return {
            names[id(p)]: state["exp_avg"] / (1 - BETAS[0])
            for optimizer in self.trainer._optimizers
            for p, state in optimizer.state.items()
        }


# --- the same once more -----------------------------------------------------------------


def advantages_of(rewards: list[float], normalize_std: bool) -> list[float]:
    if len(rewards) == 1:
        mean, std = 0.0, 1.0
    else:
        mean = sum(rewards) / len(rewards)
        std = math.sqrt(sum((r - mean) ** 2 for r in rewards) / (len(rewards) - 1))
    return [(r - mean) / (std + 1e-6 if normalize_std else 1.0) for r in rewards]


@dataclass
class Adam:
    """Loshchilov and Hutter 2019, arXiv:1711.05101, algorithm 2."""

    parameters: list[torch.nn.Parameter]
    count: int = 0

    def __post_init__(self) -> None:
        self.first = [torch.zeros_like(p) for p in self.parameters]
        self.second = [torch.zeros_like(p) for p in self.parameters]

    @torch.no_grad()
    def step(self) -> float:
        """Clip, move, forget the gradients; returns their norm."""
        self.count += 1
        norm = math.sqrt(sum(float((p.grad.double() ** 2).sum()) for p in self.parameters))
        scale = min(1.0, MAX_GRAD_NORM / (norm + 1e-6))
        for p, m, v in zip(self.parameters, self.first, self.second, strict=True):
            g = p.grad * scale
            m.mul_(BETAS[0]).add_(g, alpha=1 - BETAS[0])
            v.mul_(BETAS[1]).add_(g**2, alpha=1 - BETAS[1])
            unbiased = m / (1 - BETAS[0] ** self.count)
            spread = (v / (1 - BETAS[1] ** self.count)).sqrt() + 1e-8
            p.mul_(1 - LEARNING_RATE * WEIGHT_DECAY).sub_(LEARNING_RATE * unbiased / spread)
            p.grad = None
        return norm


@dataclass
class Plain:
    """GRPO, row by row."""

    policy: torch.nn.Module
    reference: torch.nn.Module
    kl_coef: float
    entropy_coef: float
    normalize_std: bool

    def step(
        self, groups: Sequence[Group], mini_batch_size: int, temperature: float
    ) -> list[tuple[float, float]]:
        """Loss and gradient norm of each optimizer step."""
        adam = Adam(list(self.policy.parameters()))
        results = []
        for start in range(0, len(groups), mini_batch_size):
            loss = self.loss(groups[start : start + mini_batch_size], temperature)
            loss.backward()
            results.append((loss.item(), adam.step()))
        return results

    def loss(self, groups: Sequence[Group], temperature: float) -> torch.Tensor:
        rows = [
            (trajectory.segments[0], advantage)
            for group in groups
            for trajectory, advantage in zip(
                group.trajectories,
                advantages_of([t.reward.total for t in group.trajectories], self.normalize_std),
                strict=True,
            )
        ]
        num_tokens = sum(segment.loss_mask.sum() for segment, _ in rows)
        total = torch.zeros(())
        for segment, advantage in rows:
            mask = torch.from_numpy(segment.loss_mask[1:])
            every = row_logprobs(self.policy, segment.tokens, temperature)
            now = chosen(every, segment.tokens)
            old = torch.from_numpy(segment.logprobs[1:])
            with torch.no_grad():
                ref = chosen(
                    row_logprobs(self.reference, segment.tokens, temperature), segment.tokens
                )
            ratio = torch.exp(now - old)
            clipped = torch.clamp(ratio, 0.8, 1.2)
            policy = -torch.minimum(ratio * advantage, clipped * advantage)
            kl = torch.exp(ref - now) - (ref - now) - 1
            entropy = -(every.exp() * every).sum(-1)
            total = total + policy[mask].sum() / num_tokens
            total = total + self.kl_coef * kl[mask].mean() / len(rows)
            total = total - self.entropy_coef * entropy[mask].mean() / len(rows)
        return total


@pytest.mark.parametrize(
    ("temperature", "kl_coef", "entropy_coef", "normalize_std"),
    [(1.0, 0.001, 0.0, True), (0.7, 0.1, 0.0, True), (1.3, 0.05, 0.02, False)],
)
def test_a_whole_grpo_step_equals_the_plain_one(
    policy: Path,
    reference: Path,
    temperature: float,
    kl_coef: float,
    entropy_coef: float,
    normalize_std: bool,
) -> None:
    """Four groups, two mini-batches of two, so that the second one is off-policy by an update."""
    groups = record(policy, REWARDS, temperature)
    path = PluginPath(
        policy,
        reference,
        "grpo",
        trainer__algorithm__kl_loss_coef=kl_coef,
        trainer__algorithm__use_entropy_loss=entropy_coef > 0,
        trainer__algorithm__entropy_loss_coef=entropy_coef,
        trainer__algorithm__grpo_norm_by_std=normalize_std,
    )
    plain = Plain(load(policy), load(reference), kl_coef, entropy_coef, normalize_std)

    results = path.step(groups, 2, temperature)
    expected = plain.step(groups, 2, temperature)

    for result, (loss, norm) in zip(results, expected, strict=True):
        assert result.metrics["final_loss"] == pytest.approx(loss, abs=1e-6)
        assert result.metrics["grad_norm"] == pytest.approx(norm, rel=1e-5)
        assert result.weights_changed
    clipped = [result.metrics["loss_metrics/clip_ratio"] for result in results]
    assert all(0 < fraction < 1 for fraction in clipped)  # the batch tests the clip
    got, start = path.trainer.module().state_dict(), load(policy).state_dict()
    for name, parameter in plain.policy.state_dict().items():
        torch.testing.assert_close(got[name], parameter, atol=1e-6, rtol=0)
    moved = max(float((got[name] - start[name]).abs().max()) for name in start)
    assert moved > 1.5 * LEARNING_RATE  # two steps of about the learning rate each


# --- what must not change a gradient ------------------------------------------------------

some_rewards = st.lists(
    st.lists(st.sampled_from([0.0, 0.25, 1.0, 3.0]), min_size=1, max_size=4),
    min_size=1,
    max_size=3,
)
few = settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def gradient_of(
    policy: Path,
    reference: Path,
    groups: Sequence[Group],
    masked: Collection[int] = (),
    **changes: object,
) -> dict[str, torch.Tensor]:
    """Of one mini-batch, unclipped, with every term of the objective at work."""
    changes = {
        "trainer__policy__optimizer_config__max_grad_norm": 1e9,
        "trainer__algorithm__kl_loss_coef": 0.1,
        "trainer__algorithm__use_entropy_loss": True,
        **changes,
    }
    path = PluginPath(policy, reference, "grpo", **changes)
    path.step(groups, len(groups), 1.0, masked)
    return path.gradients()


def assert_same(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert got.keys() == expected.keys()
    scale = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, atol=2e-6 * scale + 1e-9, rtol=1e-4)


POLICY_ONLY = {
    "trainer__algorithm__use_kl_loss": False,
    "trainer__algorithm__use_entropy_loss": False,
}


@few
@given(some_rewards, st.integers(1, 6))
def test_the_split_into_micro_batches_does_not_matter(
    policy: Path, reference: Path, rewards: list[list[float]], size: int
) -> None:
    groups = record(policy, rewards, 1.0)
    whole = gradient_of(policy, reference, groups, trainer__micro_train_batch_size_per_gpu=64)
    split = gradient_of(policy, reference, groups, trainer__micro_train_batch_size_per_gpu=size)
    assert_same(split, whole)


@few
@given(some_rewards, st.randoms(use_true_random=False))
def test_the_order_of_groups_and_trajectories_does_not_matter(
    policy: Path, reference: Path, rewards: list[list[float]], rng
) -> None:
    groups = record(policy, rewards, 1.0)
    shuffled = [
        replace(group, trajectories=tuple(rng.sample(group.trajectories, len(group.trajectories))))
        for group in rng.sample(groups, len(groups))
    ]
    assert_same(gradient_of(policy, reference, shuffled), gradient_of(policy, reference, groups))


@few
@given(some_rewards, st.sampled_from([-2.0, 0.5, 10.0]))
def test_a_reward_that_a_whole_group_gets_does_not_matter(
    policy: Path, reference: Path, rewards: list[list[float]], shift: float
) -> None:
    rewards = [[*group, 0.0] for group in rewards]  # two at least: a single one is its own measure
    shifted = [[reward + shift for reward in group] for group in rewards]
    assert_same(
        gradient_of(policy, reference, record(policy, shifted, 1.0)),
        gradient_of(policy, reference, record(policy, rewards, 1.0)),
    )


def test_equal_rewards_have_no_policy_gradient(policy: Path, reference: Path) -> None:
    groups = record(policy, [[1.0, 1.0, 1.0], [0.3, 0.3]], 1.0)
    gradients = gradient_of(policy, reference, groups, **POLICY_ONLY)
    assert all(not gradient.any() for gradient in gradients.values())


def test_a_single_trajectory_is_reinforced_by_its_reward(policy: Path, reference: Path) -> None:
    """Twice the reward of a group of one is twice the gradient."""
    one, two = (
        gradient_of(policy, reference, record(policy, [[reward]], 1.0), **POLICY_ONLY)
        for reward in (1.0, 2.0)
    )
    assert_same(two, {name: 2 * gradient for name, gradient in one.items()})


def test_what_stands_at_masked_places_has_no_influence(policy: Path, reference: Path) -> None:
    groups = record(policy, REWARDS, 1.0)

    def spoil(trajectory: Trajectory) -> Trajectory:
        (segment,) = trajectory.segments
        logprobs = np.where(segment.loss_mask, segment.logprobs, np.float32("nan"))
        return replace(trajectory, segments=(replace(segment, logprobs=logprobs),))

    spoiled = [
        replace(group, trajectories=tuple(map(spoil, group.trajectories))) for group in groups
    ]
    got, expected = (gradient_of(policy, reference, one) for one in (spoiled, groups))
    assert all(torch.equal(got[name], expected[name]) for name in expected)


def test_a_masked_group_trains_on_nothing(policy: Path, reference: Path) -> None:
    """Token mean over the others, as if it were not there."""
    groups = record(policy, REWARDS, 1.0)
    assert_same(
        gradient_of(policy, reference, groups, masked=[1, 3], **POLICY_ONLY),
        gradient_of(policy, reference, [groups[0], groups[2]], **POLICY_ONLY),
    )


def test_where_the_policy_sampled_itself_the_gradient_is_reinforce(
    policy: Path, reference: Path
) -> None:
    """At ratio 1: the gradient of -A log p, averaged over tokens."""
    model = load(policy)
    groups = record(policy, REWARDS, 1.0)

    def on_policy(trajectory: Trajectory) -> Trajectory:
        (segment,) = trajectory.segments
        with torch.no_grad():
            now = chosen(row_logprobs(model, segment.tokens, 1.0), segment.tokens).numpy()
        logprobs = np.concatenate([[0], now]).astype(np.float32)
        return replace(trajectory, segments=(replace(segment, logprobs=logprobs),))

    groups = [
        replace(group, trajectories=tuple(map(on_policy, group.trajectories))) for group in groups
    ]
    got = gradient_of(policy, reference, groups, **POLICY_ONLY)
    num_tokens = sum(int(t.segments[0].loss_mask.sum()) for g in groups for t in g.trajectories)
    for group in groups:
        credits = advantages_of([t.reward.total for t in group.trajectories], True)
        for trajectory, advantage in zip(group.trajectories, credits, strict=True):
            (segment,) = trajectory.segments
            now = chosen(row_logprobs(model, segment.tokens, 1.0), segment.tokens)
            mask = torch.from_numpy(segment.loss_mask[1:])
            (-advantage * now[mask].sum() / num_tokens).backward()
    assert_same(got, {name: p.grad for name, p in model.named_parameters()})


# --- supervised fine-tuning ---------------------------------------------------------------


def test_sft_computes_hugging_face_s_own_loss_on_labels(policy: Path, reference: Path) -> None:
    """The same rows, padded, with -100 for what is not trained on: a token mean in both."""
    tokenizer = HuggingFaceTokenizer(policy)
    texts = [("2 * 3", "6"), ("7 * 8 = ?", "I think it is 56."), ("Hi", "")]

    async def read(number: int, question: str, answer: str) -> Group:
        prompt = Prompt(
            uid=f"0:{number}",
            messages=[{"role": "user", "content": question}],
            env_class="none",
            extras={"response": answer},
        )
        context = SimpleNamespace(tokenizer=tokenizer, sample=0)
        trajectory = replace(await Reader(SftConfig())(prompt, context), reward=Reward(turns=()))
        return Group(index=number, prompt=prompt, trajectories=(trajectory,))

    groups = [asyncio.run(read(i, *text)) for i, text in enumerate(texts)]
    path = PluginPath(
        policy,
        reference,
        "sft",
        trainer__policy__optimizer_config__max_grad_norm=1e9,
        trainer__micro_train_batch_size_per_gpu=2,
    )
    (result,) = path.step(groups, 3, 1.0)

    model = load(policy)
    segments = [group.trajectories[0].segments[0] for group in groups]
    width = max(len(segment.tokens) for segment in segments)
    ids = torch.zeros(3, width, dtype=torch.int64)
    labels = torch.full((3, width), -100)
    attention = torch.zeros(3, width, dtype=torch.int64)
    for row, segment in enumerate(segments):
        tokens = torch.from_numpy(segment.tokens.astype(np.int64))
        ids[row, : len(tokens)] = tokens
        attention[row, : len(tokens)] = 1
        mask = torch.from_numpy(segment.loss_mask)
        labels[row, : len(tokens)][mask] = tokens[mask]
    loss = model(input_ids=ids, attention_mask=attention, labels=labels).loss
    loss.backward()

    assert result.metrics["final_loss"] == pytest.approx(loss.item(), abs=1e-6)
    assert result.metrics["policy_loss"] == pytest.approx(loss.item(), abs=1e-6)
    assert_same(path.gradients(), {name: p.grad for name, p in model.named_parameters()})
