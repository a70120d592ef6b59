"""Runtime ``local``: controller, trainer and engine in this process."""

from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.protocols import Engine, Runtime, Trainer
from skyrl_kernel.recipe import EngineRecipe, TrainerRecipe


@hookimpl
def make_runtime(name: str) -> Runtime | None:
    """The runtime of ``trainer.runtime=local``."""
    return Local() if name == "local" else None


class Local:
    """Makes everything right here."""

    def start_engine(self, recipe: EngineRecipe) -> Engine:
        """Make it."""
        return recipe.make()

    def start_trainer(self, recipe: TrainerRecipe) -> Trainer:
        """Make it."""
        return recipe.make()

    def close(self) -> None:
        """Nothing was started."""
