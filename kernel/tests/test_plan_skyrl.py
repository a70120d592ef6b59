"""Plans of launch scripts that ask for more than there is."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from skyrl_kernel.cli.show import describe_plan
from skyrl_kernel.config.compat import table
from skyrl_kernel.errors import ConfigError
from skyrl_kernel.plan import Plan, make_plan
from skyrl_kernel.plugins import discover
from skyrl_kernel.slots import BACKENDS
from skyrl_kernel.testing.distributions import make_distribution, on_path
from skyrl_kernel.testing.scripted import installed

ENGINE = "generator.inference_engine"


@pytest.fixture(scope="module", autouse=True)
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with installed(tmp_path_factory.mktemp("site")) as folder:
        discover(refresh=True)
        yield folder


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in table().variables:
        monkeypatch.delenv(name, raising=False)


def plan(*overrides: str, dry_run: bool = True) -> Plan:
    return make_plan(("scripted",), [], overrides, allow_not_yet=dry_run)


def test_a_run_names_what_it_does_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    assert plan(dry_run=False).notes == []
    monkeypatch.setenv("SKYRL_DISABLE_SPEC", "1")
    monkeypatch.setenv("SWANLAB_API_KEY", "0123456789abcdef")
    made = plan("generator.batched=true", f"{ENGINE}.enable_pd=false", dry_run=False)
    assert made.notes == [
        f"not read here: generator.batched=true, {ENGINE}.enable_pd=false, SKYRL_DISABLE_SPEC; --dry-run says why"
    ]


def test_a_dry_run_begins_with_what_is_missing_and_what_is_not_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert describe_plan(plan()).startswith("config (defaults last)\n")
    monkeypatch.setenv("SWANLAB_API_KEY", "0123456789abcdef")
    text = describe_plan(plan("generator.batched=true", *NOT_YET))
    assert text.splitlines()[:7] == [
        "not built yet (docs/roadmap.md): without --dry-run refused",
        f"  {ENGINE}.speculative_config.method=eagle (command line): an engine samples token by token",
        "  trainer.policy.record_memory=true (command line): the time of every stage is measured (timing/…), memory and kernels are not",
        "not read",
        "  generator.batched=true (command line): every trajectory is played by itself, turn by turn, and "
        "the engine batches their requests; the samples are the same",
        "environment variables not read",
        "  SWANLAB_API_KEY=*** (environment): no plugin here writes to SwanLab",
    ]


def test_a_dry_run_shows_which_processes_there_will_be(monkeypatch: pytest.MonkeyPatch) -> None:
    def shown(*overrides: str) -> list[str]:
        text = describe_plan(plan(*overrides))
        _, title, rest = text.partition("\nprocesses\n")
        return [line.strip() for line in rest.partition("\nobservers")[0].splitlines() if title]

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert shown() == []
    two = ("trainer.placement.policy_num_gpus_per_node=2", f"{ENGINE}.num_engines=2")
    assert shown(*two) == [
        "ray: the run's own, on this machine",
        "ranks of the trainer: 1 × 2",
        "engines: 2, on the trainer's devices",
    ]
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    apart = ("trainer.placement.colocate_all=false", "trainer.placement.colocate_policy_ref=false")
    others = ("trainer.placement.ref_num_nodes=2", "trainer.placement.critic_num_gpus_per_node=4")
    both = ("trainer.algorithm.use_kl_loss=true", "trainer.algorithm.advantage_estimator=gae")
    cluster = "ray: the cluster RAY_ADDRESS=10.0.0.1:6379"
    ranks, engines = "ranks of the trainer: 1 × 2", "engines: 2, on devices of their own"
    assert shown(*two, *apart, *others, *both) == [
        cluster,
        ranks,
        "of the critic: 1 × 4",
        "of the reference: 2 × 1",
        engines,
    ]
    assert shown(*two, *apart, *others) == [cluster, ranks, engines]


NOT_YET = (
    f"{ENGINE}.speculative_config.method=eagle",
    "trainer.policy.record_memory=true",
)


def test_what_an_engine_offers_is_not_asked_of_the_one_that_stands_in_for_it() -> None:
    truncated = "generator.sampling_params.top_p=0.9"
    ahead = "trainer.fully_async.enabled=true"
    made = plan(f"{ENGINE}.backend=sglang", truncated, ahead)
    assert made.tree.generator.inference_engine.backend == "transformers"
    with pytest.raises(ConfigError, match="top_p truncates what is sampled in training"):
        plan(truncated)


def test_a_plugin_fills_the_slot_of_a_name_that_skyrl_has(tmp_path: Path) -> None:
    make_distribution(
        tmp_path,
        "skyrl-own-sglang",
        modules={"skyrl_own_sglang": HOOK},
        entry_points={BACKENDS: {"sglang": "skyrl_own_sglang"}},
    )
    with on_path(tmp_path):
        made = plan(f"{ENGINE}.backend=sglang", dry_run=False)
    assert made.selected("sglang", BACKENDS)
    assert made.config.not_yet == ()


HOOK = """
from skyrl_kernel.hookspecs import hookimpl

@hookimpl
def make_engine(name): ...
"""
