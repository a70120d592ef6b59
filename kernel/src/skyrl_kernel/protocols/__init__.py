"""What the kernel asks of the objects that plugins make.

Nothing here is a base class: a plugin's object keeps a protocol by having its
methods. `skyrl_kernel.testing` has a contract suite for each.

    given     what the kernel hands to plugins
    engine    what an engine is, and what some can do besides
    trainer   what a trainer is, and what some can do besides
    stages    what each stage of the loop is called with, and what it returns
    run       where a run computes, and what observers are told of it
"""

from skyrl_kernel.protocols.engine import (
    Counts,
    Engine,
    Forgets,
    Generates,
    Served,
    Sleeps,
    Starts,
    Streams,
)
from skyrl_kernel.protocols.given import Section, Settings, Tokenizer
from skyrl_kernel.protocols.run import (
    DataRecipe,
    EvalInfo,
    Measures,
    RunEnd,
    RunInfo,
    Runtime,
    StepInfo,
    SyncsByRanks,
)
from skyrl_kernel.protocols.stages import (
    Advantage,
    CreditedGroup,
    Evaluate,
    Generate,
    HostedEnv,
    Loss,
    MeasureRow,
    Reduction,
    RewardFn,
    RolloutContext,
    ScoreName,
    Select,
    Stateful,
    SyncWeights,
)
from skyrl_kernel.protocols.trainer import LendsAdapter, Ranked, Trainer

__all__ = [
    "Advantage",
    "Counts",
    "CreditedGroup",
    "DataRecipe",
    "Engine",
    "EvalInfo",
    "Evaluate",
    "Forgets",
    "Generate",
    "Generates",
    "HostedEnv",
    "LendsAdapter",
    "Loss",
    "MeasureRow",
    "Measures",
    "Ranked",
    "Reduction",
    "RewardFn",
    "RolloutContext",
    "RunEnd",
    "RunInfo",
    "Runtime",
    "ScoreName",
    "Section",
    "Select",
    "Served",
    "Settings",
    "Sleeps",
    "Starts",
    "Stateful",
    "StepInfo",
    "Streams",
    "SyncWeights",
    "SyncsByRanks",
    "Tokenizer",
    "Trainer",
]
