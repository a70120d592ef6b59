"""``loggers/<name>.json``: how much of a run a logger's store has been given."""

import dataclasses
import json
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from skyrl_kernel.feed.sink import NOTHING
from skyrl_kernel.run.atomic import write_atomically


@dataclass(kw_only=True, slots=True)
class Cursor:
    """One logger's place in the run. `save` after each change."""

    path: Path
    id: str
    """Of the run in the store."""
    copy: int = 1
    """Which run of the store this is: one more each time that the run goes back."""
    step: int = NOTHING
    """Last step delivered."""
    opened: bool = False
    """True if the store knows the id."""
    closed: bool = False
    """True if the store was told that the run ended."""

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read it, or begin a new one; nothing is written yet."""
        try:
            return cls(path=path, **json.loads(path.read_bytes()))
        except (OSError, ValueError, TypeError):
            return cls(path=path, id=secrets.token_hex(4))

    def save(self) -> None:
        """Bring it to the disk."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fields = dataclasses.asdict(self)
        del fields["path"]
        write_atomically(self.path, (json.dumps(fields) + "\n").encode())

    def go_back(self) -> None:
        """What follows is another run for the store, from its first step on."""
        self.id = secrets.token_hex(4)
        self.copy += 1
        self.step = NOTHING
        self.opened = self.closed = False
        self.save()
