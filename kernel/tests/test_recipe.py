"""Recipes: what a process needs to make its part of a run."""

import pickle
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from skyrl_kernel.config import GeneratorConfig, TrainerConfig
from skyrl_kernel.defaults.local import Local
from skyrl_kernel.plan import Plan, make_plan
from skyrl_kernel.recipe import EngineRecipe, PortableSettings, TrainerRecipe
from skyrl_kernel.testing.scripted import ScriptedConfig, ScriptedEngine, ScriptedTrainer, installed


@pytest.fixture(scope="module", autouse=True)
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with installed(tmp_path_factory.mktemp("site")) as folder:
        yield folder


def planned(*overrides: str) -> Plan:
    return make_plan(["scripted"], overrides=overrides)


def travelled(recipe: TrainerRecipe) -> TrainerRecipe:
    """As another process gets it: no manager, and no section that nobody asks for."""
    found = pickle.loads(pickle.dumps(recipe))
    assert found._manager is None
    assert isinstance(found, TrainerRecipe)
    return found


def test_the_local_runtime_makes_things_here(tmp_path: Path) -> None:
    plan, runtime = planned(), Local()
    engine = runtime.start_engine(EngineRecipe.of(plan, tmp_path))
    trainer = runtime.start_trainer(TrainerRecipe.of(plan, {"policy": tmp_path}, 3))
    assert isinstance(engine, ScriptedEngine)
    assert isinstance(trainer, ScriptedTrainer)
    runtime.close()


def test_a_recipe_makes_the_same_elsewhere_with_the_plugins_of_its_lock_alone(
    tmp_path: Path,
) -> None:
    plan = planned("trainer.algorithm.use_kl_loss=true", "trainer.algorithm.kl_loss_coef=0.25")
    recipe = travelled(TrainerRecipe.of(plan, {"policy": tmp_path}, 3))
    assert isinstance(recipe.make(), ScriptedTrainer)
    loaded = {entry.qualified for entry in recipe.manager.entries}
    assert loaded == {"backend/scripted", "algorithm/scripted", "plugin/kl_loss"}
    assert loaded < {entry.qualified for entry in plan.manager.entries}


def test_the_loss_is_built_anew_with_all_that_is_around_it(tmp_path: Path) -> None:
    plan = planned(
        "trainer.algorithm.use_kl_loss=true",
        "trainer.algorithm.kl_loss_coef=0.25",
        "trainer.algorithm.use_entropy_loss=true",
    )
    here = plan.stages["loss"].value
    there = travelled(TrainerRecipe.of(plan, {"policy": tmp_path}, 3)).loss()
    assert there.coefficients == here.coefficients
    assert there.coefficients["kl"] == 0.25
    assert (there.needs, there.atom) == (here.needs, here.atom)


def test_settings_that_travel_are_the_same_and_name_a_plugin_that_is_missing(
    tmp_path: Path,
) -> None:
    plan = planned("generator.n_samples_per_prompt=7")
    settings = pickle.loads(pickle.dumps(PortableSettings(plan.config)))
    assert settings[GeneratorConfig] == plan.config[GeneratorConfig]
    assert settings[TrainerConfig] == plan.config[TrainerConfig]
    assert settings[ScriptedConfig] == plan.config[ScriptedConfig]

    class Other(ScriptedConfig): ...

    with pytest.raises(KeyError, match=r"the plugin that owns it \(\w+\) is not selected"):
        settings[Other]


def test_a_section_is_read_only_where_somebody_asks_for_it(tmp_path: Path) -> None:
    """An engine's process need not have the packages of envs: their sections stay unread."""
    plan = planned()
    engine = EngineRecipe.of(plan, tmp_path)
    assert "algorithm" not in {record["kind"] for record in engine.lock}
    carried = pickle.dumps(PortableSettings(plan.config))
    module = sys.modules.pop("skyrl_kernel.testing.scripted")
    try:
        assert pickle.loads(carried)[TrainerConfig] == plan.config[TrainerConfig]
        assert "skyrl_kernel.testing.scripted" not in sys.modules
    finally:
        sys.modules["skyrl_kernel.testing.scripted"] = module
