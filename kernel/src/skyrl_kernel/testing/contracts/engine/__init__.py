"""What an engine must keep: one suite for all of them, by the ideas it consists of.

| module | class | checks |
|---|---|---|
| `protocol` | `EngineContract` | what the kernel relies on; needs neither torch nor a model |
| `log_probs` | `LogProbContract` | log-probs are those of the weights, at first and after every kind of update |
| `sampling` | `SamplingContract` | temperature, truncation, many samples, what ends a completion |
| `work` | `WorkContract` | nothing lost or doubled, nothing computed that nobody waits for |
| `updates` | `UpdateContract` | new weights in mid-request; refused and damaged ones; no stale prefix |
| `sleeps` | `SleepContract` | memory given back and taken again, around an update or without one |
| `served` | `ServedContract` | a server that is killed |

`ModelEngineContract` is all but the last two, `ServedEngineContract` all but `SleepContract`,
which is for an engine that offers ``sleeps``. They
compare with `reference`: plain PyTorch on a Hugging Face module in float32.
"""

from skyrl_kernel.testing.contracts.engine.log_probs import LogProbContract
from skyrl_kernel.testing.contracts.engine.protocol import EngineContract
from skyrl_kernel.testing.contracts.engine.sampling import SamplingContract
from skyrl_kernel.testing.contracts.engine.served import ServedContract
from skyrl_kernel.testing.contracts.engine.sleeps import SleepContract
from skyrl_kernel.testing.contracts.engine.updates import UpdateContract
from skyrl_kernel.testing.contracts.engine.work import WorkContract


# The contract whose tests shall run first, on an engine that nobody has updated yet, stands last.
class ModelEngineContract(
    WorkContract, UpdateContract, EngineContract, SamplingContract, LogProbContract
):
    """For an engine with the weights of a model: see `ModelEngine` for what to override."""


class ServedEngineContract(ServedContract, ModelEngineContract):
    """For an engine that computes in another process."""


__all__ = [
    "EngineContract",
    "LogProbContract",
    "ModelEngineContract",
    "SamplingContract",
    "ServedContract",
    "ServedEngineContract",
    "SleepContract",
    "UpdateContract",
    "WorkContract",
]
