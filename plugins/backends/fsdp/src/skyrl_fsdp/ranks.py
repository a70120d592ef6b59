"""The processes that train together, and what they tell each other; one process tells itself.

Each of N processes (ranks) has torchrun's variables in its environment and makes the same calls in
the same order. What a rank finds out alone, an error above all, must reach the others before their
next collective, or they wait for it: every such place is a call of `Ranks.agree`. For an error
elsewhere, out of memory in the middle of a layer, there is `Ranks.together`: the rank leaves word
in the store that they all read, and those who wait for it find the word when their deadline passes.
"""

import contextlib
import os
import pickle
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from skyrl_fsdp.meeting import meet
from skyrl_kernel.errors import ConfigError, RankError, RunError
from skyrl_kernel.logs import get_logger

T = TypeVar("T")

log = get_logger(__name__)

_LAST_WORDS_S = 5.0
"""How long a rank that was let down waits to read what became of each other."""
_WORD = "skyrl/rank/"
_POLL_S = 0.05


class Ranks:
    """This process among those that train together. Made by `join`.

    Ranks whose numbers follow each other are partners if ``sequence`` is above 1: they
    have the same rows, each a part of the sequence. Partners have one ``share`` of the data.

    Args:
        device: Where this rank computes.
        sequence: Ranks to a share.
        timeout_s: Longest wait for another rank.
    """

    def __init__(
        self, device: torch.device, *, sequence: int = 1, timeout_s: float = 600.0
    ) -> None:
        self.device = device
        self._timeout = timedelta(seconds=timeout_s)
        joined = dist.is_available() and dist.is_initialized()
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if joined else (0, 1)
        if self.world % sequence:
            raise ConfigError(
                f"{self.world} ranks do not divide into groups of {sequence} that share a sequence; "
                "set trainer.policy.sequence_parallel_size to a divisor of the number of ranks"
            )
        self.sequence = sequence
        self.share, self.shares = self.rank // sequence, self.world // sequence
        self._control = (
            dist.new_group(backend="gloo", timeout=self._timeout) if self.world > 1 else None
        )
        self._meshes: dict[int, DeviceMesh] = {}
        self._groups: dict[int, dist.ProcessGroup] = {}
        self._raised: BaseException | None = None

    def agree(self, compute: Callable[[], T]) -> T:
        """What ``compute`` returns here, once it has returned on every rank.

        Nothing in it may wait for another rank. If it raises on some, all raise the error
        of the first of them, which says the rank.
        """
        if self.world == 1:
            return compute()
        error: Exception | None = None
        try:
            value = compute()
        except Exception as found:
            log.exception("failed, and so all ranks do", rank=self.rank)
            error = found
        if not self.most(error is not None):
            return value
        errors = self.gather(None if error is None else _sendable(error))
        first = next(rank for rank, one in enumerate(errors) if one is not None)
        shown = error if error is not None and first == self.rank else errors[first]
        assert shown is not None
        self._raised = _naming(shown, first, self.world)
        raise self._raised

    def gather(self, value: T) -> list[T]:
        """The value of every rank, by rank."""
        if self.world == 1:
            return [value]
        values: list[T | None] = [None] * self.world
        dist.all_gather_object(values, value, group=self._control)
        return values  # type: ignore[return-value]

    def of_shares(self, value: T) -> list[T]:
        """The value of every share's first rank, by share."""
        return self.gather(value)[:: self.sequence]

    def most(self, number: int) -> int:
        """The largest of all ranks' numbers."""
        if self.world == 1:
            return number
        largest = torch.tensor(number)
        dist.all_reduce(largest, dist.ReduceOp.MAX, group=self._control)
        return int(largest)

    def mesh(self, size: int = -1) -> DeviceMesh:
        """All ranks, in groups of ``size`` that have one copy of the weights; -1: all of them.

        Raises:
            ConfigError: The ranks do not divide so.
        """
        size = self.world if size == -1 else size
        if size < 1 or self.world % size:
            raise ConfigError(
                f"fsdp_size={size} does not divide the {self.world} ranks that train; set it to a divisor, "
                "or to -1 for one copy of the weights over all of them"
            )
        if size not in self._meshes:
            if self.world == 1 and not dist.is_initialized():
                _join_nobody(self.device)
            shape, names = (
                ((self.world,), ("shard",))
                if size == self.world
                else ((self.world // size, size), ("replicate", "shard"))
            )
            mesh = init_device_mesh(self.device.type, shape, mesh_dim_names=names)
            for group in mesh.get_all_groups():  # they have torch's own deadline, half an hour
                dist.distributed_c10d._set_pg_timeout(self._timeout, group)
            self._meshes[size] = mesh
        return self._meshes[size]

    def partners(self, size: int) -> dist.ProcessGroup | None:
        """This rank among ``size`` of those that have its rows, a divisor of `sequence`; None if it is 1."""
        if size == 1:
            return None
        if size not in self._groups:
            made = dist.new_subgroups(size, timeout=self._timeout)  # type: ignore[no-untyped-call]
            self._groups[size] = made[0]
        return self._groups[size]

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """What is in here ends on all ranks or on none, an error at the latest with the deadline.

        Raises:
            RankError: Another rank failed, ended or hangs: says which, and its error.
        """
        try:
            yield
        except Exception as error:
            if self.world == 1 or error is self._raised:
                raise
            lost = _is_of_a_collective(error)
            told = "" if lost else f"{type(error).__name__}: {error}"
            words = self._last_words(told)
            if not lost:
                raise
            raise RankError(_lost(words, error)) from error

    def _last_words(self, told: str) -> dict[int, str | None]:
        """Leave word, and read that of the others: empty if they were let down, None if there is none."""
        store = dist.distributed_c10d._get_default_store()
        until = time.monotonic() + _LAST_WORDS_S
        words: dict[int, str | None] = dict.fromkeys(range(self.world))
        try:
            store.set(f"{_WORD}{self.rank}", told)
            while any(word is None for word in words.values()) and time.monotonic() < until:
                for rank in [rank for rank, word in words.items() if word is None]:
                    if store.check([f"{_WORD}{rank}"]):
                        words[rank] = store.get(f"{_WORD}{rank}").decode()
                time.sleep(_POLL_S)
        except (
            RuntimeError,
            OSError,
        ):  # the process that keeps the store is gone: rank 0's, mostly
            words[self.rank] = told
        return words

    def close(self) -> None:
        """Leave the others; not asked again."""
        if (self.world > 1 or self._meshes) and dist.is_initialized():
            dist.destroy_process_group()


def backend(device: torch.device) -> str:
    """torch.distributed's, for ranks that compute there."""
    # What is kept in the machine's memory (fsdp_config.cpu_offload) is reduced by gloo there.
    return "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"


def _join_nobody(device: torch.device) -> None:
    """A group of this process alone, for what only sharded modules do."""
    dist.init_process_group(backend(device), store=HashStore(), rank=0, world_size=1)


def join(device: str | torch.device, *, timeout_s: float, sequence: int = 1) -> Ranks:
    """Meet the ranks that the environment speaks of; without ``WORLD_SIZE``, or with 1, be alone.

    Args:
        device: ``cpu``, or ``cuda`` for the one that ``LOCAL_RANK`` says.
        timeout_s: Longest wait for another rank.
        sequence: Ranks that share the sequence of one row.

    Raises:
        RankError: Not all came within that time.
    """
    device = torch.device(device)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return Ranks(device, sequence=sequence, timeout_s=timeout_s)
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        try:
            meet(backend(device), timedelta(seconds=timeout_s))
        except (RuntimeError, OSError) as error:  # torch's DistError is a RuntimeError
            raise RankError(
                f"rank {os.environ.get('RANK')} of {world} waited {timeout_s:g} s for the others at "
                f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')} in vain "
                f"({_first_line(error)}); look what became of them in their logs"
            ) from error
    return Ranks(device, sequence=sequence, timeout_s=timeout_s)


def _lost(words: dict[int, str | None], error: Exception) -> str:
    world = len(words)
    failed = [f"rank {rank} of {world} failed: {word}" for rank, word in words.items() if word]
    silent = [str(rank) for rank, word in words.items() if word is None]
    if failed:
        return "; ".join(failed)
    if not silent:
        return (
            f"{world} ranks wait for each other at different places ({_first_line(error)}); this is a "
            "mistake in what they were told to do, and not in one of them"
        )
    who = f"rank {', '.join(silent)} of {world}"
    return (
        f"{who} does not answer: its process has ended, or it did not come to where the others waited "
        f"for it within trainer.fsdp.timeout_s ({_first_line(error)}); look at its log, and start the run "
        "again to go on from its last checkpoint"
    )


def _is_of_a_collective(error: Exception) -> bool:
    """Whether another rank let this one down. Gloo raises plain errors that begin with its source file."""
    return isinstance(error, dist.DistError) or "gloo" in _first_line(error)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _sendable(error: Exception) -> Exception:
    """The same, without its traceback, which is in its rank's log; as words if it cannot be pickled."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RunError(f"{type(error).__name__}: {error}")
    return error


def _naming(error: Exception, rank: int, world: int) -> Exception:
    """Put the rank before the message."""
    who = f"rank {rank} of {world}"
    if isinstance(error, OSError) and error.strerror:
        error.strerror = f"{error.strerror} ({who})"
    elif error.args:
        error.args = (f"{who}: {error.args[0]}", *error.args[1:])
    return error
