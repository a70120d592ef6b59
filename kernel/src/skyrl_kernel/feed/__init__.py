"""From the run folder to the stores of loggers, behind the run.

The run writes ``metrics.jsonl`` and ``trajectories/`` first: they are the truth,
and a store holds a copy of them. For each logger that has a store (hook
``make_sink``) a process of its own reads the folder and delivers what is new, in
order; ``loggers/<name>.json`` remembers how far it got. So the run waits for
nobody: a logger that raises is tried again, one that hangs is killed when the
run ends, and what it missed stays in the folder, from where the next start of
the run or ``skyrl log`` delivers it.

    loop ──append──▶ metrics.jsonl, trajectories/, loggers/eval/
                          │ read by a process per logger (`process`)
                          ▼
                     `Delivery` ──▶ `Sink.log` ──▶ wandb, mlflow, …
                          └──▶ loggers/<name>.json  (`Cursor`)
"""

from skyrl_kernel.feed.delivery import Delivery
from skyrl_kernel.feed.feed import Feed, check_sinks
from skyrl_kernel.feed.sink import NOTHING, LogEnd, LogRecord, LogRun, Sink, Table
from skyrl_kernel.feed.tables import spread

__all__ = [
    "NOTHING",
    "Delivery",
    "Feed",
    "LogEnd",
    "LogRecord",
    "LogRun",
    "Sink",
    "Table",
    "check_sinks",
    "spread",
]
