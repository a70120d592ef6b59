"""One tree of config: the kernel's sections, the plugins' sections, and how values reach them."""

from skyrl_kernel.config.algorithm import AlgorithmConfig
from skyrl_kernel.config.compat import Answer, unread_variables
from skyrl_kernel.config.compose import ResolvedConfig, resolve_config
from skyrl_kernel.config.generator import (
    ChatTemplateConfig,
    EvalSamplingConfig,
    GeneratorConfig,
    InferenceEngineConfig,
    SamplingConfig,
)
from skyrl_kernel.config.layers import Layers, merge_layers, settle_names
from skyrl_kernel.config.roles import OptimizerConfig, PolicyConfig, RefConfig
from skyrl_kernel.config.section import Section
from skyrl_kernel.config.trainer import FullyAsyncConfig, TrainerConfig
from skyrl_kernel.config.tree import KERNEL_SECTIONS, Config, DataConfig, EnvironmentConfig

__all__ = [
    "KERNEL_SECTIONS",
    "AlgorithmConfig",
    "Answer",
    "ChatTemplateConfig",
    "Config",
    "DataConfig",
    "EnvironmentConfig",
    "EvalSamplingConfig",
    "FullyAsyncConfig",
    "GeneratorConfig",
    "InferenceEngineConfig",
    "Layers",
    "OptimizerConfig",
    "PolicyConfig",
    "RefConfig",
    "ResolvedConfig",
    "SamplingConfig",
    "Section",
    "TrainerConfig",
    "merge_layers",
    "resolve_config",
    "settle_names",
    "unread_variables",
]
