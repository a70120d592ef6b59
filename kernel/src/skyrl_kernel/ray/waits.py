"""What a run waits for while it starts, said on the screen: a start takes 10 seconds, or minutes."""

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence

from skyrl_kernel.progress import say
from skyrl_kernel.ray.errors import Process

FIRST_S = 3.0
"""A wait that is shorter is not spoken of."""
EVERY_S = 10.0
_NAMED = 4
"""More processes than these are counted."""


@contextlib.contextmanager
def waiting_for(what: str, *, first_s: float = FIRST_S, every_s: float = EVERY_S) -> Iterator[None]:
    """While the block runs, say now and then what it waits for.

    From a thread, so that it may be a call of Ray's which comes back minutes later.

    Args:
        what: Such as ``trainer rank 0 to load``.
        first_s: Until it is first said.
        every_s: From then on.
    """
    is_over = threading.Event()

    def tell() -> None:
        began = time.monotonic()
        pause_s = first_s
        while not is_over.wait(pause_s):
            say(f"waiting for {what}: {time.monotonic() - began:.0f} s")
            pause_s = every_s

    teller = threading.Thread(target=tell, name="waiting", daemon=True)
    teller.start()
    try:
        yield
    finally:
        is_over.set()
        teller.join()


def together(processes: Sequence[Process]) -> str:
    """What they are called, in a few words.

    Example:
        >>> together([Process(name="engine 0"), Process(name="engine 1")])
        'engine 0, engine 1'
        >>> together([Process(name=f"trainer rank {rank}") for rank in range(64)])
        'trainer rank 0 and 63 more'
    """
    if len(processes) > _NAMED:
        return f"{processes[0].name} and {len(processes) - 1} more"
    return ", ".join(process.name for process in processes)
