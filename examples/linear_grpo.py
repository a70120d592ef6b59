"""GRPO in one file, from top to bottom: prompt → sample → reward → advantage → loss → step.

`python examples/linear_grpo.py` trains the built-in tiny model to multiply three digits by one with
the settings of the preset `demo`, and only PyTorch and transformers in between: no hooks, no
engine, no checkpoints, one turn per problem. It gives the numbers of `skyrl run --plugin demo`,
to which tests/test_linear_grpo.py holds it.

Shapes: P prompts of a step, G samples of each (a group), B = P·G rows, T tokens of a completion.
Shao et al. 2024, DeepSeekMath, arXiv:2402.03300; the loss is averaged over tokens, as in DAPO.
"""

import argparse
import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers import PreTrainedModel as Model
from transformers import PreTrainedTokenizerBase as Tokenizer

from skyrl_multiply.config import ProblemOptions
from skyrl_multiply.env import parse_answer
from skyrl_multiply.problems import Pair, draw_pairs, messages
from skyrl_tiny.plugin import tiny

PROBLEMS = ProblemOptions(num_digits="3x1", train_size=960, test_size=512)
PROMPTS = 32  # of a step
UPDATES = 2  # optimizer steps of a step, each on its share of the prompts
SAMPLES = 8  # completions of each prompt
MAX_TOKENS = 48  # of a completion
CLIP = 0.2
RATE, WARMUP_UPDATES, LAST_RATE = 5e-4, 6, 0.3  # the last as a fraction of the first
BETAS, MAX_GRAD_NORM = (0.9, 0.99), 1.0


# --- prompt -------------------------------------------------------------------------------
def encode(tokenizer: Tokenizer, pairs: list[Pair]) -> Tensor:
    """[B, …] ids of the prompts, which have one length because the problems have one."""
    chats = [messages(a, b) for a, b in pairs]
    ids = tokenizer.apply_chat_template(chats, add_generation_prompt=True, return_dict=False)
    return torch.tensor(ids)


# --- sample -------------------------------------------------------------------------------
def make_seed(*key: int | str) -> int:
    """A seed that every part of the key decides, and nothing else: no order of calls."""
    text = "\x1f".join(map(str, key)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def uniform(seeds: np.ndarray, place: int) -> Tensor:
    """[B] numbers in [0, 1), functions of a row's seed and a token's place (SplitMix64)."""

    def mix(bits: np.ndarray) -> np.ndarray:
        bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return bits ^ (bits >> np.uint64(31))

    step = np.full_like(seeds, 0x9E3779B97F4A7C15)
    bits = mix(mix(seeds + step) + np.uint64(place + 1) * step)
    return torch.from_numpy((bits >> np.uint64(14)).astype(np.float64) * 2.0**-50)


@torch.no_grad()
def complete(
    model: Model, prompts: Tensor, eos: int, seeds: np.ndarray | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Continue each prompt up to its end-of-turn token; without seeds, by the likeliest token.

    Returns [B, T] ids, [B, T] their log-probs in nats, and [B, T] bool, False after the end.
    """
    columns = []
    live = torch.ones(len(prompts), dtype=torch.bool)
    out = model(input_ids=prompts, use_cache=True, logits_to_keep=1)
    for count in range(MAX_TOKENS):
        probs = out.logits[:, -1].softmax(-1)
        if seeds is None:
            ids = probs.argmax(-1)
        else:  # one uniform number a row, through the inverse of the cumulative distribution
            cumulative = probs.cumsum(-1, dtype=torch.float64)
            drawn = uniform(seeds, prompts.shape[1] + count)[:, None] * cumulative[:, -1:]
            ids = torch.searchsorted(cumulative, drawn, right=True).squeeze(-1)
        columns.append((ids, probs.gather(-1, ids[:, None]).squeeze(-1).log(), live))
        live = live & (ids != eos)
        if not live.any():
            break
        out = model(input_ids=ids[:, None], past_key_values=out.past_key_values, use_cache=True)
    return tuple(torch.stack(column, dim=1) for column in zip(*columns, strict=True))


# --- reward -------------------------------------------------------------------------------
def judge(tokenizer: Tokenizer, ids: Tensor, mask: Tensor, pairs: list[Pair]) -> Tensor:
    r"""[B] 1 where the first ``\boxed{…}`` holds the product, else 0."""
    rewards = []
    for row, keep, (a, b) in zip(ids, mask, pairs, strict=True):
        text = tokenizer.decode(row[keep], skip_special_tokens=True)
        rewards.append(float(parse_answer(text) == str(a * b)))
    return torch.tensor(rewards)


# --- advantage ----------------------------------------------------------------------------
def group_advantages(rewards: Tensor) -> Tensor:
    """[P, G] how far above its group's mean each reward is, in standard deviations (n - 1)."""
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    return centred / (rewards.std(dim=1, keepdim=True) + 1e-6)


# --- loss ---------------------------------------------------------------------------------
def grpo_loss(
    model: Model, prompts: Tensor, ids: Tensor, old: Tensor, mask: Tensor, gain: Tensor
) -> Tensor:
    """Minus the clipped surrogate, averaged over the sampled tokens; ``gain`` is [B, 1] advantages.

    What stands after a completion's end is padding, and a causal model does not look right.
    """
    length = int(mask.sum(dim=1).max())
    ids, old, mask = ids[:, :length], old[:, :length], mask[:, :length]
    rows = torch.cat([prompts, ids[:, :-1]], dim=1)  # the last token predicts nothing
    logits = model(input_ids=rows, use_cache=False, logits_to_keep=length).logits
    logprobs = logits.log_softmax(-1).gather(-1, ids[..., None]).squeeze(-1)
    ratio = (logprobs - old).exp()
    surrogate = torch.minimum(ratio * gain, ratio.clamp(1 - CLIP, 1 + CLIP) * gain)
    return -surrogate[mask].mean()


# --- step ---------------------------------------------------------------------------------
def rate(update: int, total: int) -> float:
    """Learning rate: up to its peak over the first updates, then down in a line."""
    if update < WARMUP_UPDATES:
        return RATE * (update + 1) / WARMUP_UPDATES
    passed = (update - WARMUP_UPDATES) / max(1, total - WARMUP_UPDATES)
    return RATE * (1 - (1 - LAST_RATE) * passed)


def train(
    model: Model, tokenizer: Tokenizer, optimizer: Optimizer, steps: int, seed: int
) -> Iterator[dict[str, Any]]:
    """The whole algorithm. Yields what each step did, for whoever looks at it."""
    pairs = draw_pairs(PROBLEMS, "train")
    order = np.random.default_rng([seed, 0]).permutation(len(pairs))
    for step in range(steps):
        groups = range(step * PROMPTS, (step + 1) * PROMPTS)
        asked = [pairs[order[group]] for group in groups for _ in range(SAMPLES)]
        keys = [make_seed(seed, "train", group, n) for group in groups for n in range(SAMPLES)]
        seeds = np.array([make_seed(key, 0) for key in keys], dtype=np.uint64)  # 0: first turn

        prompts = encode(tokenizer, asked)
        ids, logprobs, mask = complete(model, prompts, tokenizer.eos_token_id, seeds)
        rewards = judge(tokenizer, ids, mask, asked)
        advantages = group_advantages(rewards.view(PROMPTS, SAMPLES)).view(-1, 1)

        losses, grad_norms = [], []
        parts = (x.chunk(UPDATES) for x in (prompts, ids, logprobs, mask, advantages))
        for number, part in enumerate(zip(*parts, strict=True)):
            loss = grpo_loss(model, *part)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
            for group in optimizer.param_groups:
                group["lr"] = rate(step * UPDATES + number, steps * UPDATES)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            grad_norms.append(norm.item())
        yield {
            "prompts": prompts, "ids": ids, "logprobs": logprobs, "mask": mask, "rewards": rewards,
            "advantages": advantages, "losses": losses, "grad_norms": grad_norms,
        }  # fmt: skip


def accuracy(model: Model, tokenizer: Tokenizer) -> float:
    """Share of held-out problems that the likeliest answer solves."""
    pairs = draw_pairs(PROBLEMS, "validation")
    ids, _, mask = complete(model, encode(tokenizer, pairs), tokenizer.eos_token_id, None)
    return judge(tokenizer, ids, mask, pairs).mean().item()


def load() -> tuple[Model, Tokenizer, Optimizer]:
    """The tiny model, which is made on first use, its tokenizer, and an optimizer for it."""
    folder = tiny(seed=0)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    optimizer = AdamW(model.parameters(), betas=BETAS, weight_decay=0.0, fused=True)
    return model, AutoTokenizer.from_pretrained(folder), optimizer


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=30, choices=range(1, 31), metavar="1…30")
    parser.add_argument("--seed", type=int, default=42, help="of the order and the samples")
    options = parser.parse_args()
    torch.set_num_threads(1)  # on a model this small, threads only wait for each other
    model, tokenizer, optimizer = load()
    print(f"before:  held-out accuracy {accuracy(model, tokenizer):.3f}")
    for number, done in enumerate(train(model, tokenizer, optimizer, options.steps, options.seed)):
        print(f"step {number + 1:2d}: reward {done['rewards'].mean():.3f}", flush=True)
    print(f"after:   held-out accuracy {accuracy(model, tokenizer):.3f}")
