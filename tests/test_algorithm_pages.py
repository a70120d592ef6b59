"""Every algorithm has a page that says what it is set by and what it reports."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from workspace import ROOT, package_folders, project

from skyrl_kernel.plan import make_plan
from skyrl_kernel.plugins import PluginEntry, PluginManager, discover
from skyrl_kernel.slots import ALGORITHMS

FOLDER = ROOT / "docs" / "reference" / "algorithms"
PAGES = sorted(FOLDER.glob("*.md"))
SECTIONS = ("Use it", "Formula", "Differences", "Settings", "Metrics", "Result", "Sources")
GENERAL = {"README.md", "results.md"}
AROUND = {"kl_loss", "kl_in_reward", "entropy_loss", "advantage_batch_normalize", "token_mean"}


def algorithms() -> list[PluginEntry]:
    own = {project(folder)["name"] for folder in package_folders()}
    return [
        entry
        for entry in discover()
        if entry.distribution in own and (entry.group == ALGORITHMS or entry.name in AROUND)
    ]


def page_of(name: str) -> str:
    for page in PAGES:
        text = page.read_text()
        if page.name not in GENERAL and f"`{name}`" in text.partition("\n## ")[0]:
            return text
    raise AssertionError(f"no page introduces `{name}` before its first section")


@pytest.mark.parametrize("entry", algorithms(), ids=lambda entry: entry.name)
def test_every_algorithm_is_introduced_by_a_page(entry: PluginEntry) -> None:
    page_of(entry.name)


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in GENERAL], ids=str)
def test_every_page_has_the_same_sections(page: Path) -> None:
    headings = re.findall(r"^## (.+)$", page.read_text(), re.M)
    assert [heading for heading in headings if heading in SECTIONS] == list(SECTIONS)


@pytest.mark.parametrize("entry", algorithms(), ids=lambda entry: entry.name)
def test_a_page_lists_every_setting_of_its_own_with_its_default(entry: PluginEntry) -> None:
    manager = PluginManager(discover())
    manager.load([entry])
    for path, model in manager.sections().items():
        text = page_of(entry.name)
        for name, field in model.model_fields.items():
            (row,) = re.findall(rf"^\| `{re.escape(path)}\.{name}` \| (.+?) \|", text, re.M)[:1]
            default = "null" if field.default is None else str(field.default).lower()
            assert row.strip("`").lower() == default, (path, name, row)


@pytest.mark.parametrize("entry", algorithms(), ids=lambda entry: entry.name)
def test_a_page_lists_every_metric_of_a_loss(entry: PluginEntry) -> None:
    if "trainer.algorithm.policy_loss_type" not in entry.manifest.slots:
        return
    for name in metrics_of(entry.name):
        name = name if name.startswith("critic/") else f"policy/{name}"
        assert f"`{name}`" in page_of(entry.name), name


def metrics_of(name: str) -> Iterator[str]:
    import torch

    from skyrl_kernel.torch import LossInputs

    words = [f"trainer.algorithm.policy_loss_type={name}", "trainer.algorithm.use_kl_loss=false"]
    plan = make_plan(["dpo" if name == "dpo" else "demo"], overrides=words)
    loss = plan.stages["loss"].value
    count = torch.arange(4)
    half = torch.full((4,), -0.5)
    scores: dict[str, Any] = dict.fromkeys(
        ["old_logprobs", "ref_logprobs", "teacher_logprobs", "sampler_logprobs"], half
    )
    inputs = LossInputs(
        logprobs=half - 0.01 * count,
        entropy=half,
        advantages=half,
        trajectory=count // 2,
        group=count // 4,
        position=count,
        returns=half,
        minibatch={},
        **scores,
    )
    if loss.prepare is not None:
        import dataclasses

        inputs = dataclasses.replace(inputs, minibatch=loss.prepare(inputs))
    yield from loss(inputs).metrics
