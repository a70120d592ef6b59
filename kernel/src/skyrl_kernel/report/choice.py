"""Which trajectories go on the page, in the order in which they are given up last.

Of each step: the best, the worst, one in the middle and one at random; then
whole groups, those with differing rewards first. A few steps, spread over the
run, come first with both, so that a page with little room shows these whole.
Random means by a hash of the prompt, so two runs over the same data show the
same prompts, and the same folder makes the same page.
"""

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

FIRST_STEPS = 10
"""Steps that are shown with a whole group before any other step is shown at all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One trajectory of a step's file, as far as choosing needs it."""

    step: int
    place: int
    """Its row in the file."""
    group: int
    uid: str
    sample: int
    reward: float | None
    num_tokens: int
    """Tokens sampled."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """Rows that go on the page together."""

    rows: tuple[Row, ...]
    reasons: tuple[str, ...]
    """Why, one for each row: ``best``, ``worst``, ``median``, ``random`` or ``group``."""


def choose(steps: Mapping[int, Sequence[Row]]) -> list[Choice]:
    """Every trajectory once, the most telling first.

    Args:
        steps: The rows of each step.
    """
    order = [step for step in spread(sorted(steps)) if steps[step]]
    first, rest = order[:FIRST_STEPS], order[FIRST_STEPS:]
    groups = {step: _groups(steps[step]) for step in order}
    choices = [
        *(_extremes(steps[step]) for step in first),
        *(groups[step][0] for step in first),
        *(_extremes(steps[step]) for step in rest),
        *(groups[step][0] for step in rest),
    ]
    for place in range(1, max(map(len, groups.values()), default=0)):
        choices += [groups[step][place] for step in order if place < len(groups[step])]
    return _once(choices)


def spread(steps: Sequence[int]) -> list[int]:
    """The same steps: ends first, then middles, so that any first few are spread evenly.

    Example:
        >>> spread([1, 2, 3, 4, 5, 6, 7])
        [1, 7, 4, 2, 5, 3, 6]
    """
    if not steps:
        return []
    ends = [0, len(steps) - 1] if len(steps) > 1 else [0]
    stretches = [(0, len(steps) - 1)]
    for low, high in stretches:  # grows while it is read: breadth first
        middle = (low + high) // 2
        if middle > low:
            ends.append(middle)
            stretches += [(low, middle), (middle, high)]
    return [steps[place] for place in ends]


def _extremes(rows: Sequence[Row]) -> Choice:
    """The best, the worst, the middle one and a random one; of unjudged rows four random ones."""
    shuffled = sorted(rows, key=_key)
    judged = sorted((row for row in shuffled if row.reward is not None), key=_reward)
    picked = {}
    if judged:
        picked = {"best": judged[-1], "worst": judged[0], "median": judged[len(judged) // 2]}
    chosen = {id(row): (row, reason) for reason, row in reversed(picked.items())}
    for row in shuffled[: 4 if not judged else None]:
        if id(row) not in chosen:
            chosen[id(row)] = (row, "random")
            if judged:
                break
    pairs = sorted(chosen.values(), key=lambda pair: pair[0].place)
    return Choice(rows=tuple(row for row, _ in pairs), reasons=tuple(why for _, why in pairs))


def _groups(rows: Sequence[Row]) -> list[Choice]:
    """Every group; those with differing rewards first, each kind in random order."""
    groups: dict[int, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(row)

    def rank(members: Sequence[Row]) -> tuple[bool, int]:
        return len({row.reward for row in members}) == 1, zlib.crc32(members[0].uid.encode())

    return [
        Choice(rows=tuple(members), reasons=("group",) * len(members))
        for members in sorted(groups.values(), key=rank)
    ]


def _once(choices: Iterable[Choice]) -> list[Choice]:
    """Each row where it comes first."""
    seen: set[int] = set()
    kept = []
    for choice in choices:
        pairs = [
            (row, why)
            for row, why in zip(choice.rows, choice.reasons, strict=True)
            if id(row) not in seen
        ]
        seen.update(id(row) for row, _ in pairs)
        if pairs:
            kept.append(
                Choice(rows=tuple(row for row, _ in pairs), reasons=tuple(why for _, why in pairs))
            )
    return kept


def _reward(row: Row) -> float:
    assert row.reward is not None
    return row.reward


def _key(row: Row) -> int:
    return zlib.crc32(f"{row.uid}/{row.sample}".encode())
