"""Which names the adapter answers to, what it refuses at start-up, and whole runs."""

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyrl_gym_adapter.config import SkyrlGymConfig
from skyrl_gym_adapter.envs import InProcessEnv, SandboxedEnv
from skyrl_gym_adapter.plugin import check_env, make_env, target_of, with_max_turns
from skyrl_gym_adapter.workers import close_workers
from skyrl_kernel.errors import ConfigError, UsageError
from skyrl_kernel.run.trajectory_file import read_trajectories
from skyrl_kernel.testing.scripted import Script, installed, read_metrics, run_scripted

ROW = {"reward_spec": {"ground_truth": "7"}}


@pytest.fixture
def settings(folder: Path) -> Callable[..., Any]:
    """The adapter's section of a run's config."""

    def make(**values: Any) -> Any:
        return {SkyrlGymConfig: SkyrlGymConfig(**{"folders": [str(folder)], **values})}

    return make


# --- names -----------------------------------------------------------------------------------


def test_an_installed_env_keeps_its_name_and_a_prefix_asks_for_skyrl_gyms(
    settings: Callable[..., Any],
) -> None:
    assert target_of("multiply") is None
    assert target_of("skyrl-gym:multiply") == "multiply"
    assert target_of("my_module:Maze") == "my_module:Maze"
    ask = {"settings": settings(), "extras": ROW, "max_turns": None}
    assert make_env(name="multiply", **ask) is None
    assert isinstance(make_env(name="skyrl-gym:gsm8k", **ask), InProcessEnv)


@pytest.mark.parametrize(
    ("name", "values", "is_harmless"),
    [
        ("gsm8k", {}, True),
        ("search", {}, True),
        ("lcb", {}, False),
        ("text2sql", {}, False),
        ("searchcode", {}, False),
        ("guessing:Guess", {}, False),
        ("guessing:Guess", {"harmless": ["guessing:Guess"]}, True),
        ("lcb", {"harmless": ["skyrl-gym:lcb"]}, True),
        ("gsm8k", {"ids": {"gsm8k": "guessing:Runs"}}, False),  # another class under a known id
    ],
)
def test_only_what_is_declared_harmless_runs_in_this_process(
    name: str, values: Any, is_harmless: bool, settings: Callable[..., Any]
) -> None:
    row = {**ROW, "reward_spec": {"ground_truth": "[7]"} if name == "lcb" else ROW["reward_spec"]}
    ask = {"settings": settings(**values), "extras": row, "max_turns": None}
    env = make_env(name=f"skyrl-gym:{name}", **ask)
    assert type(env) is (InProcessEnv if is_harmless else SandboxedEnv)


@given(own=st.none() | st.integers(1, 9), cap=st.none() | st.integers(1, 9))
def test_the_class_is_told_the_smaller_of_the_rows_limit_and_the_cap(
    own: int | None, cap: int | None
) -> None:
    told = with_max_turns({"max_turns": own, "a": 1}, cap).get("max_turns")
    limits = [limit for limit in (own, cap) if limit is not None]
    assert told == (min(limits) if limits else None)


def test_an_id_must_name_a_class() -> None:
    with pytest.raises(ValueError, match=r"skyrl_gym\.ids\.maze=maze is no class; write module:Cl"):
        SkyrlGymConfig(ids={"maze": "maze"})


# --- refused at start-up ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("skyrl-gym", {}, "'skyrl-gym' is the adapter and no env. Name one by environment.env_cl"),
        (
            "gsm9k",
            {"harmless": ["gsm9k"]},
            r"no env 'gsm9k'\. Did you mean 'gsm8k'\? Registered: aime, gsm8k, .*"
            r"environment\.skyrl_gym\.ids\.gsm9k=module:Class",
        ),
        (
            "guessing:Guss",
            {"harmless": ["guessing:Guss"]},
            r"'guessing' has no class 'Guss'\. Did you mean 'Guess'\? Its environment classes: .*Runs",
        ),
        ("guessing:not_a_class", {"harmless": ["guessing:not_a_class"]}, "has no class 'not_a_cl"),
        (
            "nowhere:Maze",
            {"harmless": ["nowhere:Maze"]},
            r"'nowhere', which cannot be imported: ModuleNotFoundError.*skyrl_gym\.folders",
        ),
        (
            "maze",
            {"harmless": ["maze"], "modules": ["nowhere"]},
            r"skyrl_gym\.modules names 'nowhere', which cannot be imported",
        ),
        (
            "skyrl-gym:aime",
            {"ids": {"aime": "guessing:Guess"}, "harmless": ["aime"]},
            r"ids\.aime=guessing:Guess, but the id 'aime' is skyrl_gym.* already; register another",
        ),
    ],
)
def test_a_name_that_leads_to_no_class_is_refused(
    name: str, values: Any, message: str, settings: Callable[..., Any]
) -> None:
    with pytest.raises(UsageError, match=message):
        check_env(name=name, settings=settings(**values))


def test_in_the_sandbox_too(settings: Callable[..., Any], bwrap: str) -> None:
    with pytest.raises(
        UsageError,
        match=r"^it cannot be loaded in the sandbox: the module 'guessing' has no class 'Guss'\. Did",
    ):
        check_env(name="guessing:Guss", settings=settings())
    check_env(name="guessing:Guess", settings=settings())
    check_env(name="lcb", settings=settings())


def test_without_bubblewrap_it_says_what_to_install_and_how_to_declare_a_class_harmless(
    settings: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from skyrl_sandbox import require_sandbox

    monkeypatch.setenv("PATH", str(tmp_path))
    require_sandbox.cache_clear()
    try:
        with pytest.raises(
            UsageError,
            match=r"^it was not declared harmless, so it runs in the sandbox\..*no command bwrap is on the PATH.*"
            r"apt-get install bubblewrap.*skyrl_gym\.harmless=\"\['guessing:Guess'\]\"",
        ):
            check_env(name="guessing:Guess", settings=settings())
        check_env(name="skyrl-gym:gsm8k", settings=settings())  # needs none
    finally:
        require_sandbox.cache_clear()


# --- whole runs ------------------------------------------------------------------------------


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Path]:
    with installed(tmp_path / "site") as folder:
        yield folder


def run(
    folder: Path, users: Path, *words: str, reply: str = "7", rows: Sequence[Any] = (ROW,) * 4
) -> Any:
    data = folder / "rows.jsonl"
    lines = [{"prompt": [{"role": "user", "content": "?"}], **row} for row in rows]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run_scripted(
        folder,
        f"data.train_data=['{data}']",
        "data.val_data=[]",
        "trainer.train_batch_size=2",
        "trainer.policy_mini_batch_size=2",
        "generator.n_samples_per_prompt=2",
        f"environment.skyrl_gym.folders=['{users}']",
        *words,
        plugins=["skyrl-gym"],
        script=Script(reply=lambda ask: reply if ask.number % 2 else "1"),
    )


@pytest.mark.parametrize("harmless", ["[]", "['guessing:Guess']"])
def test_a_run_of_two_steps_with_a_users_class(
    harmless: str, tmp_path: Path, folder: Path, site: Path, request: pytest.FixtureRequest
) -> None:
    if harmless == "[]":
        request.getfixturevalue("bwrap")
    result = run(
        tmp_path,
        folder,
        "environment.env_class=guessing:Guess",
        f"environment.skyrl_gym.harmless={harmless}",
        "generator.max_turns=2",
        "environment.max_env_workers=2",
    )
    metrics = read_metrics(result)
    assert [line["step"] for line in metrics if "reward/avg_raw_reward" in line] == [1, 2]
    played = [one for step in (1, 2) for one in read_trajectories(result.folder / "trajectories" / f"step_{step}.parquet")]  # fmt: skip
    assert len(played) == 8
    for one in played:
        said = [turn["action"] for turn in one["turns"]]
        assert [turn["reward"] for turn in one["turns"]] == [float(word == "7") for word in said]
        assert len(said) == (1 if said[0] == "7" else 2)  # generator.max_turns reached the class
        assert one["env_metrics"]["avg_turns"] == len(said)
    assert all(line["failures/trajectories"] == 0 for line in metrics if "failures/trajectories" in line)  # fmt: skip
    assert "environment/avg_turns" in metrics[-1]


def sandboxes(folder: Path) -> list[str]:
    """Commands that are running, and show this folder to a sandbox."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            found.append((process / "cmdline").read_text())
    return [one for one in found if "bwrap" in one and str(folder) in one]


@pytest.mark.slow
def test_a_class_that_hangs_in_the_sandbox_costs_its_trajectories_and_leaves_no_process(
    tmp_path: Path, folder: Path, site: Path, bwrap: str
) -> None:
    close_workers()
    result = run(
        tmp_path,
        folder,
        "environment.env_class=guessing:Hangs",
        "environment.max_env_workers=2",
        "environment.timeout_s=10",
        "trainer.max_failed_frac=1",
        rows=[ROW, ROW, {"reward_spec": {"ground_truth": "0"}}, ROW],
    )
    lost = sum(line.get("failures/timeout", 0) for line in read_metrics(result))
    assert lost == 2  # both trajectories of the one row
    deadline = time.monotonic() + 10  # they end with the process that had started them
    while left := sandboxes(folder):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def test_rows_may_name_classes_beside_installed_envs(
    tmp_path: Path, folder: Path, site: Path
) -> None:
    rows = [{**ROW, "env_class": name} for name in ("skyrl-gym:gsm8k", "mine", "scripted", "mine")]
    rows[2]["answer"] = "1"
    result = run(
        tmp_path,
        folder,
        "environment.skyrl_gym.ids.mine=guessing:Guess",
        "environment.skyrl_gym.harmless=['mine']",
        "environment.env_class=scripted",
        rows=rows,
    )
    assert read_metrics(result)[-1]["failures/trajectories"] == 0


def test_a_setting_without_the_plugin_is_explained(tmp_path: Path, site: Path) -> None:
    with pytest.raises(ConfigError, match=r"belongs to the plugin 'skyrl-gym'.*--plugin skyrl-gym"):
        run_scripted(tmp_path, "environment.skyrl_gym.harmless=['x']")
