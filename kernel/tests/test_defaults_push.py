"""Weights pushed to an engine that holds a copy, and when ``auto`` does that."""

import asyncio
from collections.abc import Mapping
from pathlib import Path

import pytest

from skyrl_kernel.defaults import push
from skyrl_kernel.errors import CapabilityError
from skyrl_kernel.plan import make_plan
from skyrl_kernel.slots import BACKENDS
from skyrl_kernel.testing.distributions import make_distribution, on_path
from skyrl_kernel.testing.scripted import Script, ScriptedEngine, ScriptedTrainer, installed

ENGINE = "generator.inference_engine"


def test_it_answers_to_its_own_name_only() -> None:
    assert push.sync_weights("push") is push.push
    assert push.sync_weights("shared") is None


def test_every_tensor_goes_to_the_engine_in_one_transaction() -> None:
    async def use() -> None:
        script = Script()
        engine, trainer = ScriptedEngine(script), ScriptedTrainer(script)
        await push.push(trainer, engine, 4)
        assert engine.version == 4
        assert engine.weight == trainer.weight

    asyncio.run(use())


HOOK = """
from skyrl_kernel.hookspecs import hookimpl

@hookimpl
def make_engine(name): ...
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Engines that say what they can: ``held`` has a copy of the weights, ``served`` an address."""
    offers: Mapping[str, str] = {"held": "receives_weights", "served": "served"}
    for name, what in offers.items():
        make_distribution(
            tmp_path,
            f"skyrl-{name}",
            modules={f"skyrl_{name}": HOOK},
            entry_points={BACKENDS: {name: f"skyrl_{name}"}},
        )
        (tmp_path / f"skyrl_{name}.py").unlink()
        package = tmp_path / f"skyrl_{name}"
        package.mkdir()
        (package / "__init__.py").write_text(HOOK)
        (package / "plugin.toml").write_text(
            f'[{name}]\nsummary = "."\nslots = ["{ENGINE}.backend"]\noffers = ["{what}"]\n'
        )
    return tmp_path


def test_auto_pushes_to_an_engine_that_receives_weights(site: Path) -> None:
    with installed(site / "scripted"), on_path(site):
        plan = make_plan(
            ["scripted"], [], [f"{ENGINE}.backend=held", f"{ENGINE}.weight_sync_backend=auto"]
        )
        assert plan.stages["sync_weights"].provider.name == "push"
        assert plan.config.origins[f"{ENGINE}.weight_sync_backend"] == "auto, for the engine 'held'"
        with pytest.raises(CapabilityError, match="needs 'lends_module'"):
            make_plan(
                ["scripted"], [], [f"{ENGINE}.backend=held", f"{ENGINE}.weight_sync_backend=shared"]
            )


def test_only_an_engine_of_its_own_process_has_an_address(site: Path) -> None:
    address = f"{ENGINE}.external_server_urls=['http://127.0.0.1:1']"
    apart = [f"{ENGINE}.run_engines_locally=false", "trainer.placement.colocate_all=false"]
    with installed(site / "scripted"), on_path(site):
        make_plan(["scripted"], [], [f"{ENGINE}.backend=served", address, *apart])
        with pytest.raises(CapabilityError, match="external_server_urls needs 'served'"):
            make_plan(["scripted"], [], [address, *apart])
