"""Ray reads some of its settings when a test module imports it, so they are made before."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from skyrl_kernel.ray.environment import prepare
from skyrl_kernel.testing.scripted import installed

prepare()


@pytest.fixture(scope="module")
def fakes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The fakes, in processes of Ray too, if it is started afterwards."""
    with (
        installed(tmp_path_factory.mktemp("site")) as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        path = os.environ.get("PYTHONPATH", "")
        patch.setenv("PYTHONPATH", f"{folder}{os.pathsep}{path}".rstrip(os.pathsep))
        yield folder


@pytest.fixture(scope="module")
def fakes_on_ray(fakes: Path) -> Iterator[Path]:
    """They, and a Ray that all runs of a module find and leave alone."""
    from skyrl_kernel.ray.cluster import Cluster

    cluster = Cluster(num_cpus=8)
    try:
        yield fakes
    finally:
        cluster.close()
