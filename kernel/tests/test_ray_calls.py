"""Waiting for processes of which one hangs, and nobody with a deadline waits for it."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from skyrl_kernel.logs import logging_to
from skyrl_kernel.ray import calls
from skyrl_kernel.ray.errors import Process

pytestmark = pytest.mark.usefixtures("fakes_on_ray")
NAMES = [
    Process(name="trainer rank 0", where="node-0"),
    Process(name="critic rank 0", where="node-1"),
]


class Part:
    """The only rank of a model."""

    def update(self, seconds: float) -> float:
        time.sleep(seconds)
        return seconds


@pytest.fixture(scope="module")
def parts(fakes_on_ray: Path) -> Iterator[list[Any]]:
    actors = [ray.remote(Part).options(num_cpus=0).remote() for _ in NAMES]
    ray.get([actor.update.remote(0) for actor in actors])
    yield actors
    for actor in actors:
        ray.kill(actor)


def asked(parts: list[Any], *seconds: float) -> list[Any]:
    return [part.update.remote(of) for part, of in zip(parts, seconds, strict=True)]


def warnings(folder: Path) -> list[str]:
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [line["event"] for line in lines if line["level"] == "warning"]


def test_who_gives_no_answer_for_long_is_named_and_waited_for(
    parts: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(calls, "LONG_S", 0.5)
    with logging_to(tmp_path):
        assert calls.get_all(asked(parts, 2.5, 0), NAMES) == [2.5, 0]
    told = warnings(tmp_path)
    assert [line.partition(". ")[0] for line in told] == [
        f"trainer rank 0 on node-0: no answer for {seconds} s" for seconds in ("0.5", "1", "2")
    ]
    assert all("end the run with Ctrl-C" in line for line in told)


def test_where_the_wait_has_an_end_that_is_told_and_nothing_else(
    parts: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(calls, "LONG_S", 0.5)
    with (
        logging_to(tmp_path),
        pytest.raises(TimeoutError, match=r"^critic rank 0 on node-1: no answer in 0\.3 s"),
    ):
        calls.get_all(asked(parts, 0, 1.5), NAMES, within_s=0.3)
    assert warnings(tmp_path) == []
