"""``trainer.ray``: what the runtime ``ray`` is told beside ``trainer.placement``."""

from typing import Any

from pydantic import Field

from skyrl_kernel.config.section import Positive, Seconds, Section


class RayConfig(Section):
    """``trainer.ray``: a Ray of the run's own, and the processes that it starts."""

    num_cpus: Positive | None = None
    """Processors that a Ray of the run's own counts with; null: those of the machine, or as many as the
    processes of the run if those are more and there is no GPU. Of no meaning for a cluster."""
    use_gpus: bool | None = None
    """Trainer and engines get a GPU each, or a processor each; null: a GPU if Ray has any now. Say
    true where the command runs on a machine without GPUs, and the cluster has some."""
    start_timeout_s: Seconds = 600.0
    """Longest wait for processes to begin, in which Ray makes what their ``runtime_env`` asks for."""
    trainer_env: dict[str, Any] = Field(default_factory=dict)
    """Ray's ``runtime_env`` of the trainer's processes, such as ``{py_executable: /envs/train/bin/python}``;
    goes before what the plugin asks for."""
    engine_env: dict[str, Any] = Field(default_factory=dict)
    """The same of engines."""
