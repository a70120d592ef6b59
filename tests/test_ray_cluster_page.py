"""docs/how-to/cluster.md: what it shows for machines that are not here is at least well formed.

Scripts parse, the commands that they call take these options, the launch scripts accept the
settings, and the image has what is run in it.
"""

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pages
import pytest
import yaml
from running import skyrl
from test_launch_scripts import words_of
from workspace import ROOT

PAGE = ROOT / "docs" / "how-to" / "cluster.md"
FILES = pages.files(PAGE)
SCRIPTS = [name for name in FILES if name.endswith((".sh", ".sbatch"))]
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def lines(text: str) -> list[str]:
    """Commands of a script, each on one line."""
    return [line.strip() for line in re.sub(r"\\\n\s*", "", text).splitlines() if line.strip()]


def entrypoints() -> dict[str, str]:
    """The lines that start a run."""
    job, anyscale = (yaml.safe_load(FILES[name]) for name in ("rayjob.yaml", "job.yaml"))
    found = {"rayjob.yaml": job["spec"]["entrypoint"], "job.yaml": anyscale["entrypoint"]}
    for name in ("run.sh", "skyrl.sbatch", "uv.sh", "image.sh"):
        (line,) = [one for one in lines(FILES[name]) if "run_gsm8k.sh" in one or "skyrl run" in one]
        found[name] = line
    return found


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    return tmp_path


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_is_bash(name: str) -> None:
    done = subprocess.run(["bash", "-n"], input=FILES[name], text=True, capture_output=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", entrypoints())
def test_what_starts_a_run_is_accepted(name: str, home: Path) -> None:
    line = entrypoints()[name].replace("/opt/skyrl/", "")
    line = line.replace("$SLURM_NNODES", "2").replace("env RAY_ADDRESS=auto", "")
    line = re.sub(r"^(uv|docker) run .*?(?=skyrl run)", "", line)
    done = skyrl(*words_of(line, home), "--dry-run")
    assert done.code == 0, done.err
    assert "trainer.runtime = 'ray'" in done.out or name == "image.sh"


def test_ray_start_and_its_relatives_take_these_options() -> None:
    pytest.importorskip("ray")
    from ray.scripts.scripts import cli

    called = re.findall(r"^.*?\b(ray [a-z-]+(?: --?[^&|>\n]*)?)", scripts_on_lines(), re.MULTILINE)
    parsed = set()
    for line in called:
        _, name, *words = shlex.split(re.split(r" 2$| \d?>|;", line)[0])
        command = cli.get_command(None, name)  # type: ignore[arg-type]  # unused by Ray's groups
        assert command is not None, line
        values = [re.sub(r"\$\w+", "1", word) for word in words]
        command.make_context(name, values)
        parsed.add(name)
    assert {"start", "get-auth-token", "health-check"} <= parsed


def scripts_on_lines() -> str:
    texts = [re.sub(r"#.*", "", FILES[name]) for name in SCRIPTS]
    return "\n".join(line for text in texts for line in lines(text))


def test_a_ray_job_asks_for_as_many_gpus_as_its_run() -> None:
    job = yaml.safe_load(FILES["rayjob.yaml"])
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    (workers,) = cluster["workerGroupSpecs"]
    gpus = workers["replicas"] * int(_container(workers)["resources"]["limits"]["nvidia.com/gpu"])
    asked = dict(re.findall(r"(NUM_NODES|NUM_GPUS)=(\d+)", job["spec"]["entrypoint"]))
    assert gpus == int(asked["NUM_NODES"]) * int(asked["NUM_GPUS"])
    for group in (cluster["headGroupSpec"], workers):
        pod = group["template"]["spec"]
        mounted = {one["name"]: one["mountPath"] for one in _container(group)["volumeMounts"]}
        assert mounted == {"shared": "/shared", "memory": "/dev/shm"}
        assert {volume["name"] for volume in pod["volumes"]} == set(mounted)
        assert _container(group)["image"] in FILES["image.sh"]
    assert f"ray=={cluster['rayVersion']}\n" in (ROOT / "constraints.txt").read_text()


def test_a_job_of_anyscale_runs_the_image_that_is_built_for_it() -> None:
    job = yaml.safe_load(FILES["job.yaml"])
    assert f"--tag {job['image_uri']} " in FILES["anyscale.sh"]
    assert f"docker push {job['image_uri']}\n" in FILES["anyscale.sh"]
    (workers,) = job["compute_config"]["worker_nodes"]
    assert workers["min_nodes"] == workers["max_nodes"]
    assert f"NUM_NODES={workers['min_nodes']} " in job["entrypoint"]


def _container(group: dict[str, Any]) -> dict[str, Any]:
    (container,) = group["template"]["spec"]["containers"]
    found: dict[str, Any] = container
    return found


def test_the_image_is_made_of_what_is_here_and_takes_the_arguments_that_the_page_gives() -> None:
    given = set(re.findall(r"--build-arg (\w+)", PAGE.read_text()))
    assert given <= set(re.findall(r"^ARG (\w+)", DOCKERFILE, re.MULTILINE))
    (engine,) = re.findall(r"ENGINE=(\S+)", FILES["image.sh"])
    assert f"{engine})" in DOCKERFILE
    kept = re.findall(r"^!(.*)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    copied = re.findall(r"^COPY (\S+)", DOCKERFILE, re.MULTILINE)
    assert sorted(kept) == sorted(copied)
    assert all((ROOT / path).exists() for path in copied)


def test_what_the_image_runs_to_install_is_shell(tmp_path: Path) -> None:
    (install,) = [part for part in DOCKERFILE.split("\nRUN ") if "pip install" in part]
    command = re.sub(r"\\\n\s*", "", install.partition("\n\n")[0])
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("pip", "skyrl"):
        (folder / name).write_text('#!/bin/sh\necho "$(basename $0) $*"\n')
        (folder / name).chmod(0o755)
    for engine, wanted in (
        ("none", "--constraint constraints.txt ./kernel[ray,torch]"),
        ("vllm-gpu", "./plugins/backends/vllm[gpu]"),
    ):
        done = subprocess.run(
            ["sh", "-c", command],
            cwd=ROOT,
            env={"PATH": f"{folder}:/usr/bin:/bin", "ENGINE": engine, "PIP_FIND_LINKS": ""},
            text=True,
            capture_output=True,
        )
        assert done.returncode == 0, done.stderr
        assert wanted in done.stdout
        assert "./plugins/backends/fsdp" in done.stdout
        assert " ray[default] " in done.stdout  # what KubeRay asks of a node, and its jobs
