"""Hooks of the plugin `ray`: the runtime that ``trainer.runtime=ray`` names."""

from collections.abc import Mapping
from importlib.util import find_spec

from pydantic import BaseModel

from skyrl_kernel.errors import CapabilityError
from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.protocols import Runtime, Settings
from skyrl_kernel.ray.config import RayConfig

NAME = "ray"


@hookimpl
def config_sections() -> Mapping[str, type[BaseModel]]:
    """``trainer.ray``."""
    return {"trainer.ray": RayConfig}


@hookimpl
def make_runtime(name: str, settings: Settings) -> Runtime | None:
    """The runtime; Ray is imported now, and started when the first part of a run is."""
    if name != NAME:
        return None
    if find_spec("ray") is None:
        raise CapabilityError(
            "trainer.runtime=ray needs Ray, which is not installed here: pip install "
            '"skyrl-kernel[ray]". trainer.runtime=local computes all of it in this process'
        )
    from skyrl_kernel.ray.environment import prepare

    prepare()
    from skyrl_kernel.ray.runtime import RayRuntime

    return RayRuntime(settings)
