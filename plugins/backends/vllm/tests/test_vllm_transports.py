"""The trainer's half of each transport alone: layout, files, addresses, and which one a run takes."""

import asyncio
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import xxhash
from safetensors.torch import load_file

from skyrl_kernel.errors import CapabilityError, WeightSyncError
from skyrl_kernel.plan import make_plan
from skyrl_kernel.testing.distributions import make_distribution, on_path
from skyrl_kernel.transport import RankSync
from skyrl_vllm.fleet import Fleet
from skyrl_vllm.layout import Layout, copy_bytes, in_order
from skyrl_vllm.network import own_address
from skyrl_vllm.testing import NOWHERE
from skyrl_vllm.transports import files as files_module
from skyrl_vllm.transports import missing_half, parcels, server_flags, server_variables
from skyrl_vllm.transports.files import Files
from skyrl_vllm.transports.parcels import Parcels
from skyrl_vllm.updates import _is_finite

HAS_VLLM = importlib.util.find_spec("vllm") is not None
NEEDS_VLLM = pytest.mark.skipif(not HAS_VLLM, reason="vLLM is not installed here")
MIXED = [
    ("half", torch.tensor([1.5, -2.0, 0.25], dtype=torch.bfloat16)),
    ("scalar", torch.tensor(3.0)),
    ("empty", torch.zeros(0, 4)),
    ("turned", torch.arange(6.0).view(2, 3).T),
]


# --- layout ------------------------------------------------------------------------------------------


def test_a_layout_is_the_header_of_a_safetensors_file() -> None:
    """Wide numbers first: 4 + 0 + 24 bytes of float32, then 3 x 2 of bfloat16."""
    layout = Layout.of(in_order(MIXED))
    assert layout.header() == {
        "scalar": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]},
        "empty": {"dtype": "F32", "shape": [0, 4], "data_offsets": [4, 4]},
        "turned": {"dtype": "F32", "shape": [3, 2], "data_offsets": [4, 28]},
        "half": {"dtype": "BF16", "shape": [3], "data_offsets": [28, 34]},
    }
    assert layout.size == 34
    assert Layout.of_header(layout.header()) == layout
    assert len(layout.head()) % 64 == 0


def test_bytes_that_were_copied_are_the_tensors_again() -> None:
    tensors = in_order(MIXED)
    layout = Layout.of(tensors)
    data = torch.zeros(layout.size, dtype=torch.uint8)
    checksum = xxhash.xxh3_64()
    for place, (_, tensor) in zip(layout.places, tensors, strict=True):
        copy_bytes(tensor, data[place.start : place.stop], checksum)
    assert checksum.digest() == xxhash.xxh3_64_digest(data.numpy())
    for (name, tensor), (again, view) in zip(tensors, layout.views(data), strict=True):
        assert name == again
        assert view.dtype == tensor.dtype
        assert torch.equal(view, tensor)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, "gaps"),
        ({"a": {"dtype": "F32", "shape": [1]}}, "KeyError: 'data_offsets'"),
        ({"a": 3}, "TypeError"),
    ],
)
def test_a_header_that_describes_something_else_is_refused(
    header: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Layout.of_header(header)


@pytest.mark.parametrize(
    ("dtype", "shape", "message"),
    [("I64", [1], "'a' holds I64; known: F64, F32, BF16, F16"), ("F32", [3], "'a': shape")],
)
def test_what_cannot_be_weights_is_not_viewed(dtype: str, shape: list[int], message: str) -> None:
    header = {"a": {"dtype": dtype, "shape": shape, "data_offsets": [0, 8]}}
    with pytest.raises(ValueError, match=message):
        Layout.of_header(header).views(torch.zeros(8, dtype=torch.uint8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_are_finite_if_all_of_them_are(dtype: torch.dtype) -> None:
    """600 x 600 = 360000 is more than float16 has; the terms are not."""
    good = torch.full((600,), 600.0, dtype=dtype)
    assert _is_finite(good)
    for bad in (float("nan"), float("inf"), -float("inf")):
        broken = good.clone()
        broken[77] = bad
        assert not _is_finite(broken)
    both = good.clone()
    both[0], both[1] = float("inf"), -float("inf")
    assert not _is_finite(both)


# --- files -------------------------------------------------------------------------------------------


def written(transport: Files, tensors: list[tuple[str, torch.Tensor]]) -> dict[str, Any]:
    return transport._write(0, in_order(tensors))


def test_a_file_is_read_by_safetensors(tmp_path: Path) -> None:
    transport = Files(tmp_path)
    parcel = written(transport, MIXED)
    content = Path(parcel["path"]).read_bytes()
    assert len(content) == parcel["size"]
    assert xxhash.xxh3_64_hexdigest(content) == parcel["xxh3"]
    loaded = load_file(parcel["path"])
    assert set(loaded) == {name for name, _ in MIXED}
    for name, tensor in MIXED:
        assert torch.equal(loaded[name], tensor)
    transport.close()
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_written_over_while_its_size_stays(tmp_path: Path) -> None:
    transport = Files(tmp_path)
    first = written(transport, [("a", torch.ones(8))])
    second = written(transport, [("a", torch.zeros(8))])
    assert first["path"] == second["path"]
    assert first["xxh3"] != second["xxh3"]
    other = written(transport, [("a", torch.ones(80))])
    assert other["path"] != first["path"]
    assert not Path(first["path"]).exists()
    transport.close()


def test_no_more_tensors_than_one_parcel_are_whole_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of 4 bytes each in parcels of 8: a trainer of several ranks makes each when it is read."""
    made: list[str] = []
    sent: list[tuple[list[str], int]] = []

    class Noting(Parcels):
        async def send(self, tensors: Sequence[tuple[str, torch.Tensor]]) -> None:
            sent.append(([name for name, _ in tensors], len(made)))

    def weights() -> Iterator[tuple[str, torch.Tensor]]:
        for name in "abcde":
            made.append(name)
            yield name, torch.zeros(1)

    async def main() -> None:
        noting = Noting()
        await noting.open(Fleet([NOWHERE]))
        await noting.move(weights())
        noting.close()

    monkeypatch.setattr(parcels, "PARCEL_BYTES", 8)
    asyncio.run(main())
    assert sent == [(["a", "b"], 2), (["c", "d"], 4), (["e"], 5)]


def test_what_a_killed_run_left_is_removed_and_what_a_live_one_has_is_not(tmp_path: Path) -> None:
    script = (
        "import sys, time, torch; from pathlib import Path\n"
        "from skyrl_vllm.transports.files import Files\n"
        f"kept = Files(Path({str(tmp_path)!r})); print(kept._write(0, [('a', torch.ones(8))])['path'])\n"
        "sys.stdout.flush(); time.sleep(600)"
    )
    run = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    path = Path(run.stdout.readline().strip())
    files_module._remove_leftovers(tmp_path)
    assert path.exists()
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    run.stdout.close()
    files_module._remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_weights_that_fit_nowhere_are_refused_with_the_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A pebibyte more than there is: the system itself says no."""
    transport = Files()
    small, large = tmp_path / "small", tmp_path / "large"
    small.mkdir()
    large.mkdir()
    transport._roots = [small, large]
    with pytest.raises(WeightSyncError, match=r"1073741824 MiB .* do not fit .*small .*MiB free"):
        transport._new(2**50)
    assert not list(tmp_path.rglob("*.safetensors"))

    allocate = os.posix_fallocate

    def full(descriptor: int, offset: int, size: int) -> None:
        allocate(
            descriptor,
            offset,
            2**50 if "small" in os.readlink(f"/proc/self/fd/{descriptor}") else size,
        )

    monkeypatch.setattr(os, "posix_fallocate", full)
    parcel = written(transport, MIXED)
    assert Path(parcel["path"]).is_relative_to(large)
    transport.close()


# --- over the network --------------------------------------------------------------------------------


def test_a_server_of_this_machine_sees_it_on_loopback() -> None:
    assert own_address("127.0.0.1") == "127.0.0.1"


# --- which one -----------------------------------------------------------------------------------------

ENGINE = "generator.inference_engine"
ELSEWHERE = [
    f"{ENGINE}.run_engines_locally=false",
    f"{ENGINE}.external_server_urls=[http://192.0.2.1:8000]",
    "trainer.placement.colocate_all=false",
]


TWO_RANKS = "trainer.placement.policy_num_gpus_per_node=2"


@pytest.mark.parametrize(
    ("gpus", "words", "chosen"),
    [
        ("", [], "safetensors"),
        ("", ELSEWHERE, "gloo"),
        ("0,1", ELSEWHERE, "gloo"),
        # Those between GPUs have run on none yet, so they are taken by name only.
        ("0", [], "safetensors"),
        ("0,1", ["trainer.placement.colocate_all=false"], "safetensors"),
    ],
)
def test_auto_takes_the_nearest(
    monkeypatch: pytest.MonkeyPatch, gpus: str, words: list[str], chosen: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
    plan = make_plan(["demo"], [], [f"{ENGINE}.backend=vllm", *words])
    assert plan.stages["sync_weights"].provider.name == chosen
    assert plan.tree.generator.inference_engine.weight_sync_backend == chosen


@pytest.mark.parametrize(
    ("gpus", "words", "lacking"),
    [
        ("", ["nccl"], "'nccl' .* needs an NVIDIA GPU"),
        ("", ["cuda_ipc"], "'cuda_ipc' .* needs an engine on the trainer's NVIDIA GPU"),
        (
            "",
            ["safetensors", *ELSEWHERE],
            "'safetensors' .* needs an engine on the trainer's machine",
        ),
        # An engine over both GPUs shares one with each of two ranks, and its memory with neither.
        (
            "0,1",
            ["nccl", f"{ENGINE}.tensor_parallel_size=2", TWO_RANKS],
            "'nccl' .* needs an NVIDIA GPU",
        ),
    ],
)
def test_a_transport_that_cannot_reach_the_engine_is_missing_before_the_run(
    monkeypatch: pytest.MonkeyPatch, gpus: str, words: list[str], lacking: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
    name, *more = words
    words = [f"{ENGINE}.backend=vllm", f"{ENGINE}.weight_sync_backend={name}", *more]
    missing = "\n".join(make_plan(["demo"], [], words).missing)
    assert re.search(f"{lacking}.*weight_sync_backend=auto takes the best that it has", missing)


@pytest.mark.parametrize(
    ("words", "by_each"),
    [
        (["gloo"], False),
        (["safetensors", "trainer.placement.colocate_all=false"], False),
        (["nccl", "trainer.placement.colocate_all=false"], False),
        (["nccl"], True),
        (["cuda_ipc"], True),
    ],
)
def test_between_processes_the_first_rank_carries_or_each_to_its_own_gpu(
    monkeypatch: pytest.MonkeyPatch, words: list[str], by_each: bool
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    name, *more = words
    more += [TWO_RANKS, f"{ENGINE}.num_engines=2", f"{ENGINE}.weight_sync_backend={name}"]
    plan = make_plan(["demo"], [], [f"{ENGINE}.backend=vllm", *more])
    assert plan.rank_sync == RankSync(name=name, by_each=by_each, is_adapter=False)


def test_a_transport_into_vllm_needs_vllm() -> None:
    with pytest.raises(CapabilityError, match="needs 'vllm_weight_transfer'"):
        make_plan(["demo"], [], [f"{ENGINE}.weight_sync_backend=gloo"])


@pytest.mark.parametrize(
    ("name", "colocated", "backend"),
    [
        ("auto", True, "skyrl"),
        ("gloo", False, "skyrl"),
        ("nccl", False, "nccl"),
        ("nccl", True, "ipc"),
        ("cuda_ipc", True, "ipc"),
        ("mine", True, "mine"),
    ],
)
def test_a_server_is_started_for_its_transport(name: str, colocated: bool, backend: str) -> None:
    flags = server_flags(name, colocated=colocated)
    assert flags == ["--weight-transfer-config", json.dumps({"backend": backend})]
    assert bool(server_variables(name, colocated=colocated)) == (backend == "ipc")


@pytest.mark.parametrize(
    ("points", "is_there"),
    [
        ({}, False),
        ({"vllm.general_plugins": {"another": "skyrl_mail"}}, True),  # of the same distribution
    ],
)
def test_a_transport_that_vllm_has_no_half_of_is_missing_before_the_run(
    tmp_path: Path, points: dict[str, dict[str, str]], is_there: bool
) -> None:
    with on_path(tmp_path):
        make_distribution(
            tmp_path, "skyrl-mail", entry_points={"skyrl.plugins": {"mail": "skyrl_mail"}, **points}
        )
        lacking = missing_half("mail")
    assert is_there == (not lacking)
    assert all("takes push, safetensors, gloo, adapters, nccl, cuda_ipc" in one for one in lacking)
    for own in ("auto", "push", "safetensors", "gloo", "adapters", "nccl", "cuda_ipc"):
        assert not missing_half(own)
