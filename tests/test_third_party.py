"""A package that the project does not know, from `pip install` to a trained run and back."""

import json
import shutil

import pages
import pytest
from workspace import ROOT, Environment, build_wheel

EXAMPLE = ROOT / "examples" / "skyrl-env-reverse"
ENGINE_PAGE = ROOT / "docs" / "how-to" / "your-own-engine.md"
RUN_SET = ("skyrl-grpo", "skyrl-fsdp", "skyrl-transformers", "skyrl-console")

SMALL_RUN = (
    "trainer.train_batch_size=8",
    "trainer.policy_mini_batch_size=8",
    "trainer.micro_train_batch_size_per_gpu=64",
    "trainer.max_training_steps=5",
    "trainer.eval_interval=0",
    "trainer.algorithm.use_kl_loss=false",
    "generator.n_samples_per_prompt=8",
    "generator.sampling_params.max_generate_length=4",
)


@pytest.fixture
def user(environment, wheels, tmp_path) -> Environment:
    """Somebody who has skyrl, and the wheel of the example beside it."""
    shelf = tmp_path / "wheels"
    shutil.copytree(wheels, shelf)
    build_wheel(EXAMPLE, shelf)
    made: Environment = environment(*RUN_SET)
    made.wheels = shelf
    return made


def listed(user, cwd):
    plugins = json.loads(user.run("skyrl", "plugins", "list", "--json", cwd=cwd).stdout)
    return {plugin["name"]: plugin for plugin in plugins}


def test_the_whole_example_is_under_100_lines():
    files = [path for path in EXAMPLE.rglob("*") if path.suffix in {".py", ".toml"}]
    assert len(files) == 4
    assert sum(len(path.read_text().splitlines()) for path in files) < 100


def test_the_example_passes_its_own_test_where_it_is_installed(user, tmp_path):
    user.install("skyrl-env-reverse", "pytest")
    shutil.copytree(EXAMPLE / "tests", tmp_path / "tests")
    user.run("python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests", cwd=tmp_path)


def test_an_env_nobody_knew_is_listed_trained_on_and_gone_again(user, random_model, tmp_path):
    before = listed(user, tmp_path)
    assert "reverse" not in before

    user.install("skyrl-env-reverse")
    during = listed(user, tmp_path)
    assert during.keys() - before.keys() == {"reverse"}
    assert {name: during[name] for name in before} == before
    assert during["reverse"]["distribution"] == "skyrl-env-reverse"

    run = ("skyrl", "run", "--plugin", "grpo", "--plugin", "reverse", *SMALL_RUN)
    run += (f"trainer.policy.model.path={random_model}", "trainer.run_name=backwards")
    user.run(*run, cwd=tmp_path)
    folder = tmp_path / "runs" / "backwards"
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [step["step"] for step in steps if "policy/grad_norm" in step] == [1, 2, 3, 4, 5]
    # 320 answers of up to 4 random letters out of 68: some hit a letter's place, none all three
    assert any(step["reward/avg_raw_reward"] > 0 for step in steps if step["step"] > 0)
    assert steps[-1]["eval/reverse/exact_match"] == 0.0
    lock = {plugin["name"]: plugin for plugin in json.loads((folder / "plugins.json").read_text())}
    assert lock["reverse"]["distribution"] == "skyrl-env-reverse"

    user.uninstall("skyrl-env-reverse")
    assert listed(user, tmp_path) == before
    refused = user.run(*run, cwd=tmp_path, ok=False)
    assert refused.returncode == 2
    assert "reverse" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_an_engine_nobody_knew_generates_for_a_run_and_gets_its_weights(
    user, random_model, tmp_path
):
    pages.write_files(ENGINE_PAGE, tmp_path)
    build_wheel(tmp_path / "skyrl-plain", user.wheels)
    user.install("skyrl-plain", "skyrl-env-reverse")
    assert listed(user, tmp_path)["plain"]["distribution"] == "skyrl-plain"

    run = ("skyrl", "run", "--plugin", "grpo", "--plugin", "reverse", *SMALL_RUN)
    run += ("generator.inference_engine.backend=plain", "trainer.bf16=false")
    run += (f"trainer.policy.model.path={random_model}", "trainer.run_name=plain")
    user.run(*run, cwd=tmp_path)
    folder = tmp_path / "runs" / "plain"
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    trained = [step for step in steps if "policy/grad_norm" in step]
    assert [step["step"] for step in trained] == [1, 2, 3, 4, 5]
    for step in trained:  # each generates with what the one before has trained
        assert step["policy/rollout_train_logprobs_abs_diff_max"] <= 1e-4
