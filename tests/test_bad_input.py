"""Whatever a user gets wrong: one message that helps, exit code 2, and nothing left behind."""

import os
import resource
import shlex
import shutil
import signal
import subprocess
from textwrap import dedent

import pytest
from running import COMMAND, Lab, ended, probe_installed, skyrl, start
from sabotage import MOMENTS, armed, install_sabotage

from skyrl_kernel.plugins import discover
from skyrl_kernel.run import latest_checkpoint
from skyrl_kernel.testing.distributions import make_distribution


@pytest.fixture
def lab(random_model, tmp_path):
    with probe_installed(tmp_path / "site"):
        yield Lab(random_model, tmp_path)


HEADER = "from skyrl_kernel.hookspecs import hookimpl\n\n"


def install(lab, name, source, **more):
    """A plugin of kind ``plugin`` whose module is ``source``."""
    package = f"skyrl_{name}"
    make_distribution(
        lab.folder / "site",
        f"skyrl-{name}",
        modules={f"{package}.plugin": HEADER + dedent(source)},
        entry_points={"skyrl.plugins": {name: f"{package}.plugin"}},
        **more,
    )
    discover(refresh=True)


def refused(lab, *plugins, **changes):
    """What the user reads; nothing may be left."""
    complaint = lab.run("refused", *plugins, **changes).complaint
    assert lab.leavings() == []
    return complaint


# --- plugins --------------------------------------------------------------------------------


def test_an_unknown_plugin_is_answered_with_the_nearest_name_and_how_to_install(lab):
    complaint = refused(lab, "--plugin", "grop")
    assert complaint.startswith("no plugin named 'grop' is installed. Did you mean 'grpo'?")
    assert (
        "Did you mean 'grpo'? If it exists: pip install skyrl-grop. 'skyrl plugins list'"
        in complaint
    )
    assert len(complaint.splitlines()) == 1


def test_an_unknown_name_in_a_slot_names_the_slot(lab):
    complaint = refused(lab, trainer__strategy="fdsp")
    assert complaint.startswith("trainer.strategy=fdsp: no backend named 'fdsp' is installed.")
    assert "Did you mean 'fsdp'? If it exists" in complaint


def test_a_name_that_is_like_no_other_is_answered_with_all_that_may_stand_there(lab):
    complaint = refused(lab, "--plugin", "zzz")
    assert " Installed: accuracy, adapters, advantage_batch_normalize, agent," in complaint
    complaint = refused(lab, trainer__algorithm__policy_loss_type="zzz")
    assert " Installed: cispo, clip_cov, cross_entropy," in complaint
    assert "grpo" not in complaint


def test_a_plugin_that_does_not_import_is_named_with_its_fault(lab):
    install(lab, "crash", "1 / 0")
    assert refused(lab, "--plugin", "crash").startswith(
        "plugin 'crash' (skyrl-crash 0.1.0) failed while importing skyrl_crash.plugin: ZeroDivisionError: "
        "division by zero. That is a fault of skyrl-crash, not of your command"
    )


def test_a_plugin_whose_requirement_is_missing_names_the_module(lab):
    install(lab, "hungry", "import no_such_library")
    assert "needs the module 'no_such_library', which is not installed" in refused(
        lab, "--plugin", "hungry"
    )


def test_a_plugin_for_another_kernel_is_refused_before_it_is_imported(lab):
    install(lab, "future", "1 / 0", requires=["skyrl-kernel>=9"])
    complaint = refused(lab, "--plugin", "future")
    assert "it needs skyrl-kernel >=9, but skyrl-kernel 0.1.0 is installed" in complaint
    assert 'pip install "skyrl-kernel>=9"' in complaint
    assert "ZeroDivisionError" not in complaint


def test_a_misspelt_hook_is_answered_with_the_nearest_one(lab):
    install(lab, "typo", "@hookimpl\ndef on_step_ends(step): ...")
    complaint = refused(lab, "--plugin", "typo")
    assert complaint.startswith(
        "plugin 'typo' (skyrl-typo 0.1.0): skyrl_typo.plugin.on_step_ends is marked"
    )
    assert "there is no hook 'on_step_ends'. Did you mean 'on_step_end'?" in complaint


def test_a_sync_callable_where_an_async_one_is_due_is_refused(lab):
    install(
        lab,
        "eager",
        "@hookimpl\ndef generate(name):\n    return play if name == 'eager' else None\n\n"
        "def play(prompt, context): ...",
    )
    complaint = refused(lab, generator__rollout="eager")
    assert "'generate' returned 'play', which is not async; needed: an 'async def'" in complaint


def test_two_presets_that_clash_name_both_and_the_key_to_choose_by(lab):
    for name, epochs in (("calm", 1), ("eager", 9)):
        install(
            lab,
            name,
            "",
            files={
                f"skyrl_{name}/plugin.toml": f'[{name}]\nsummary = "x"\n'
                f'[{name}.preset]\n"trainer.max_prompt_length" = {epochs}\n'
            },
        )
    complaint = refused(lab, "--plugin", "calm", "--plugin", "eager")
    assert complaint == (
        "the presets of 'calm' and 'eager' differ on trainer.max_prompt_length: 1 and 9; "
        "choose by trainer.max_prompt_length=…"
    )


# --- config ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"trainer__epoch": 3}, "no config key 'trainer.epoch' (command line); did you mean 'trainer.epochs'?"),
        ({"trainer__epochs": "three"}, "trainer.epochs='three' (command line): input should be a valid integer"),
        ({"trainer__epochs": 0}, "trainer.epochs=0 (command line): input should be greater than or equal to 1"),
        ({"trainer__resume_mode": "lates"}, "input should be 'latest', 'from_path' or 'none'"),
        ({"trainer__policy": 3}, "config key 'trainer.policy' (command line) is a section"),
        ({"environment__multiply__num_digits": 3}, "belongs to the plugin 'multiply', which is not selected; add --plugin multiply"),
        ({"trainer__train_batch_size": 5}, "trainer.train_batch_size=5 is not a multiple of trainer.policy_mini_batch_size=2"),
        ({"trainer__train_batch_size": 64}, "asks for more prompts than there are"),
        ({"trainer__max_ckpts_to_keep": 0}, "keeps no checkpoint to resume from; use -1 for all"),
        ({"trainer__run_name": "../elsewhere"}, "trainer.run_name='../elsewhere' names no folder in trainer.ckpt_path"),
        ({"generator__sampling_params__temperature": 0}, "samples the same completion every time, which trains nothing"),
        ({"generator__sampling_params__top_p": 0.9}, "top_p truncates what is sampled in training"),
        ({"trainer__fully_async__enabled": True}, "trainer.fully_async.enabled needs 'concurrent_generation', which no selected plugin offers."),
        ({"trainer__fsdp__device": "cuda:99"}, "trainer.fsdp.device='cuda:99' (command line): input should be"),
        ({"trainer__resume_mode": "from_path"}, "trainer.resume_path and trainer.resume_mode=from_path come together"),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)  # fmt: skip
def test_a_wrong_key_or_value_is_explained(lab, changes, told):
    complaint = refused(lab, **changes)
    assert told in complaint
    assert len(complaint.splitlines()) == 1


def test_every_wrong_key_is_told_at_once(lab):
    complaint = refused(lab, trainer__epoch=3, trainer__sed=1)
    assert [line.split()[3] for line in complaint.splitlines()] == [
        "'trainer.epoch'",
        "'trainer.sed'",
    ]


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("trainer.epochs", "is not of the form key=value, such as trainer.epochs=3"),
        ("grpo", "plugins are named with --plugin NAME"),
        ("+trainer.epochs=3", "write trainer.epochs=3 without the '+'"),
    ],
)
def test_a_word_that_is_no_setting_is_explained(word, told):
    assert told in skyrl("run", word).complaint


def test_a_config_file_that_cannot_be_read_is_named(lab):
    missing = lab.folder / "no.yaml"
    complaint = refused(lab, "--config", str(missing))
    assert complaint == f"config file '{missing}' cannot be read: No such file or directory"
    broken = lab.folder / "broken.toml"
    broken.write_text("a = [1")
    assert f"config file '{broken}' is not valid" in refused(lab, "--config", str(broken))


def test_a_place_that_cannot_hold_run_folders_is_named(lab):
    file = lab.folder / "file"
    file.write_text("")
    complaint = refused(lab, trainer__ckpt_path=str(file))
    assert f"run folder {file / 'refused'} cannot be made: Not a directory" in complaint
    assert "set trainer.ckpt_path" in complaint


# --- data -----------------------------------------------------------------------------------


def test_a_missing_data_set_names_what_lies_beside_it(lab):
    missing = lab.folder / "trian.jsonl"
    complaint = refused(lab, data__train_data=[str(missing)])
    assert complaint.startswith(
        f"data.train_data: data file '{missing}' does not exist. Data files in"
    )
    assert complaint.endswith("train.jsonl, val.jsonl")


def test_an_unreadable_data_set_names_file_and_line(lab):
    parquet = lab.folder / "torn.parquet"
    parquet.write_bytes(b"PAR1 and no more")
    assert f"'{parquet}' cannot be read as parquet" in refused(lab, data__val_data=[str(parquet)])
    lines = lab.folder / "torn.jsonl"
    lines.write_text('{"prompt": [{"role": "user", "content": "x"}]}\n{"prompt": [\n')
    assert f"'{lines}', line 2 is not valid JSON" in refused(lab, data__val_data=[str(lines)])


def test_a_data_set_of_the_wrong_schema_names_file_row_and_column(lab):
    right = {"prompt": [{"role": "user", "content": "x"}]}
    file = lab.write("schema", [right, right, {"prompt": "x"}])
    assert refused(lab, data__train_data=[str(file)]) == (
        f"data.train_data: data '{file}', row 2 (from 0), column 'prompt': found str 'x'; "
        "it must be a non-empty list of {role: string, content: string}"
    )
    file = lab.write("schema", [right | {"data_source": 7}])
    assert "row 0 (from 0), column 'data_source': found int 7; it must be a string" in refused(
        lab, data__train_data=[str(file)]
    )
    file = lab.write("schema", [{"question": "x"}])
    assert "no column 'prompt'" in refused(lab, data__train_data=[str(file)])


def test_rows_that_name_an_env_that_is_not_selected_say_how_to_select_it(lab):
    file = lab.rows("other", 4, env_class="gsm8k")
    assert refused(lab, data__train_data=[str(file)]) == (
        f"data.train_data: '{file}', row 0 (from 0) names the env 'gsm8k', which is not selected; "
        "selected are: probe. Add --plugin gsm8k"
    )
    file = lab.rows("other", 4, env_class="gsm9k")
    complaint = refused(lab, data__train_data=[str(file)])
    assert "'gsm9k', which is not installed. Did you mean 'gsm8k'?" in complaint
    assert complaint.endswith("pip install skyrl-gsm9k")


def test_prompts_that_are_too_long_are_dropped_counted_and_reported(lab):
    rows = [{"prompt": [{"role": "user", "content": "1" * (90 if n < 2 else 9)}]} for n in range(8)]
    file = lab.write("long", rows)
    outcome = lab.run(
        data__train_data=[str(file)], trainer__max_prompt_length=50, trainer__epochs=1
    )
    assert outcome.code == 0
    assert (
        "warning: data.train_data: 2 of 8 prompts are longer than trainer.max_prompt_length=50 tokens "
        "and were dropped" in outcome.out
    )
    trained = {one["uid"] for one in lab.at().read_trajectories(1)}
    assert trained <= {f"0:{row}" for row in range(2, 8)}  # rows keep their numbers


def test_if_all_prompts_are_too_long_the_shortest_is_told(lab):
    complaint = refused(lab, trainer__max_prompt_length=3)
    assert complaint.startswith("data.train_data: all 8 prompts of ")
    # "Digits please 0" and the line's end are 16 tokens of one character
    assert complaint.endswith("the shortest has 16: raise trainer.max_prompt_length")


# --- models ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("break_it", "told"),
    [
        (lambda folder: shutil.rmtree(folder), "does not exist; name a Hugging Face directory"),
        (lambda folder: (folder / "config.json").unlink(), "is a directory without config.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "cannot be loaded as a causal language model"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 99), "cannot be loaded as a causal language model"),
        (lambda folder: [file.unlink() for file in folder.glob("tokenizer*")], "no tokenizer can be read from"),
        (lambda folder: (folder / "chat_template.jinja").unlink(), "has no chat template"),
    ],
    ids=["missing", "no config", "no weights", "torn weights", "no tokenizer", "no chat template"],
)  # fmt: skip
def test_a_model_path_that_is_no_chat_model_says_what_is_lacking(lab, break_it, told):
    broken = lab.folder / "model"
    shutil.copytree(lab.model, broken)
    break_it(broken)
    complaint = refused(lab, trainer__policy__model__path=str(broken))
    assert told in complaint
    assert str(broken) in complaint
    assert len(complaint.splitlines()) == 1


def test_a_builtin_model_that_does_not_exist_names_those_that_do(lab):
    complaint = refused(lab, trainer__policy__model__path="builtin:huge")
    assert "no built-in model 'builtin:huge'; there are builtin:tiny" in complaint


# --- folders --------------------------------------------------------------------------------


def test_a_run_folder_made_with_another_config_is_left_as_it_is(lab):
    assert lab.run(trainer__epochs=1).code == 0
    before = {path: path.stat().st_mtime_ns for path in lab.at().path.rglob("*") if path.is_file()}
    outcome = lab.run(trainer__seed=7, trainer__epochs=1)
    assert "was made with another config: trainer.seed was 42, is 7. Choose another" in (
        outcome.complaint
    )
    before.pop(lab.at().path / ".lock")
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_refused_run_puts_the_folder_back_that_it_had_moved_aside(lab):
    assert lab.run(trainer__epochs=1).code == 0
    before = lab.leavings()
    refused = lab.run(
        trainer__resume_mode="none",
        trainer__policy__model__path=str(lab.folder / "torn"),
    )
    assert "does not exist" in refused.complaint
    shutil.copytree(lab.model, lab.folder / "torn")
    (lab.folder / "torn" / "model.safetensors").write_bytes(b"x")  # found late, by the trainer
    refused = lab.run(
        trainer__resume_mode="none", trainer__policy__model__path=str(lab.folder / "torn")
    )
    assert "cannot be loaded" in refused.complaint
    assert lab.leavings() == before


# --- the disk is full -------------------------------------------------------------------------


def test_a_full_disk_ends_the_run_in_one_line_and_the_same_command_goes_on(lab):
    install(
        lab,
        "fill",
        """
        import os
        from pathlib import Path

        FULL = Path(__file__).parents[1] / "full"

        @hookimpl
        def on_checkpoint(step, folder):
            if not FULL.exists():
                return
            metrics = folder.parents[1] / "metrics.jsonl"
            for entry in Path("/proc/self/fd").iterdir():  # from here on, it is a full device
                if entry.exists() and entry.samefile(metrics):
                    os.dup2(os.open("/dev/full", os.O_WRONLY), int(entry.name))
        """,
    )
    full = lab.folder / "site" / "full"
    full.touch()
    outcome = lab.run("run", "--plugin", "fill")
    assert outcome.code == 1
    assert outcome.err == (
        "skyrl: cannot write: [Errno 28] No space left on device. What was finished is kept; make "
        "room and repeat the command\n  the same command goes on after step 2\n"
    )
    assert "failed after the checkpoint of step 2\n" in outcome.out
    full.unlink()
    assert lab.run("run", "--plugin", "fill").code == 0
    assert [line["step"] for line in lab.at().read_metrics()] == [0, 1, 2, 3, 4]


def test_a_checkpoint_that_does_not_fit_on_the_disk_leaves_none(lab):
    kept = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, kept[1]))  # the weights have more bytes
    try:
        outcome = lab.run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, kept)
    assert outcome.code == 1
    assert outcome.err.startswith("skyrl: cannot write: ")
    assert "no checkpoint was written yet, so the same command begins anew" in outcome.err
    assert list(lab.at().checkpoints.iterdir()) == []
    assert lab.run().code == 0
    assert [line["step"] for line in lab.at().read_metrics()] == [0, 1, 2, 3, 4]


@pytest.mark.slow
def test_a_disk_that_fills_up_and_is_enlarged(lab):
    """A file system of 300 kB, in a mount namespace of its own where the machine allows one."""
    disk = lab.folder / "disk"
    disk.mkdir()
    words = lab.words(trainer__ckpt_path=str(disk))
    command = f"{COMMAND} {shlex.join(words)}"
    script = f"""
        mount -t tmpfs -o size=300k tmpfs {disk} || exit 77
        {command}; echo "full: $?"
        find {disk} -name '*.tmp-*'
        mount -o remount,size=100m {disk}
        {command}; echo "more room: $?"
    """
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script],
        env=os.environ | {"PYTHONPATH": str(lab.folder / "site"), "OMP_NUM_THREADS": "1"},
        text=True,
        capture_output=True,
    )
    if done.returncode != 0:
        pytest.skip("no mount namespace here: a really full file system was not checked")
    assert "full: 1" in done.stdout
    assert "more room: 0" in done.stdout
    assert not [line for line in done.stdout.splitlines() if line.startswith(f"{disk}/")]
    assert done.stderr.count("skyrl: cannot write: ") == 1
    assert "Traceback" not in done.stderr


# --- Ctrl-C -----------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", MOMENTS)
def test_ctrl_c_ends_cleanly_and_the_same_command_goes_on(lab, moment):
    install_sabotage(lab.folder / "site")
    discover(refresh=True)
    order = armed(lab.folder / "site", moment, 1, signal.SIGINT)
    outcome = lab.run("run", "--plugin", "sabotage")
    assert not order.exists()
    assert outcome.code == 130
    assert outcome.err.startswith("\nskyrl: interrupted; ")  # below the shell's ^C
    assert "Traceback" not in outcome.err
    assert not [name for name in lab.leavings() if ".tmp-" in name]
    newest, _ = latest_checkpoint(lab.at().checkpoints)
    told = f"goes on after step {newest.step}" if newest else "begins anew"
    assert f"the same command {told}" in outcome.err
    assert lab.run("run", "--plugin", "sabotage").code == 0
    assert [line["step"] for line in lab.at().read_metrics()] == [0, 1, 2, 3, 4]


def test_ctrl_c_in_a_shell_gives_130(lab):
    site = lab.folder / "site"
    install_sabotage(site)
    armed(site, "step", 1, signal.SIGINT)
    outcome = ended(start(*lab.words("run", "--plugin", "sabotage"), site=site))
    assert outcome.code == 130
    assert outcome.err == (
        "\nskyrl: interrupted; no checkpoint was written yet, so the same command begins anew\n"
    )


# --- envs that fail, runs that learn nothing ----------------------------------------------------


@pytest.mark.parametrize(
    ("trouble", "kind", "told"),
    [
        ("raises", "task", "env 'probe' failed in step: RuntimeError: the judge is ill"),
        ("hangs", "timeout", "env 'probe' did not answer step within 1 s (environment.timeout_s)"),
        ("wrong type", "task", "step returned [1.0, True] (list); it must return a mapping as EnvStep"),
        ("not finite", "task", "step returned the reward nan; it must be finite"),
    ],
)  # fmt: skip
def test_an_env_that_fails_costs_one_trajectory_typed_and_counted(lab, trouble, kind, told):
    rows = [{"prompt": [{"role": "user", "content": f"Digits please {n}"}]} for n in range(4)]
    rows[0]["trouble"] = trouble  # in one of its four episodes
    outcome = lab.run(
        data__train_data=[str(lab.write("trouble", rows))],
        data__val_data=[],
        trainer__epochs=1,
        environment__timeout_s=1,
    )
    assert outcome.code == 0
    (failure,) = lab.at().read_failures()
    assert (failure["step"], failure["uid"], failure["plugin"]) == (1, "0:0", "probe")
    assert failure["kind"] == kind
    assert failure["message"].startswith("env 'probe' ")
    assert failure["message"].endswith(told)
    metrics = lab.at().read_metrics()[-1]
    assert (metrics["failures/trajectories"], metrics[f"failures/{kind}"]) == (1.0, 1.0)
    trained = [one["uid"] for one in lab.at().read_trajectories(1)]
    assert len(trained) == 15  # 4 prompts by 4, one lost and not a reward of 0
    assert trained.count("0:0") == 3
    assert f"warning: trajectories are lost ({kind}): {failure['message']}; each" in outcome.out


def test_more_failures_than_the_budget_stop_the_run(lab):
    file = lab.rows("ill", 8, trouble="raises", always=True)
    outcome = lab.run(data__train_data=[str(file)], data__val_data=[])
    assert outcome.code == 1
    assert outcome.err.startswith(
        "skyrl: step 1: 16 of 16 trajectories failed (16 task), more than "
        "trainer.max_failed_frac=0.5 allows; the most common: env 'probe' failed in step"
    )
    assert "Traceback" not in outcome.err


def test_constant_rewards_say_so(lab):
    file = lab.rows("same", 8, trouble="constant", always=True)
    outcome = lab.run(data__train_data=[str(file)])
    assert outcome.code == 0
    assert "warning: step 1: every trajectory earned 0.5: no reward tells one from another" in (
        outcome.out
    )


def test_weights_that_do_not_change_say_so(lab):
    outcome = lab.run(trainer__policy__optimizer_config__lr=0)
    assert outcome.code == 0
    assert "warning: step 1: the optimizer left every weight as it was; look at" in outcome.out
