r"""The unreliable teacher whose worked examples the tiny model learns from.

It multiplies as taught in school, one digit after the other with a carry, and
never slips in the procedure. But it has 20 of the 36 products x·y (2 ≤ x ≤ y ≤ 9)
wrong: for these it writes one particular wrong product, ten too many or too few,
in 6 of 10 cases. The mistake goes honestly through the carry into the answer.

A model that imitates it well is right wherever no wrong fact is needed, and in
its most likely answer nowhere else; the right facts are in it as the less likely
choice, where a reward can find them.

That is the teacher of ``builtin:tiny``. The one of ``builtin:tiny-retry`` writes
its wrong products nearly always. But told that an answer is wrong, it sometimes
looks every product up and gets it right; mostly it insists and writes the same
once more. So a model that imitates it well is seldom right at first where a wrong
fact is needed, and seldom listens; a reward for what is right in the end can make
it listen.
"""

import random
from collections.abc import Iterator

from skyrl_multiply.problems import is_held_out

NUM_WRONG_FACTS = 20
"""Of 36. Enough that a perfect imitator's most likely answer is right on a third of the problems."""
WRONG_FRAC = 0.6
"""How often the teacher writes the wrong product of such a fact: more than half, so that the most
likely answer is wrong; less than all, so that samples are sometimes right."""

Pair = tuple[int, int]


class Teacher:
    """Writes worked examples.

    Args:
        seed: Decides which facts are wrong, and how.
        num_wrong: Wrong facts, 0 to 36.
        wrong_frac: How often a wrong fact comes out wrong, 0 to 1.
    """

    def __init__(
        self, seed: int, num_wrong: int = NUM_WRONG_FACTS, wrong_frac: float = WRONG_FRAC
    ) -> None:
        rng = random.Random(f"teacher {seed}")
        facts = [(x, y) for x in range(2, 10) for y in range(x, 10)]
        self._wrong_frac = wrong_frac
        self.wrong: dict[Pair, int] = {}
        for x, y in rng.sample(facts, num_wrong):
            # Off by ten: one token decides, so the two products never get mixed up.
            options = [off for off in (-10, 10) if 0 < x * y + off <= 90]
            self.wrong[x, y] = x * y + rng.choice(options)

    def product(self, x: int, y: int, rng: random.Random) -> int:
        """What the teacher says x·y is, this time."""
        fact = (min(x, y), max(x, y))
        if fact in self.wrong and rng.random() < self._wrong_frac:
            return self.wrong[fact]
        return x * y

    def work_out(self, a: int, b: int, rng: random.Random) -> str:
        r"""A worked example of a·b, b a single digit.

        Example:
            >>> print(Teacher(0, num_wrong=0).work_out(272, 5, random.Random(0)))
            2*5=10
            7*5+1=36
            2*5+3=13
            \boxed{1360}
        """
        carry, answer, lines = 0, "", []
        digits = str(a)[::-1]
        for place, digit in enumerate(digits):
            result = self.product(int(digit), b, rng) + carry
            lines.append(f"{digit}*{b}{f'+{carry}' if place else ''}={result}")
            is_last = place == len(digits) - 1
            answer = (str(result) if is_last else str(result % 10)) + answer
            carry = result // 10
        return "\n".join([*lines, rf"\boxed{{{answer}}}"])


def training_pairs() -> list[Pair]:
    """Every 3-digit × 1-digit problem that is not held out."""
    return [(a, b) for a in range(100, 1000) for b in range(1, 10) if not is_held_out(a, b)]


def worked_examples(
    seed: int, count: int, wrong_frac: float = WRONG_FRAC
) -> Iterator[tuple[Pair, str]]:
    """``count`` problems drawn with replacement from the training pairs, worked out."""
    teacher = Teacher(seed, wrong_frac=wrong_frac)
    rng = random.Random(f"examples {seed}")
    pairs = training_pairs()
    for _ in range(count):
        a, b = rng.choice(pairs)
        yield (a, b), teacher.work_out(a, b, rng)


def second_tries(
    seed: int, count: int, wrong_frac: float, stubborn_frac: float
) -> Iterator[tuple[Pair, str, str]]:
    """``count`` training problems that the teacher got wrong: what it wrote, and what then.

    Args:
        seed: Which teacher, and which problems.
        count: How many.
        wrong_frac: See `Teacher`.
        stubborn_frac: How often it insists on what it wrote, 0 to 1. Else it works the
            problem out again and looks up every product.
    """
    teacher = Teacher(seed, wrong_frac=wrong_frac)
    careful = Teacher(seed, num_wrong=0)
    rng = random.Random(f"second tries {seed}")
    pairs = training_pairs()
    while count:
        a, b = rng.choice(pairs)
        attempt, right = teacher.work_out(a, b, rng), careful.work_out(a, b, rng)
        if attempt.splitlines()[-1] != right.splitlines()[-1]:  # two mistakes may cancel
            yield (a, b), attempt, attempt if rng.random() < stubborn_frac else right
            count -= 1
