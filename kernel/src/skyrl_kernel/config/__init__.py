"""One tree of config: the kernel's sections, the plugins' sections, and how values reach them."""

from skyrl_kernel.config.compat import Answer, unread_variables
from skyrl_kernel.config.compose import ResolvedConfig, resolve_config
from skyrl_kernel.config.layers import Layers, merge_layers, settle_names
from skyrl_kernel.config.tree import (
    KERNEL_SECTIONS,
    AlgorithmConfig,
    ChatTemplateConfig,
    Config,
    DataConfig,
    EnvironmentConfig,
    EvalSamplingConfig,
    FullyAsyncConfig,
    GeneratorConfig,
    InferenceEngineConfig,
    OptimizerConfig,
    PolicyConfig,
    RefConfig,
    SamplingConfig,
    Section,
    TrainerConfig,
)

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
