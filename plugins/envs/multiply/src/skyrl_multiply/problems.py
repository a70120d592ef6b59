r"""Multiplication problems from a seed, with training and held-out pairs that never meet.

Which side a pair belongs to depends on the pair alone: a hash puts it in one of
ten buckets, and two of these are held out. So no choice of seed, size or digits
can train on a held-out problem, nor on one with its factors swapped.
"""

import hashlib
import random
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from skyrl_kernel.errors import DataError, UsageError
from skyrl_multiply.config import ProblemOptions

if TYPE_CHECKING:
    import pyarrow as pa

Pair = tuple[int, int]

SYSTEM_PROMPT = r"Solve the multiplication step by step. Put the final answer in \boxed{answer}."
DATA_SOURCE = "synthetic_multiply"
SPLITS = ("train", "validation")

_NUM_BUCKETS = 10
_HELD_OUT_BUCKETS = frozenset({0, 1})


def bucket(a: int, b: int) -> int:
    """Bucket of the pair, 0 to 9; the order of the factors does not matter.

    Example:
        >>> bucket(12, 34) == bucket(34, 12)
        True
    """
    text = f"{min(a, b)}*{max(a, b)}"
    return int(hashlib.sha256(text.encode()).hexdigest(), 16) % _NUM_BUCKETS


def is_held_out(a: int, b: int) -> bool:
    """True if the pair may be evaluated on, and so never trained on: about a fifth of all."""
    return bucket(a, b) in _HELD_OUT_BUCKETS


def messages(a: int, b: int) -> list[dict[str, str]]:
    """The prompt of one problem, as every row has it."""
    return [
        {"role": "system", "content": SYSTEM_PROMPT},
        {"role": "user", "content": f"{a} * {b}"},
    ]


def draw_pairs(options: ProblemOptions, split: str) -> list[Pair]:
    """The factors of each row of a split, in order.

    Held-out pairs are distinct. Training pairs are distinct while there are
    any; then all of them follow again in another order.

    Raises:
        UsageError: There are fewer held-out pairs than ``test_size``, or no
            training pair at all.
    """
    held_out = split == "validation"
    size = options.test_size if held_out else options.train_size
    rng = random.Random(f"{options.seed}/{split}")
    pairs: list[Pair] = []
    while len(pairs) < size:
        shuffled = _shuffled_pairs(options.digits, rng)
        side = (pair for pair in shuffled if is_held_out(*pair) == held_out)
        fresh = list(islice(side, size - len(pairs)))
        if not fresh or (held_out and len(fresh) < size):
            option, what = ("test_size", "held-out") if held_out else ("train_size", "training")
            raise UsageError(
                f"{option}={size} asks for {size} distinct {what} problems, but with "
                f"num_digits={options.num_digits} there are {len(fresh)}: lower {option} or "
                "raise num_digits"
            )
        pairs += fresh
    return pairs


def make_table(options: ProblemOptions, split: str) -> "pa.Table":
    """The rows of a split, in SkyRL's columns.

    Raises:
        DataError: There is no such split.
        UsageError: See `draw_pairs`.
    """
    import pyarrow as pa

    if split not in SPLITS:
        raise DataError(
            f"data 'multiply:{split}': no such split; "
            f"there are {' and '.join(f'multiply:{name}' for name in SPLITS)}"
        )
    rows = [_row(a, b, options, split) for a, b in draw_pairs(options, split)]
    return pa.Table.from_pylist(rows)


def _row(a: int, b: int, options: ProblemOptions, split: str) -> dict[str, Any]:
    digits = options.num_digits
    return {
        "data_source": DATA_SOURCE,
        "prompt": messages(a, b),
        "env_class": "multiply",
        "reward_spec": {"method": "rule", "ground_truth": str(a * b)},
        "extra_info": {
            "num_digits": int(digits) if digits.isdecimal() else digits,
            "split": "train" if split == "train" else "test",
        },
    }


def _shuffled_pairs(digits: Pair, rng: random.Random) -> Iterator[Pair]:
    """Every pair of factors with these numbers of digits once, in random order.

    Fisher and Yates' shuffle of the pairs' numbers, which remembers only the
    numbers that it moved: taking k of N pairs costs O(k), however large N is.
    """
    low_a, low_b = (10 ** (d - 1) for d in digits)
    count_a, count_b = 9 * low_a, 9 * low_b
    moved: dict[int, int] = {}
    for place in range(count_a * count_b):
        other = rng.randrange(place, count_a * count_b)
        number = moved.get(other, other)
        moved[other] = moved.pop(place, place)
        yield low_a + number // count_b, low_b + number % count_b
