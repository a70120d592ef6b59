"""A real engine that generates beside the trainer, in one process: the transformers engine with
weights of its own, which hands the thread over after every token while the trainer has another.

    install_beside(site)      the plugin ``beside``
    ahead(2)                  what a run needs to use it
"""

from pathlib import Path
from typing import Any

from skyrl_kernel.testing.distributions import make_distribution

BESIDE = """
from skyrl_kernel.hookspecs import hookimpl


@hookimpl
def make_engine(name, model):
    if name != "beside":
        return None
    from skyrl_transformers.engine import TransformersEngine

    class Beside(TransformersEngine):
        lockstep = False

    return Beside(model)
"""

MANIFEST = """
[beside]
slots = ["generator.inference_engine.backend"]
offers = ["receives_weights", "exact_logprobs", "seeded_sampling", "concurrent_generation"]

[beside.preset]
"generator.inference_engine.backend" = "beside"
"""


def install_beside(site: Path) -> None:
    """The plugin ``beside``, as a distribution."""
    make_distribution(
        site,
        "skyrl-beside",
        modules={"skyrl_beside.hooks": BESIDE},
        entry_points={"skyrl.backends": {"beside": "skyrl_beside.hooks"}},
        files={"skyrl_beside/plugin.toml": MANIFEST},
    )


def ahead(steps: int, **changes: Any) -> dict[str, Any]:
    """Changes of a small run that generates ``steps`` steps ahead with it."""
    return {
        "generator__inference_engine__backend": "beside",
        "trainer__fully_async__enabled": True,
        "trainer__fully_async__max_staleness_steps": steps,
        **changes,
    }
