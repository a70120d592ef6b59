"""The command line as a user meets it: help, a dry run, data sets, exit codes."""

import json
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
from running import COMMAND, Lab, probe_installed, skyrl
from sabotage import install_sabotage

from skyrl_kernel.hookspecs import PROJECT
from skyrl_kernel.plugins import discover
from skyrl_kernel.slots import STAGES

HEAVY = ("torch", "ray", "transformers", "pyarrow", "numpy")


@pytest.fixture
def lab(random_model, tmp_path):
    with probe_installed(tmp_path / "site"):
        yield Lab(random_model, tmp_path)


# --- cheap commands -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [["--help"], ["--version"], ["plugins", "list"], ["plugins", "info", "grpo"], ["run", "--help"], ["data"]],
    ids=" ".join,
)  # fmt: skip
def test_help_and_lists_import_nothing_heavy(words):
    script = (
        "import sys; from skyrl_kernel.cli import _exit_code; code = _exit_code(sys.argv[1:]);"
        f"print('heavy:', *[name for name in {HEAVY} if name in sys.modules]); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", script, *words], text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "heavy:"


def test_the_installed_command_is_the_one_that_is_tested():
    done = subprocess.run([COMMAND, "--version"], text=True, capture_output=True)
    assert done.stdout == skyrl("--version").out
    assert done.stdout.startswith("skyrl, version ")


def test_ctrl_c_before_a_run_begins_is_said():
    script = (
        "import click, sys; import skyrl_kernel.cli as cli\n"
        "@click.command()\ndef run(): raise KeyboardInterrupt\n"
        "cli._Lazy.get_command = lambda *_: run\nsys.exit(cli._exit_code(['run']))"
    )
    done = subprocess.run([sys.executable, "-c", script], text=True, capture_output=True)
    assert done.returncode == 130
    assert done.stderr.strip() == "skyrl: interrupted"


def test_help_names_every_command_and_each_has_its_own():
    lines = skyrl("--help").out.splitlines()
    listed = [line.split()[0] for line in lines[lines.index("Commands:") + 1 :]]
    assert listed == ["run", "eval", "report", "log", "data", "plugins"]
    for command in listed:
        outcome = skyrl(command, "--help")
        assert outcome.code == 0
        assert outcome.out.startswith(f"Usage: skyrl {command} ")


def test_what_is_no_command_or_option_is_answered_with_what_is(lab):
    for words in (["rnu"], ["run", "--plugn", "demo"], ["eval"]):
        outcome = skyrl(*words)
        assert outcome.code == 2
        assert outcome.out == ""
        assert "Usage: skyrl" in outcome.err
        assert "Traceback" not in outcome.err
    assert "Did you mean '--plugin'?" in skyrl("run", "--plugn", "demo").err


# --- a dry run --------------------------------------------------------------------------------------


def dry_run(*words):
    """The sections of what it prints: title → lines."""
    outcome = skyrl("run", "--dry-run", *words)
    assert outcome.code == 0, outcome.err
    sections = {}
    for line in outcome.out.splitlines():
        if not line.startswith("  "):
            current = sections.setdefault(line.partition(" (")[0], [])
        else:
            current.append(line.strip())
    return sections


def test_a_dry_run_shows_where_each_value_comes_from(lab):
    file = lab.folder / "mine.yaml"
    file.write_text("trainer: {epochs: 7, seed: 1}\n")
    words = ("--plugin", "multiply", "--config", str(file), "trainer.seed=3")
    config = dry_run(*words, "data.train_data=['multiply:train']")["config"]
    assert "trainer.seed = 3  [command line]" in config
    assert f"trainer.epochs = 7  [file {file}]" in config
    assert "environment.env_class = 'multiply'  [preset multiply]" in config
    assert "trainer.policy.model.path = 'builtin:tiny'  [default]" in config
    assert "environment.multiply.num_digits = '2'  [default]" in config
    first_default = next(place for place, line in enumerate(config) if line.endswith("[default]"))
    assert all(line.endswith("[default]") for line in config[first_default:])


def test_a_dry_run_shows_plugins_with_versions_and_stages_with_providers_and_wrappers(lab):
    install_sabotage(lab.folder / "site")
    discover(refresh=True)
    shown = dry_run(*lab.words("run", "--plugin", "sabotage")[1:])
    assert "plugin/sabotage  skyrl-sabotage 0.1.0  skyrl_sabotage" in shown["plugins"]
    assert any(line.startswith("env/probe  skyrl-env-probe 0.1.0") for line in shown["plugins"])
    assert [line.partition(":")[0] for line in shown["stages"]] == [slot.hook for slot in STAGES]
    stages = {line.partition(":")[0]: line for line in shown["stages"]}
    assert stages["generate"] == (
        "generate: plugin/agent < wrapped by plugin/sabotage  [generator.rollout]"
    )
    assert stages["advantage"] == (
        "advantage: algorithm/grpo  [trainer.algorithm.advantage_estimator]"
    )
    assert "on_checkpoint: plugin/sabotage" in shown["observers"]


def test_a_dry_run_writes_nothing_and_masks_secrets(lab, monkeypatch):
    monkeypatch.chdir(lab.folder)
    secret = "trainer.project_name=sk-0123456789abcdefghij"
    words = [*lab.words()[1:], secret]
    before = sorted(lab.folder.iterdir())
    outcome = skyrl("run", "--dry-run", *words)
    assert outcome.code == 0
    assert "0123456789" not in outcome.out
    assert sorted(lab.folder.iterdir()) == before


def test_without_any_word_the_demo_is_what_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = dry_run()
    assert shown == dry_run("--plugin", "demo")
    assert "trainer.run_name = 'demo'  [preset demo]" in shown["config"]
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_refuses_what_a_run_refuses(lab):
    complaint = skyrl("run", "--dry-run", *lab.words(trainer__epoch=1)[1:]).complaint
    assert "did you mean 'trainer.epochs'?" in complaint


# --- runs ----------------------------------------------------------------------------------------


def test_a_run_tells_its_folder_and_its_model_and_leaves_what_it_promises(lab):
    outcome = lab.run(trainer__epochs=1)
    assert outcome.code == 0
    assert outcome.err == ""
    folder = lab.at().path
    assert f"run folder: {folder}\n" in outcome.out
    assert f"trained model: {folder / 'export' / 'global_step_2'}\n" in outcome.out
    assert {path.name for path in folder.iterdir()} == {
        *("config.yaml", "plugins.json", "metrics.jsonl", "trajectories", "checkpoints", "export"),
        *("dumped_evals",),
        *("log.jsonl", ".lock"),  # failures.jsonl where there are any
    }
    lock = json.loads((folder / "plugins.json").read_text())
    assert {"grpo", "fsdp", "transformers", "probe"} <= {plugin["name"] for plugin in lock}


def test_a_run_can_be_repeated_from_the_config_that_it_left(lab):
    assert lab.run("first").code == 0
    config = lab.at("first").config
    outcome = skyrl("run", "--config", config, "trainer.run_name=second")
    assert outcome.code == 0, outcome.err
    weights = "global_step_4/weights.safetensors"
    assert (lab.at("first").checkpoints / weights).read_bytes() == (
        lab.at("second").checkpoints / weights
    ).read_bytes()


def test_an_error_in_a_plugin_names_plugin_hook_and_step(lab):
    from skyrl_kernel.testing.distributions import make_distribution

    make_distribution(
        lab.folder / "site",
        "skyrl-crash",
        "1.2.3",
        modules={
            "skyrl_crash": f"""
            from {PROJECT}_kernel.hookspecs import hookimpl
            from {PROJECT}_kernel.protocols import Evaluate

            @hookimpl(wrapper=True)
            def evaluate():
                inner = yield
                return Evaluate(fn=crash)

            def crash(trajectories):
                raise KeyError("score")
            """
        },
        entry_points={"skyrl.plugins": {"crash": "skyrl_crash"}},
    )
    discover(refresh=True)
    outcome = lab.run("run", "--plugin", "crash", trainer__eval_before_train=False)
    assert outcome.code == 1
    assert outcome.err == (
        "skyrl: plugin 'crash' (skyrl-crash 1.2.3) failed in hook 'evaluate', step 2, process "
        "controller: KeyError: 'score'\n"
    )


# --- data sets -------------------------------------------------------------------------------------


def test_data_lists_what_can_be_made_and_makes_it(tmp_path):
    listed = skyrl("data").out
    assert "multiply" in listed
    assert "gsm8k" in listed
    outcome = skyrl(
        *("data", "multiply", "--output_dir", tmp_path / "new", "--num-digits", "3x1"),
        *("--train_size=20", "--test_size=5", "--seed=1"),
    )
    assert outcome.code == 0
    assert f"{tmp_path / 'new' / 'train.parquet'}: 20 rows\n" in outcome.out
    assert pq.read_table(tmp_path / "new" / "validation.parquet").num_rows == 5


def test_data_refuses_in_one_line_and_leaves_nothing(tmp_path):
    target = tmp_path / "new"
    for words, told in {
        ("mulitply",): "no data set named 'mulitply'. Did you mean 'multiply'?",
        ("grpo",): "makes no data set. Installed plugins make: gsm8k, gsm8k_multi_turn, multiply",
        ("multiply", "--digits", "3"): "data 'multiply' has no option --digits.",
        ("multiply", "--seed", "x"): "--seed=x: Input should be a valid integer",
        ("multiply", "--seed"): "--seed has no value",
        ("multiply", "3"): "'3' is not an option",
        ("multiply", "--num_digits", "1", "--test_size", "99"): "asks for 99 distinct held-out",
        ("gsm8k", "--source", tmp_path / "nowhere"): "no such folder; name one with the original",
        ("gsm8k", "--source", tmp_path): "train.jsonl' does not exist",
    }.items():
        assert told in skyrl("data", *words, "--output_dir", target).complaint
    assert list(tmp_path.iterdir()) == []
