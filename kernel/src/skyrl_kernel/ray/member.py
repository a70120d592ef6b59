"""What all actors of a run have in common, whether they train or generate."""

import contextlib
import pickle
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from skyrl_kernel.errors import SkyrlError, is_disk_full
from skyrl_kernel.logs import get_logger
from skyrl_kernel.ray.attest import Report, report
from skyrl_kernel.ray.begin import begin
from skyrl_kernel.recipe import Recipe

AnyRecipe = TypeVar("AnyRecipe", bound=Recipe)

log = get_logger(__name__)


class Member(Generic[AnyRecipe]):
    """An actor that is told where it is, attests its plugins, and then makes what its recipe says.

    Args:
        name: For messages, such as ``trainer rank 1``.
    """

    def __init__(self, name: str) -> None:
        self._name = self._process = name
        self._recipe: AnyRecipe | None = None

    def begin(self, folder: Path | None) -> str:
        """See `skyrl_kernel.ray.begin`."""
        machine = begin(self._name, folder)
        self._process = f"{self._name} on {machine}"
        return machine

    def report(self, lock: Sequence[Mapping[str, Any]]) -> Report:
        """What this process has of the plugins of the run."""
        return report(lock)

    def _read(self, recipe: bytes) -> AnyRecipe:
        """The controller's recipe, of this run; its errors name this process from here on."""
        read: AnyRecipe = pickle.loads(recipe)
        read.process = self._process
        self._recipe = read
        return read

    @contextlib.contextmanager
    def _named(self, hook: str) -> Iterator[None]:
        """Give an exception the name of its plugin, and of this process, while there is a traceback."""
        try:
            yield
        except SkyrlError:
            raise
        except Exception as error:
            log.exception("failed", hook=hook)
            if self._recipe is None or is_disk_full(error):
                raise
            raise self._recipe.manager.attribute(error, hook, step=None) from error
