"""One sandbox for all code that a model wrote: see `Sandbox`, `Worker` and `WorkerPool`.

Linux and bubblewrap only. `require_sandbox` refuses, with what to install, where
a sandbox cannot be had.
"""

from skyrl_sandbox.check import require_sandbox
from skyrl_sandbox.interpreter import Interpreter
from skyrl_sandbox.limits import Limit, Limits, Result
from skyrl_sandbox.pool import WorkerPool
from skyrl_sandbox.sandbox import Sandbox
from skyrl_sandbox.seats import seat
from skyrl_sandbox.worker import Worker, WorkerDied, WorkerError, WorkerTimeout

__all__ = [
    "Interpreter",
    "Limit",
    "Limits",
    "Result",
    "Sandbox",
    "Worker",
    "WorkerDied",
    "WorkerError",
    "WorkerPool",
    "WorkerTimeout",
    "require_sandbox",
    "seat",
]
