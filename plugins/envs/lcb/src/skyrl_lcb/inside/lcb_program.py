"""Runs one program on one input, in a process of its own. Served by a worker in the sandbox.

What the right output is never comes in here: it is compared outside, so a program may
tamper with this process and gains nothing.
"""

import atexit
import contextlib
import math
import os
import re
import resource
import select
import shutil
import signal
import sys
import threading
import time
from collections.abc import Mapping
from types import ModuleType
from typing import Any, NoReturn

PRELUDE = """
import bisect, collections, copy, datetime, functools, heapq, io, itertools, math, operator, os
import random, re, string, sys
from bisect import bisect_left, bisect_right, insort
from collections import Counter, OrderedDict, defaultdict, deque
from copy import deepcopy
from functools import cache, cmp_to_key, lru_cache, partial, reduce
from heapq import heapify, heappop, heappush, heapreplace, merge, nlargest, nsmallest
from itertools import (accumulate, chain, combinations, count, cycle, groupby, islice, pairwise,
                       permutations, product, repeat, zip_longest)
from math import (atan2, ceil, comb, factorial, floor, gcd, inf, isqrt, log, log2, log10, pi,
                  prod, sqrt)
from operator import iand, itemgetter, or_, sub, xor
from os.path import commonprefix
from random import randrange, shuffle
from re import search as re_search
from string import ascii_lowercase
from time import time
from typing import (Any, Callable, Deque, Dict, Generator, Iterable, Iterator, List, Optional,
                    Set, Tuple, Union)
"""
"""Names that programs may use without importing them, as SkyRL-Gym's judge gives them."""
PACKAGES = {"np": "import numpy as np", "pd": "import pandas as pd"}
"""Likewise, but only imported where the program has the word, since it takes long."""

_INPUT = "/tmp/.input"
_FAILED = 1
_PIECE = 65536


def run(request: Mapping[str, Any]) -> dict[str, Any]:
    """Run ``code`` on ``input``.

    Args:
        request: ``code``; ``function``, to be called with the arguments ``input``, or None if
            ``input`` is what the program reads; ``cpu_s`` and ``wall_s``, its limits; ``most``,
            bytes of output.

    Returns:
        ``status``: ``ended``, ``error``, ``timeout`` or ``too much output``; and ``output``: what
        the program wrote, or what the function returned as `packed` has it.
    """
    if not os.path.exists("/program/main.py"):
        raise RuntimeError(
            "this ends all other processes that it sees; it runs in the sandbox only"
        )
    _warm_up(request["code"])
    theirs = None if request["function"] is not None else request["input"]
    with open(_INPUT, "w", encoding="utf-8", errors="surrogatepass", newline="") as file:
        file.write(theirs or "")
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        _become(request, write_end)
    os.close(write_end)
    try:
        return _follow(child, read_end, request["wall_s"], request["most"])
    finally:
        os.close(read_end)
        _clean_up()


def _clean_up() -> None:
    """Remove whatever the program left behind: processes, then files."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)
    for folder in ("/tmp", "/dev/shm"):
        for entry in list(os.scandir(folder)):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry, ignore_errors=True)
            else:
                os.remove(entry)


def _follow(child: int, read_end: int, wall_s: float, most: int) -> dict[str, Any]:
    output = bytearray()
    deadline = time.monotonic() + wall_s
    ended = os.pidfd_open(child)
    try:
        while True:
            left_s = max(0.0, deadline - time.monotonic())
            ready, _, _ = select.select([read_end, ended], [], [], left_s)
            if read_end in ready:
                data = os.read(read_end, _PIECE)
                output += data
                if len(output) > most:
                    return {"status": "too much output", "output": ""}
                if not data:
                    select.select([ended], [], [], max(0.0, deadline - time.monotonic()))
                    break
            if read_end not in ready or left_s == 0.0:
                break
    finally:
        os.close(ended)
    pid, status = os.waitpid(child, os.WNOHANG)
    if pid == 0 or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU):
        return {"status": "timeout", "output": ""}
    return {
        "status": "ended" if status == 0 else "error",
        "output": output.decode("utf-8", "replace"),
    }


def _become(request: Mapping[str, Any], write_end: int) -> NoReturn:
    """In the new process: be the program, then end."""
    code = _FAILED
    try:
        nothing = os.open(os.devnull, os.O_RDWR)
        function = request["function"]
        os.dup2(os.open(_INPUT, os.O_RDONLY), 0)
        os.dup2(write_end if function is None else nothing, 1)
        os.dup2(nothing, 2)
        answer = os.dup2(write_end, 3)
        os.closerange(4, 1024)
        os.remove(_INPUT)
        sys.stdin = open(0, encoding="utf-8", errors="surrogateescape", closefd=False)  # noqa: SIM115
        sys.stdout = open(1, "w", encoding="utf-8", errors="surrogateescape", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        seconds = math.ceil(request["cpu_s"])
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
        if function is None:
            os.close(answer)
            _run_program(request["code"])
        else:
            import json

            value = _call_function(request["code"], function, request["input"])
            data = json.dumps(packed(value)).encode()
            while data:
                data = data[os.write(answer, data) :]
        code = 0
    except SystemExit:
        code = 0 if request["function"] is None else _FAILED
    except BaseException:
        code = _FAILED
    finally:
        try:
            for thread in threading.enumerate():
                if thread is not threading.current_thread() and not thread.daemon:
                    thread.join()
            atexit._run_exitfuncs()
            sys.stdout.flush()
        except BaseException:
            code = _FAILED
        os._exit(code)


def _warm_up(code: str) -> None:
    """Import what the program will, so that each of its processes has it already."""
    with contextlib.suppress(Exception):
        _module("warm_up", code)


def _module(name: str, code: str) -> ModuleType:
    """A module with the names of the prelude, in which the program is to run."""
    module = ModuleType(name)
    sys.modules[name] = module
    exec(PRELUDE, module.__dict__)
    for word, statement in PACKAGES.items():
        if re.search(rf"\b{word}\b", code):
            with contextlib.suppress(ImportError):
                exec(statement, module.__dict__)
    return module


def _run_program(code: str) -> None:
    module = _module("__main__", code)
    exec(compile(code, "solution.py", "exec"), module.__dict__)


def _call_function(code: str, name: str, arguments: list[Any]) -> Any:
    module = _module("solution", code)
    exec(compile(code, "solution.py", "exec"), module.__dict__)
    owner = module.__dict__["Solution"]() if "class Solution" in code else module
    return getattr(owner, name)(*arguments)


def packed(value: Any) -> Any:
    """A value in JSON that keeps what JSON loses: tuples, sets, keys that are no text.

    Of other objects only their type is told; they equal nothing.

    Example:
        >>> packed([1, (2.5, None)]), packed({1: {"a"}})
        (['list', 1, ['tuple', 2.5, None]], ['dict', [1, ['set', 'a']]])
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    for kind in (list, tuple, set, frozenset):
        if isinstance(value, kind):
            return [kind.__name__, *(packed(item) for item in value)]
    if isinstance(value, dict):
        return ["dict", *([packed(key), packed(item)] for key, item in value.items())]
    return ["object", type(value).__name__]
