"""Weights that go from a trainer's processes to engines past Ray, with fakes whose servers are folders."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from skyrl_kernel.cli import skyrl
from skyrl_kernel.errors import CapabilityError, WeightSyncError
from skyrl_kernel.plan import make_plan
from skyrl_kernel.plugins import discover
from skyrl_kernel.runner import RunResult
from skyrl_kernel.slots import BACKENDS, PLUGINS
from skyrl_kernel.testing.distributions import make_distribution
from skyrl_kernel.testing.scripted import read_metrics, run_scripted

ENGINE = "generator.inference_engine"
RAY = ("trainer.runtime=ray", f"{ENGINE}.backend=shelf")
PLACEMENT = "trainer.placement"
TWO_RANKS = f"{PLACEMENT}.policy_num_gpus_per_node=2"

SHELF = '''
"""An engine whose server is a folder: whoever has its address may put a weight there, and a version."""

import asyncio
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from skyrl_kernel.config.generator import GeneratorConfig
from skyrl_kernel.errors import WeightSyncError
from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.testing.scripted import Script, ScriptedEngine

FILE, HEARD, HELD = "weight.json", "heard.txt", "held.txt"
SHELVES = Path(__file__).parent.parent / "shelves"


class Shelf(ScriptedEngine):
    lockstep = False

    def __init__(self, addresses):
        super().__init__(Script())
        self.addresses = addresses

    async def finish_update(self, version):
        await super().finish_update(version)
        for address in self.addresses:
            place = Path(address)
            (place / FILE).write_text(json.dumps({"weight": self.weight, "version": version}))
            if rank := os.environ.get("RANK"):
                how = "" if (place / HELD).exists() else " while it was not held"
                with (place / HEARD).open("a") as heard:
                    heard.write(f"version {version} from rank {rank}{how}\\n")

    async def hold(self):
        (address,) = self.addresses
        (Path(address) / HELD).touch()

    async def adopt(self, version):
        (address,) = self.addresses
        place = Path(address) / FILE
        found = json.loads(place.read_text()) if place.exists() else {"version": 0, "weight": 0.0}
        if found["version"] != version:
            raise WeightSyncError(f"it has version {found['version']}, not {version}")
        self.weight, self.version = found["weight"], version
        (Path(address) / HELD).unlink()


@hookimpl
def make_engine(name, settings):
    urls = settings[GeneratorConfig].inference_engine.external_server_urls
    if name != "shelf":
        return None
    SHELVES.mkdir(exist_ok=True)
    return Shelf(urls or [tempfile.mkdtemp(dir=SHELVES)])


@dataclass
class Put:
    name: str

    async def __call__(self, trainer, engine, version):
        if self.name == "full" and version == 1:
            raise WeightSyncError("the shelf is full")
        if self.name == "hangs":
            await asyncio.sleep(3600)
        if self.name == "lazy":
            engine.version = version  # and nothing is put there
            return
        await engine.begin_update(version)
        weights = trainer.weights()
        await engine.apply_update([("weight", [7.0])] if self.name == "wrong" else weights)
        await engine.finish_update(version)


@hookimpl
def sync_weights(name):
    return Put(name) if name in ("put", "full", "lazy", "wrong", "hangs", "put_each") else None
'''
_OFFERS = ["served", "receives_weights", "takes_shelves", "exact_logprobs", "sleeps"]
_NEEDS = {
    name: ["receives_weights", "takes_shelves"]
    for name in ("put", "full", "lazy", "wrong", "hangs")
}
_NEEDS["put_each"] = [*_NEEDS["put"], "same_gpu"]
MANIFEST = f"""
[shelf]
summary = "An engine whose server is a folder."
slots = ["{ENGINE}.backend"]
offers = {_OFFERS}
""" + "".join(
    f"""
[{name}]
summary = "Puts weights there."
slots = ["{ENGINE}.weight_sync_backend"]
needs = {needs}
"""
    for name, needs in _NEEDS.items()
)


@pytest.fixture(scope="module", autouse=True)
def site(fakes_on_ray: Path) -> Path:
    """Where the shelf stands beside the other fakes."""
    make_distribution(
        fakes_on_ray,
        "skyrl-shelf",
        modules={"skyrl_shelf.plugin": SHELF},
        files={"skyrl_shelf/plugin.toml": MANIFEST},
        entry_points={
            BACKENDS: {"shelf": "skyrl_shelf.plugin"},
            PLUGINS: dict.fromkeys(_NEEDS, "skyrl_shelf.plugin"),
        },
    )
    discover(refresh=True)
    return fakes_on_ray


def run(tmp_path: Path, sync: str, *words: str) -> RunResult:
    return run_scripted(
        tmp_path,
        *RAY,
        f"{ENGINE}.weight_sync_backend={sync}",
        "trainer.max_training_steps=2",
        *words,
    )


def heard_by_engines(site: Path) -> list[list[str]]:
    """What came to each server, then forgotten; in the order of who brought it."""
    found = []
    for shelf in (site / "shelves").iterdir():
        heard = shelf / "heard.txt"
        if heard.exists():
            found.append(heard.read_text().splitlines())
            heard.unlink()
    return sorted(found)


def from_rank(rank: int) -> list[str]:
    return [f"version {version} from rank {rank}" for version in (0, 1, 2)]


APART = (f"{PLACEMENT}.colocate_all=false", f"{ENGINE}.num_engines=2")


def test_the_first_rank_brings_weights_to_the_servers_of_all_engines(
    site: Path, tmp_path: Path
) -> None:
    several = run(tmp_path / "several", "put", TWO_RANKS, *APART)
    assert heard_by_engines(site) == [from_rank(0)] * 2
    alone = run(tmp_path / "alone", "push", "trainer.runtime=local")
    for found, expected in zip(read_metrics(several), read_metrics(alone), strict=True):
        assert found == pytest.approx(expected, rel=1e-12, abs=1e-15)  # sums in another order


def test_on_one_device_each_rank_brings_them_to_its_own_engine(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trainer and engine take turns there, on processors that are called GPUs."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    run(tmp_path, "put_each", TWO_RANKS, f"{ENGINE}.num_engines=2")
    assert heard_by_engines(site) == [from_rank(0), from_rank(1)]


@pytest.mark.slow
def test_what_a_rank_cannot_bring_ends_the_run_with_its_name(site: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightSyncError, match=r"^trainer rank 0 on .*: the shelf is full$"):
        run(tmp_path, "full", TWO_RANKS, *APART)
    assert heard_by_engines(site) == [from_rank(0)[:1]] * 2


def test_weights_that_were_not_brought_are_noticed_by_their_version(tmp_path: Path) -> None:
    with pytest.raises(WeightSyncError, match=r"^engine 0 on .*: it has version 0, not 1"):
        run(tmp_path, "lazy")


@pytest.mark.slow
def test_a_rank_that_hangs_ends_the_run_at_the_deadline(tmp_path: Path) -> None:
    with pytest.raises(
        WeightSyncError, match=r"by 'hangs' was not done within .*weight_sync_timeout_s=2 s"
    ):
        run(tmp_path, "hangs", f"{ENGINE}.weight_sync_timeout_s=2")


@pytest.mark.slow
def test_other_weights_under_the_right_version_are_noticed_by_what_they_compute(
    tmp_path: Path,
) -> None:
    with pytest.raises(WeightSyncError, match=r"differ by .* nats on the same tokens"):
        run(tmp_path, "wrong", "trainer.bf16=false")


def test_an_engine_without_a_server_is_refused() -> None:
    words = ["trainer.runtime=ray", "trainer.strategy=fsdp", f"{ENGINE}.weight_sync_backend=shared"]
    with pytest.raises(CapabilityError, match=r"=shared needs .*; use .*=auto, which pushes"):
        make_plan(["scripted"], overrides=[*words, f"{ENGINE}.backend=transformers"])


@pytest.mark.slow
def test_a_checkpoint_is_evaluated_with_weights_that_a_rank_has_brought(
    site: Path, tmp_path: Path
) -> None:
    trained = run(tmp_path, "put")
    heard_by_engines(site)
    done = CliRunner().invoke(skyrl, ["eval", str(trained.folder), "--json"])
    assert done.exit_code == 0, done.output
    assert heard_by_engines(site) == [["version 2 from rank 0"]]
