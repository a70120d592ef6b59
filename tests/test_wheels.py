"""Every package, built as a wheel and used outside the workspace."""

import json
import zipfile

import pytest
from workspace import ROOT, Environment, package_folders, project, wheel_metadata

PACKAGES = {str(project(folder)["name"]): folder for folder in package_folders()}
RUN_SET = ("skyrl-grpo", "skyrl-multiply", "skyrl-fsdp", "skyrl-transformers", "skyrl-console")


def wheel_of(name, wheels):
    (wheel,) = wheels.glob(f"{name.replace('-', '_')}-*.whl")
    return wheel


@pytest.mark.parametrize("name", PACKAGES)
def test_a_wheel_holds_the_package_its_manifest_and_its_types_and_no_more(name, wheels):
    wheel = wheel_of(name, wheels)
    package = name.replace("-", "_")
    held = set(zipfile.ZipFile(wheel).namelist())
    source = PACKAGES[name] / "src"
    expected = {
        str(path.relative_to(source))
        for path in source.rglob("*")
        if path.is_file() and path.suffix != ".pyc" and ".mypy_cache" not in path.parts
    }
    assert {f"{package}/plugin.toml", f"{package}/py.typed"} <= held
    assert {path for path in held if ".dist-info/" not in path} == expected


@pytest.mark.parametrize("name", PACKAGES)
def test_a_wheel_publishes_every_entry_point_and_holds_its_module(name, wheels):
    wheel = wheel_of(name, wheels)
    held = set(zipfile.ZipFile(wheel).namelist())
    published = {
        (point.group, point.name, point.value)
        for point in wheel_metadata(wheel).entry_points
        if point.group != "console_scripts"
    }
    declared = {
        (group, point, value)
        for group, points in project(PACKAGES[name]).get("entry-points", {}).items()
        for point, value in points.items()
    }
    assert published == declared
    for _, _, module in published:
        path = module.partition(":")[0].replace(".", "/")
        assert held & {f"{path}.py", f"{path}/__init__.py"}, f"{module} is not in {wheel.name}"


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_imports_with_only_what_it_declares(name, wheels, environment, tmp_path):
    modules = {point.value for point in wheel_metadata(wheel_of(name, wheels)).entry_points}
    lines = [f"import {module.partition(':')[0]} as m; print(m.__file__)" for module in modules]
    alone: Environment = environment(name)
    printed = alone.run("python", "-W", "error", "-c", "\n".join(lines), cwd=tmp_path).stdout
    for file in printed.splitlines():
        assert file.startswith(str(alone.site)), f"{file} comes from elsewhere"


def test_wheels_list_check_and_plan_a_run_outside_the_workspace(
    environment, random_model, tmp_path
):
    user: Environment = environment(*RUN_SET)
    listed = json.loads(user.run("skyrl", "plugins", "list", "--json", cwd=tmp_path).stdout)
    expected = {
        point
        for name in ("skyrl-kernel", *RUN_SET, "skyrl-reductions")  # which skyrl-grpo needs
        for points in project(PACKAGES[name])["entry-points"].values()
        for point in points
    }
    assert {plugin["name"] for plugin in listed} == expected
    assert [plugin for plugin in listed if plugin["status"] != "ok"] == []

    plan = user.run(
        *("skyrl", "run", "--dry-run", "--plugin", "grpo", "--plugin", "multiply"),
        "data.train_data=['multiply:train']",
        "data.val_data=['multiply:validation']",
        f"trainer.policy.model.path={random_model}",
        cwd=tmp_path,
    )
    for name in ("skyrl-grpo", "skyrl-multiply", "skyrl-fsdp", "skyrl-transformers"):
        assert name in plan.stdout
    assert str(ROOT) not in plan.stdout
    assert not list(tmp_path.glob("runs*"))  # a dry run leaves nothing
