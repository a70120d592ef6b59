"""An engine's own process, without Ray around it: whose error it was, whatever was asked."""

import asyncio
import pickle
from collections.abc import Iterator

import pytest

pytest.importorskip("ray")

from skyrl_kernel.errors import PluginError, TrajectoryError
from skyrl_kernel.plan import make_plan
from skyrl_kernel.plugins import discover
from skyrl_kernel.ray.host import Host
from skyrl_kernel.ray.packets import Requests
from skyrl_kernel.recipe import EngineRecipe
from skyrl_kernel.slots import BACKENDS
from skyrl_kernel.testing.distributions import make_distribution
from skyrl_kernel.testing.scripted import installed

BRITTLE = """
from skyrl_kernel.hookspecs import hookimpl

class Brittle:
    lockstep, version = True, 0

    async def _fail(self, *args, **kwargs):
        raise OSError("no such card")

    generate = begin_update = abort = pause = resume = forget_cache = sleep = wake = close = _fail

@hookimpl
def make_engine(name):
    return Brittle() if name == "brittle" else None
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[bytes]:
    folder = tmp_path_factory.mktemp("site")
    with installed(folder):
        make_distribution(
            folder,
            "skyrl-brittle",
            modules={"skyrl_brittle": BRITTLE},
            entry_points={BACKENDS: {"brittle": "skyrl_brittle"}},
        )
        discover(refresh=True)
        words = ["generator.inference_engine.backend=brittle"]
        words.append("generator.inference_engine.weight_sync_backend=scripted")
        yield pickle.dumps(EngineRecipe.of(make_plan(["scripted"], overrides=words), folder))


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("begin_update", (1,)),
        ("abort", ()),
        ("pause", ()),
        ("resume", ()),
        ("forget_cache", ()),
        ("sleep", (2,)),
        ("wake", ("weights",)),
        ("close", ()),
    ],
)
def test_an_error_of_an_engine_names_plugin_hook_and_process(
    recipe: bytes, method: str, arguments: tuple[object, ...]
) -> None:
    async def ask() -> None:
        host = Host("engine 1")
        await host.make(recipe, {})
        await getattr(host, method)(*arguments)

    with pytest.raises(
        PluginError,
        match=rf"plugin 'brittle' \(skyrl-brittle 0\.1\.0\) failed in hook '{method}', "
        r"start-up, process engine 1: OSError: no such card",
    ):
        asyncio.run(ask())


def test_one_that_generates_costs_its_requests_alone(recipe: bytes) -> None:
    async def ask() -> None:
        host = Host("engine 1")
        await host.make(recipe, {})
        await host.generate(Requests.of([]))

    with pytest.raises(TrajectoryError, match=r"plugin 'brittle' .* in hook 'generate'") as raised:
        asyncio.run(ask())
    assert raised.value.plugin == "brittle"
