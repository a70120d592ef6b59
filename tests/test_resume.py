"""Checkpoints, and every way of going on from them."""

import json
import subprocess
import sys

import pytest
import torch
from running import Lab, probe_installed, skyrl, without_times
from sabotage import install_sabotage
from transformers import AutoModelForCausalLM, AutoTokenizer

from skyrl_kernel.plan import make_plan
from skyrl_kernel.plugins import discover
from skyrl_kernel.resume import find_start
from skyrl_kernel.run import RunFolder
from skyrl_kernel.testing.distributions import make_distribution


@pytest.fixture
def lab(random_model, tmp_path):
    with probe_installed(tmp_path / "site"):
        yield Lab(random_model, tmp_path)


def checkpoints(lab, name="run"):
    return sorted(path.name for path in lab.at(name).checkpoints.iterdir())


def steps(lab, name="run"):
    return [line["step"] for line in lab.at(name).read_metrics()]


def weights(lab, step, name="run"):
    folder = lab.at(name).checkpoints / f"global_step_{step}"
    return (folder / "weights.safetensors").read_bytes()


def damage(lab, step):
    """One bit, as a bad disk does it."""
    file = lab.at().checkpoints / f"global_step_{step}" / "weights.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


# --- when checkpoints are written -------------------------------------------------------------


@pytest.mark.parametrize(
    ("interval", "keep", "expected"),
    [
        (2, -1, ["global_step_2", "global_step_4", "global_step_6"]),
        (4, -1, ["global_step_4", "global_step_6"]),  # and at the end
        (0, -1, ["global_step_6"]),
        (1, 2, ["global_step_5", "global_step_6"]),
    ],
)
def test_checkpoints_are_written_every_interval_and_at_the_end_and_the_newest_kept(
    lab, interval, keep, expected
):
    outcome = lab.run(
        trainer__epochs=3, trainer__ckpt_interval=interval, trainer__max_ckpts_to_keep=keep
    )
    assert outcome.code == 0
    assert checkpoints(lab) == expected


def test_nothing_that_is_loaded_from_a_run_is_a_pickle(lab):
    assert lab.run().code == 0
    suffixes = {path.suffix for path in lab.at().path.rglob("*") if path.is_file()}
    assert suffixes <= {"", ".json", ".jsonl", ".yaml", ".parquet", ".safetensors", ".jinja"}


# --- going on -----------------------------------------------------------------------------------


def test_more_epochs_go_on_as_if_they_had_been_asked_for_at_once(lab):
    assert lab.run("once", trainer__epochs=3).code == 0
    assert lab.run("twice", trainer__epochs=1).code == 0
    outcome = lab.run("twice", trainer__epochs=3)
    assert outcome.code == 0
    assert "going on after step 2 of 6" in outcome.out
    assert weights(lab, 6, "twice") == weights(lab, 6, "once")
    assert without_times(lab.at("twice").read_metrics()) == without_times(
        lab.at("once").read_metrics()
    )


def test_the_command_of_a_finished_run_trains_nothing_and_says_how_to_start_another(lab):
    assert lab.run().code == 0
    before = {path: path.stat().st_mtime_ns for path in lab.at().path.rglob("*") if path.is_file()}
    outcome = lab.run()
    assert outcome.code == 0
    assert (
        "is finished: its newest checkpoint is of step 4 of 4, so nothing is trained" in outcome.out
    )
    for remedy in ("trainer.run_name=NAME", "trainer.epochs", "trainer.resume_mode=none"):
        assert remedy in outcome.out
    changed = {path.name for path, then in before.items() if path.stat().st_mtime_ns != then}
    assert changed <= {".lock", "log.jsonl"}


@pytest.mark.parametrize("mode", ["none", None])
def test_resume_mode_none_moves_the_old_run_aside_and_begins_anew(lab, mode):
    assert lab.run().code == 0
    first = weights(lab, 4)
    outcome = lab.run(trainer__resume_mode=mode, trainer__seed=7)
    assert outcome.code == 0
    assert f"{lab.at().path} held another run; it is now {lab.at('run.1').path}" in outcome.out
    assert weights(lab, 4, "run.1") == first
    assert weights(lab, 4) != first
    assert steps(lab) == [0, 1, 2, 3, 4]


def test_resume_from_a_path_continues_another_run_in_a_folder_of_its_own(lab):
    assert lab.run("old", trainer__epochs=3).code == 0
    outcome = lab.run(
        "new",
        trainer__epochs=3,
        trainer__resume_mode="from_path",
        trainer__resume_path=str(lab.at("old").checkpoints / "global_step_4"),
    )
    assert outcome.code == 0
    assert "going on after step 4 of 6" in outcome.out
    assert weights(lab, 6, "new") == weights(lab, 6, "old")
    assert steps(lab, "new") == [5, 6]
    assert checkpoints(lab, "old") == ["global_step_2", "global_step_4", "global_step_6"]


def test_resume_from_a_path_in_the_same_folder_goes_back_and_keeps_the_branch_that_it_leaves(lab):
    assert lab.run(trainer__epochs=3).code == 0
    last = weights(lab, 6)
    outcome = lab.run(
        trainer__epochs=3,
        trainer__resume_mode="from_path",
        trainer__resume_path=str(lab.at().checkpoints / "global_step_2"),
    )
    assert outcome.code == 0
    assert weights(lab, 6) == last
    assert steps(lab) == [0, 1, 2, 3, 4, 5, 6]
    assert checkpoints(lab) == [
        *("global_step_2", "global_step_4", "global_step_4.1", "global_step_6", "global_step_6.1"),
    ]


def test_a_resume_path_that_is_no_checkpoint_names_those_that_are_near(lab):
    assert lab.run().code == 0
    folder = lab.at().path
    outcome = lab.run("other", trainer__resume_mode="from_path", trainer__resume_path=str(folder))
    assert f"trainer.resume_path={folder} is no checkpoint" in outcome.complaint
    assert f"{folder / 'checkpoints' / 'global_step_4'}" in outcome.complaint
    assert not lab.at("other").path.exists()


def test_what_changes_no_step_may_change_between_two_parts_of_a_run(lab):
    assert lab.run(trainer__epochs=1).code == 0
    outcome = lab.run(
        "run", "--plugin", "jsonl", trainer__eval_interval=1, trainer__ckpt_interval=1
    )
    assert outcome.code == 0
    assert checkpoints(lab) == ["global_step_2", "global_step_3", "global_step_4"]
    events = (lab.at().path / "events.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in events][:: len(events) - 1] == [
        "run_start",
        "run_end",
    ]


ATTACHED = {
    "generator.inference_engine.run_engines_locally": "false",
    "generator.inference_engine.external_server_urls": "[http://127.0.0.1:1]",
    "trainer.placement.colocate_all": "false",
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("external_server_urls", "[http://10.0.0.7:8000, http://10.0.0.8:8000]"),
        ("external_proxy_url", "http://10.0.0.9:8000"),
        ("run_engines_locally", "true"),
    ],
)
def test_a_run_goes_on_with_a_server_at_another_address_or_its_own(tmp_path, name, value):
    words = ATTACHED | {f"generator.inference_engine.{name}": value}
    if name == "run_engines_locally":
        words.pop("generator.inference_engine.external_server_urls")
    before, now = (
        make_plan(["demo", "vllm"], overrides=[f"{key}={one}" for key, one in given.items()]).config
        for given in (ATTACHED, words)
    )
    with RunFolder.create(tmp_path / "run") as folder:
        folder.write_config(before.tree, before.origins)
        find_start(folder, now.config.trainer, now.tree, [])


# --- damage -------------------------------------------------------------------------------------


def test_a_damaged_newest_checkpoint_is_told_and_the_one_before_is_used(lab):
    assert lab.run().code == 0
    undamaged = weights(lab, 4)
    damage(lab, 4)
    outcome = lab.run()
    assert outcome.code == 0
    assert (
        "global_step_4 is damaged: weights.safetensors is not what was written (SHA-256 differs); "
        "going on from global_step_2 instead" in outcome.out
    )
    assert "warning: " in outcome.out
    assert weights(lab, 4) == undamaged
    assert "global_step_4.1" in checkpoints(lab)  # reported and set aside, not deleted


def test_if_every_checkpoint_is_damaged_nothing_is_touched(lab):
    assert lab.run().code == 0
    damage(lab, 2)
    damage(lab, 4)
    before = lab.leavings()
    outcome = lab.run()
    assert outcome.code == 1
    assert "no checkpoint of" in outcome.err
    assert "global_step_4 is damaged" in outcome.err
    assert "trainer.resume_mode=none" in outcome.err
    assert lab.leavings() == before


def test_a_damaged_checkpoint_that_was_asked_for_by_path_is_refused(lab):
    assert lab.run().code == 0
    damage(lab, 2)
    outcome = lab.run(
        "other",
        trainer__resume_mode="from_path",
        trainer__resume_path=str(lab.at().checkpoints / "global_step_2"),
    )
    assert outcome.code == 1
    assert "global_step_2 is damaged: weights.safetensors is not what was written" in outcome.err
    assert not lab.at("other").path.exists()


# --- changed plugins, changed data ----------------------------------------------------------------


def test_a_plugin_whose_version_changed_is_told_from_the_lock_in_the_checkpoint(lab):
    site = lab.folder / "site"
    install_sabotage(site)
    discover(refresh=True)
    assert lab.run("run", "--plugin", "sabotage", trainer__epochs=1).code == 0
    metadata = site / "skyrl_sabotage-0.1.0.dist-info"
    text = (metadata / "METADATA").read_text()
    (metadata / "METADATA").write_text(text.replace("Version: 0.1.0", "Version: 0.2.0"))
    metadata.rename(site / "skyrl_sabotage-0.2.0.dist-info")
    discover(refresh=True)
    outcome = lab.run("run", "--plugin", "sabotage")
    assert outcome.code == 0
    assert (
        "warning: plugins changed since global_step_2 was written: sabotage: skyrl-sabotage 0.1.0 → "
        "0.2.0; what follows may differ from an undisturbed run" in outcome.out
    )


def test_training_data_that_changed_under_a_run_is_refused(lab):
    words = lab.words(trainer__epochs=1)
    assert skyrl(*words).code == 0
    lab.rows("train", 9)
    changed = [word for word in words if "epochs" not in word] + ["trainer.epochs=2"]
    outcome = skyrl(*changed)
    assert "the checkpoint was made with other training data" in outcome.complaint
    assert steps(lab) == [0, 1, 2]


# --- one process per folder -----------------------------------------------------------------------


def test_a_folder_that_another_process_holds_is_refused_and_names_it(lab):
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, pathlib; from skyrl_kernel.run.lock import FolderLock\n"
            "lock = FolderLock(pathlib.Path(sys.argv[1])); print('held', flush=True); input()",
            str(lab.at().path),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout.readline() == "held\n"
    complaint = lab.run().complaint
    holder.communicate("\n")
    assert f"run folder {lab.at().path} is in use by process {holder.pid} on " in complaint
    assert "give this run another trainer.run_name" in complaint
    assert lab.run().code == 0


# --- what is exported ---------------------------------------------------------------------------


def test_the_export_loads_with_transformers_and_computes_what_the_trainer_computed(lab):
    from safetensors.torch import load_file

    assert lab.run().code == 0
    export = lab.at().export / "global_step_4"
    model = AutoModelForCausalLM.from_pretrained(export)
    tokenizer = AutoTokenizer.from_pretrained(export)
    trained = AutoModelForCausalLM.from_pretrained(lab.model)
    state = load_file(lab.at().checkpoints / "global_step_4" / "weights.safetensors")
    trained.load_state_dict(state, strict=False)  # tied tensors are in it once
    trained.tie_weights()
    chat = [{"role": "user", "content": "Digits please 3"}]
    ids = tokenizer.apply_chat_template(chat, return_tensors="pt", return_dict=False)
    with torch.no_grad():
        assert torch.equal(model(ids).logits, trained(ids).logits)
    assert model.dtype == torch.float32


def test_exports_go_where_they_are_asked_to_and_as_often(lab):
    elsewhere = lab.folder / "elsewhere"
    outcome = lab.run(trainer__export_path=str(elsewhere), trainer__hf_save_interval=2)
    assert outcome.code == 0
    left = sorted(path.relative_to(elsewhere).as_posix() for path in elsewhere.glob("*/*"))
    # each run has its own
    assert left == ["run/dumped_evals", "run/global_step_2", "run/global_step_4"]
    assert not (lab.at().path / "export").exists()


def test_exports_do_not_depend_on_when_checkpoints_are_due(lab):
    outcome = lab.run(trainer__hf_save_interval=1, trainer__ckpt_interval=3)
    assert outcome.code == 0
    exports = sorted(path.name for path in lab.at().export.iterdir())
    assert exports == [f"global_step_{step}" for step in (1, 2, 3, 4)]


def test_a_folder_with_results_of_unknown_origin_is_refused_and_kept(lab):
    assert lab.run().code == 0
    lab.at().config.unlink()
    before = lab.leavings()
    outcome = lab.run()
    assert outcome.code == 2
    assert "holds results but no config.yaml" in outcome.err
    assert "trainer.resume_mode=none" in outcome.err
    assert lab.leavings() == before


def test_a_damaged_config_of_a_run_is_one_clear_line(lab):
    assert lab.run().code == 0
    lab.at().config.write_text("trainer: [")
    outcome = lab.run()
    assert outcome.code == 2
    assert "config.yaml is damaged" in outcome.err


@pytest.mark.parametrize("size", [2, 8])
def test_a_checkpoint_of_another_batch_size_is_refused(lab, size):
    assert lab.run().code == 0
    start = lab.at().checkpoints / "global_step_2"
    outcome = lab.run(
        "other",
        trainer__train_batch_size=size,
        trainer__resume_mode="from_path",
        trainer__resume_path=str(start),
        trainer__epochs=8,
    )
    assert outcome.code == 2
    assert "written with another trainer.train_batch_size" in outcome.err
    assert "set it back to 4" in outcome.err


def test_old_log_probs_are_the_trainers_where_its_temperature_is_another(lab):
    heats = {"trainer__algorithm__temperature": 3.0}
    assert lab.run(**heats).code == 0
    for line in lab.at().read_metrics()[1:]:
        if line["loss/avg_raw_advantages_abs"] > 0:
            first_update_is_on_policy = line["policy/loss_metrics/ratio_mean"]
            assert first_update_is_on_policy == pytest.approx(1.0, abs=0.1)
    refused = lab.run("b", **heats, trainer__algorithm__recompute_old_logprobs=False)
    assert refused.code == 2
    assert "cannot stand for the old ones" in refused.err


def test_an_export_can_be_trained_on(lab):
    assert lab.run().code == 0
    export = lab.at().export / "global_step_4"
    assert lab.run("second", trainer__policy__model__path=str(export)).code == 0


# --- evaluating what is there ------------------------------------------------------------------------


def evaluated(*words):
    outcome = skyrl("eval", "--json", *words)
    assert outcome.code == 0, outcome.err
    return json.loads(outcome.out)


def evals(line):
    return {key: value for key, value in line.items() if key.startswith("eval/")}


def test_evaluating_a_run_gives_the_numbers_that_the_run_gave_and_writes_nothing(lab):
    assert lab.run(generator__eval_n_samples_per_prompt=4).code == 0
    lines = {line["step"]: line for line in lab.at().read_metrics()}
    assert evals(lines[2]) != evals(lines[4])
    before = {path: path.stat().st_mtime_ns for path in lab.at().path.rglob("*")}
    newest = evaluated(lab.at().path)
    assert newest["step"] == 4
    assert newest["metrics"] == evals(lines[4])
    assert evaluated(lab.at().path, "--step", 2)["metrics"] == evals(lines[2])
    export = lab.at().export / "global_step_4"
    words = ("environment.env_class=probe", f"data.val_data=['{lab.folder / 'val.jsonl'}']")
    sampling = (
        "generator.eval_n_samples_per_prompt=4",
        "generator.eval_sampling_params.temperature=1",
        "generator.eval_sampling_params.max_generate_length=6",
        "trainer.bf16=false",
    )
    model = evaluated(export, *words, *sampling)
    assert (model["step"], model["metrics"]) == (None, evals(lines[4]))
    assert {path: path.stat().st_mtime_ns for path in lab.at().path.rglob("*")} == before


def test_a_run_that_trained_a_critic_too_can_be_evaluated(lab):
    assert lab.run(trainer__algorithm__advantage_estimator="gae").code == 0
    last = lab.at().read_metrics()[-1]
    assert "critic/explained_variance" in last
    assert evaluated(lab.at().path)["metrics"] == evals(last)


def test_an_evaluation_shows_each_data_source_and_all(lab):
    assert lab.run().code == 0
    outcome = skyrl("eval", lab.at().path, f"data.val_data=['{lab.rows('more', 5)}']")
    assert outcome.code == 0
    title, header, first, second, total = outcome.out.splitlines()
    assert title == f"{lab.at().path}, step 4"
    assert header.split()[:3] == ["data", "source", "avg_score"]
    assert [line.split()[0] for line in (first, second, total)] == ["probe_0", "probe_1", "all"]
    column = header.replace("data source", "data_source").split().index("num_trajectories")
    assert [line.split()[column] for line in (first, second, total)] == ["3", "2", "5"]


def test_evaluating_says_when_the_newest_checkpoint_is_damaged(lab):
    assert lab.run().code == 0
    damage(lab, 4)
    outcome = skyrl("eval", lab.at().path)
    assert outcome.code == 0
    assert "global_step_4 is damaged" in outcome.err
    assert "evaluating global_step_2 instead" in outcome.err
    assert outcome.out.startswith(f"{lab.at().path}, step 2\n")


def test_lost_trajectories_of_an_evaluation_are_told(lab):
    assert lab.run().code == 0
    rows = lab.write(
        "ill",
        [
            {"prompt": [{"role": "user", "content": "1"}], "trouble": "raises", "always": True},
            {"prompt": [{"role": "user", "content": "2"}]},
        ],
    )
    outcome = skyrl("eval", lab.at().path, f"data.val_data=['{rows}']")
    assert outcome.code == 0
    assert "warning: 1 trajectories were lost and count nowhere above; the first: env 'probe'" in (
        outcome.err
    )
    rows = lab.rows("ill", 2, trouble="raises", always=True)
    outcome = skyrl("eval", lab.at().path, f"data.val_data=['{rows}']")
    assert outcome.code == 1
    assert outcome.err.startswith("skyrl: all 2 trajectories failed; the first: env 'probe'")


def test_what_cannot_be_evaluated_is_refused(lab):
    assert lab.run().code == 0
    folder = lab.at().path
    for words, told in {
        (folder, "--step", 3): "has no checkpoint of that step; there are: 2, 4",
        (folder, "data.val_data=[]"): "there is nothing to evaluate on: data.val_data is empty",
        (folder.parent,): f"is neither a run folder, which has config.yaml, nor a Hugging Face "
        f"directory, which has config.json; run folders in it: {folder}",
        (lab.model, "--step", 3): "is no run folder: it has no config.yaml",
        (lab.folder / "no/where",): "does not exist; name a Hugging Face directory",
        (folder, "trainer.epoch=3"): "did you mean 'trainer.epochs'?",
    }.items():
        assert told in skyrl("eval", *words).complaint


def test_a_run_without_checkpoint_has_nothing_to_evaluate(lab):
    assert lab.run().code == 0
    for path in lab.at().checkpoints.iterdir():
        path.rename(lab.folder / path.name)
    assert "has no checkpoint yet" in skyrl("eval", lab.at().path).complaint


def test_secrets_that_a_run_does_not_keep_are_asked_for_again(lab):
    source = """
        from skyrl_kernel.config import Section
        from skyrl_kernel.hookspecs import hookimpl

        class Vault(Section):
            api_key: str = ""

        @hookimpl
        def config_sections():
            return {"environment.vault": Vault}
    """
    make_distribution(
        lab.folder / "site",
        "skyrl-vault",
        modules={"skyrl_vault.plugin": source},
        entry_points={"skyrl.plugins": {"vault": "skyrl_vault.plugin"}},
        files={
            "skyrl_vault/plugin.toml": '[vault]\nsummary = "x"\nconfig = ["environment.vault"]\n'
        },
    )
    discover(refresh=True)
    assert lab.run("run", "--plugin", "vault", environment__vault__api_key="open sesame").code == 0
    written = [path for path in lab.at().path.rglob("*") if path.is_file()]
    assert not [path for path in written if b"open sesame" in path.read_bytes()]
    complaint = skyrl("eval", lab.at().path).complaint
    assert "does not hold the secrets of the run: give environment.vault.api_key again" in complaint
    assert skyrl("eval", lab.at().path, "environment.vault.api_key=x").code == 0
