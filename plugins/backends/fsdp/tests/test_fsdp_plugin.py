import subprocess
import sys
import tomllib
from importlib.resources import files
from pathlib import Path

import pytest
from pydantic import BaseModel

from skyrl_fsdp import plugin
from skyrl_fsdp.config import FsdpConfig
from skyrl_fsdp.trainer import FsdpTrainer
from skyrl_kernel.config.trainer import TrainerConfig


class Sections(dict[type[BaseModel], BaseModel]):
    """Settings as the kernel hands them out: a section by its class."""


def test_the_plugin_module_loads_neither_torch_nor_transformers() -> None:
    code = "import sys, skyrl_fsdp.plugin; print({'torch', 'transformers'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"


def test_plugin_toml_names_what_the_hooks_provide() -> None:
    text = files("skyrl_fsdp").joinpath("plugin.toml").read_text(encoding="utf-8")
    entry = tomllib.loads(text)[plugin.NAME]
    assert entry["slots"] == ["trainer.strategy"]
    assert entry["config"] == list(plugin.config_sections())
    assert entry["preset"] == {"trainer.strategy": plugin.NAME}


def test_the_trainer_is_made_by_its_name_alone(llama: Path) -> None:
    sections = Sections()
    sections[TrainerConfig] = TrainerConfig(bf16=False)
    sections[FsdpConfig] = FsdpConfig(device="cpu")
    assert plugin.make_trainer("megatron", sections, {}, 10, ()) is None
    trainer = plugin.make_trainer("fsdp", sections, {"policy": llama}, 10, ())
    assert isinstance(trainer, FsdpTrainer)
    assert trainer.module("policy").device.type == "cpu"


def test_another_device_is_refused_with_the_ones_that_exist() -> None:
    with pytest.raises(ValueError, match="'auto', 'cpu' or 'cuda'"):
        FsdpConfig(device="tpu")
