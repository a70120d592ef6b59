"""Weight sync that brings the adapter alone: for engines that keep the weights which it stands on."""

from skyrl_kernel.defaults.push import update
from skyrl_kernel.errors import CapabilityError
from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.protocols import Engine, LendsAdapter, SyncWeights, Trainer


@hookimpl
def sync_weights(name: str) -> SyncWeights | None:
    """Hand what is trained to an engine that computes with it beside the weights."""
    return adapters if name == "adapters" else None


async def adapters(trainer: Trainer, engine: Engine, version: int) -> None:
    """Send the policy's adapter as one transaction, and commit ``version``.

    An engine that offers ``receives_adapters`` knows from the same key of the config that no
    more will come, and checks and commits it like whole weights.

    Raises:
        CapabilityError: The trainer has no adapter to lend.
        WeightSyncError: The engine refused; it says which weights it has.
    """
    if not isinstance(trainer, LendsAdapter):
        raise CapabilityError(
            "generator.inference_engine.weight_sync_backend=adapters needs a trainer that lends its "
            f"adapter, and a {type(trainer).__name__} does not; use auto, which sends whole weights"
        )
    await update(engine, trainer.adapter(), version)
