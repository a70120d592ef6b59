"""Fills micro-batches up to a number of tokens: ``trainer.max_tokens_per_microbatch``.

What counts are places of the forward pass, as `skyrl_fsdp.packing.lay_out` will
lay the rows out: padding takes memory too. The longest rows come first and set
how long a row of the pass is; short ones go where room is left.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from skyrl_fsdp.packing import places


def fill(atoms: Sequence[Sequence[int]], budget: int, *, packs: bool) -> list[list[int]]:
    """Which atoms share a micro-batch.

    First fit, the longest first (Johnson 1973), so the answer depends on the
    lengths alone.

    Args:
        atoms: Lengths of the rows of each, in tokens.
        budget: Most places of a forward pass; an atom that exceeds it is one by itself.
        packs: Whether rows may share a row of the pass.

    Returns:
        Places in ``atoms``, by micro-batch.

    Example: a pass of 8 places holds the row of 6, then two of 4 side by side.
        >>> fill([[4], [6], [4]], 8, packs=True)
        [[1], [0, 2]]
        >>> fill([[6], [3], [2], [1]], 12, packs=True)
        [[0, 1, 2, 3]]
        >>> fill([[6], [3], [2], [1]], 12, packs=False)
        [[0, 1], [2, 3]]
    """
    passes: list[_Pass] = []
    order = sorted(range(len(atoms)), key=lambda place: (-max(atoms[place]), place))
    for place in order:
        found = next((one for one in passes if one.has_room(atoms[place], budget, packs)), None)
        if found is None:
            found = _Pass()
            passes.append(found)
        found.atoms.append(place)
        found.lengths.extend(atoms[place])
    return [one.atoms for one in passes]


@dataclass
class _Pass:
    """One forward pass, as it fills."""

    atoms: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    """Of its token rows; the first is the longest."""

    def has_room(self, more: Sequence[int], budget: int, packs: bool) -> bool:
        if sum(self.lengths) + sum(more) > budget:  # quick, and mostly all that is asked
            return False
        return places([*self.lengths, *more], packs=packs) <= budget
