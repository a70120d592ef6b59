"""The capabilities that the kernel knows by name, and whose promise each is.

A plugin may offer and need words of its own; these are the ones that a run asks about. One that
is nearly such a word is told in a listing and in a run, since the run would not find it.
"""

from collections.abc import Collection, Iterator, Mapping
from types import MappingProxyType

from skyrl_kernel.plugins.manifest import Manifest
from skyrl_kernel.plugins.wording import did_you_mean
from skyrl_kernel.slots import GROUPS, SETS, SLOTS, SWITCHES

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
        "keeps_deadlines": (ENGINE,),
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

_SLOT_KEYS = frozenset(
    {slot.key for slot in SLOTS} | {key for key, _ in SETS} | {key for key, _, _ in SWITCHES}
)
_LIKENESS = 0.85
"""Above it a word is taken for a misspelt one: ``recieves_weights``, not ``receives_letters``."""


def doubts(manifest: Manifest) -> Iterator[str]:
    """Sentences about words that may be misspelt."""
    for word in manifest.offers:
        yield from _near("offers", word, PROMISED_BY)
    for word in manifest.needs:
        if word not in PROMISED_BY:  # most plugins need no other, and listing them should be quick
            from skyrl_kernel.place import PLACES

            yield from _near("needs", word, {*PROMISED_BY, *PLACES, *GROUPS})
    for key in manifest.slots:
        if not any(key.startswith(f"{own}.") for own in manifest.config):
            yield from _near("slots", key, _SLOT_KEYS)


def _near(field: str, word: str, known: Collection[str]) -> Iterator[str]:
    if word not in known and (near := did_you_mean(word, known, _LIKENESS)):
        yield f"{field} in its plugin.toml has '{word}', which the kernel does not know.{near}"
