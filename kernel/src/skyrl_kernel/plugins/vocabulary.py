"""The capabilities that the kernel knows by name, and whose promise each is.

A plugin may offer and need words of its own; these are the ones that a run asks about.
"""

from collections.abc import Mapping
from types import MappingProxyType

from skyrl_kernel.slots import SLOTS

_KEYS = {slot.hook: slot.key for slot in SLOTS}
RUNTIME, TRAINER, ENGINE = _KEYS["make_runtime"], _KEYS["make_trainer"], _KEYS["make_engine"]
GENERATE, SYNC = _KEYS["generate"], _KEYS["sync_weights"]

PROMISED_BY: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "separate_processes": (RUNTIME,),
        "divides_rows": (TRAINER,),
        "exact_resume": (TRAINER,),
        "full_weights": (TRAINER,),
        "lends_adapter": (TRAINER,),
        "lends_module": (TRAINER,),
        "several_ranks": (TRAINER,),
        "trains_adapters": (TRAINER,),
        "trains_values": (TRAINER,),
        "whole_loss": (TRAINER,),
        "concurrent_generation": (ENGINE, RUNTIME),
        "exact_logprobs": (ENGINE,),
        "forgets_cache": (ENGINE,),
        "in_process": (ENGINE,),
        "receives_adapters": (ENGINE,),
        "receives_weights": (ENGINE,),
        "sampling_support": (ENGINE,),
        "seeded_sampling": (ENGINE,),
        "served": (ENGINE,),
        "shares_module": (ENGINE,),
        "sleeps": (ENGINE,),
        "streams": (ENGINE,),
        "same_weights": (SYNC,),
        "reads_rows": (GENERATE,),
        "any_env": (),
        "data_recipe": (),
    }
)
"""Word → the slots of which one must hold a plugin that offers it; none: whoever is selected.

That a plugin is selected is not enough: ``--plugin vllm`` makes no engine where
``generator.inference_engine.backend`` names another.
"""
