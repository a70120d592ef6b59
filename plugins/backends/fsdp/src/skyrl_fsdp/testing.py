"""What tests see of a trainer and runs do not."""

from skyrl_fsdp.sharding import whole
from skyrl_fsdp.trainer import FsdpTrainer
from skyrl_kernel.records import FloatArray


def first_gradients(trainer: FsdpTrainer) -> dict[str, FloatArray]:
    """The clipped gradients of the first update, whole, by ``role/name``. All ranks call it.

    AdamW's first moments after one update are 0.1 × the gradient.
    """
    found = {}
    for role, model in trainer._trained.items():
        names = model._names()
        for optimizer in model.optimizers:
            for parameter, state in optimizer.state.items():
                found[f"{role}/{names[parameter]}"] = (whole(state["exp_avg"]) / 0.1).cpu().numpy()
    return found
