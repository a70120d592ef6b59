"""Says at the start of a run that a loss of sequences is averaged otherwise than it is defined."""

from skyrl_kernel.logs import get_logger
from skyrl_kernel.protocols import RunInfo

REDUCTION = "sequence_mean"

log = get_logger(__name__)


def warn_of_another_reduction(run: RunInfo, names: tuple[str, ...]) -> None:
    """Warn if one of the losses ``names`` is used without `REDUCTION`, as SkyRL does."""
    algorithm = run.config["trainer"]["algorithm"]
    if algorithm["policy_loss_type"] in names and algorithm["loss_reduction"] != REDUCTION:
        log.warning(
            f"{algorithm['policy_loss_type']} is defined as a mean over sequences: set "
            f"trainer.algorithm.loss_reduction={REDUCTION}, as its preset does",
            found=algorithm["loss_reduction"],
        )
