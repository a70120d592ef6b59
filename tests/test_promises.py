"""Each promise of the design has a test that bears its name; each refusal names the test it has.

A run that learns nothing says so, one bad call costs one trajectory, a kill costs nothing, secrets
stay secret, commands are quick, numbers repeat. What no other file shows is shown here; for the
rest, `PROVEN` says where.
"""

import ast
import os
import resource
import subprocess
import sys

import pytest
from running import COMMAND, Lab, probe_installed, without_times
from workspace import ROOT

from skyrl_kernel.testing.distributions import make_distribution, make_plugins

PROVEN = {
    # a run that learns nothing says so
    "constant rewards are told": "tests/test_bad_input.py::test_constant_rewards_say_so",
    "unchanged weights are told": "tests/test_bad_input.py::test_weights_that_do_not_change_say_so",
    "a resume that trains zero steps is told": "tests/test_resume.py::test_the_command_of_a_finished_run_trains_nothing_and_says_how_to_start_another",
    "NaN in the engine is refused": "plugins/backends/transformers/tests/test_transformers_engine.py::test_nan_weights_stop_generation",
    "NaN in the gradient is refused": "plugins/backends/fsdp/tests/test_fsdp_update.py::test_an_overflowing_gradient_is_refused",
    # one bad call costs one trajectory
    "a bad env costs one trajectory, typed": "tests/test_bad_input.py::test_an_env_that_fails_costs_one_trajectory_typed_and_counted",
    "a failure budget stops the run": "tests/test_bad_input.py::test_more_failures_than_the_budget_stop_the_run",
    # kill -9, then the same command
    "a kill changes no bit": "tests/test_kill.py::test_killed_in_a_rollout_a_checkpoint_and_the_export_a_run_ends_as_if_undisturbed",
    "a kill at ten random moments changes no bit": "tests/test_kill.py::test_killed_at_ten_random_moments_a_run_ends_as_if_undisturbed",
    # secrets
    "secrets are in no file of a run": "tests/test_resume.py::test_secrets_that_a_run_does_not_keep_are_asked_for_again",
    "secrets reach no log": "kernel/tests/test_logs.py::test_secrets_reach_neither_file_nor_screen",
    "secrets reach no printed config": "tests/test_cli.py::test_a_dry_run_writes_nothing_and_masks_secrets",
    # section 2: layout
    "two distributions that claim one name": "kernel/tests/test_plugins_discovery.py::test_two_distributions_claiming_one_name_are_both_named",
    "a kernel range that does not fit": "kernel/tests/test_plugins_manager.py::test_trap_a_plugin_for_another_kernel_is_refused_before_its_code_runs",
    "a plugin.toml that differs from the module": "kernel/tests/test_plugins_manager.py::test_sections_that_differ_from_plugin_toml_are_refused",
    # section 3: hooks
    "a broken plugin is named and the rest load": "kernel/tests/test_plugins_manager.py::test_trap_a_broken_plugin_is_named_with_its_distribution_and_hides_no_other",
    "only selected plugins are imported": "kernel/tests/test_plugins_manager.py::test_only_selected_plugins_are_imported",
    "a misspelt hook": "tests/test_bad_input.py::test_a_misspelt_hook_is_answered_with_the_nearest_one",
    "sync where async is due": "tests/test_bad_input.py::test_a_sync_callable_where_an_async_one_is_due_is_refused",
    "async where sync is due": "kernel/tests/test_plugins_stages.py::test_async_where_sync_is_due_is_refused",
    "an exception carries plugin, hook and step": "tests/test_cli.py::test_an_error_in_a_plugin_names_plugin_hook_and_step",
    "capabilities that do not fit are explained": "kernel/tests/test_plugins_capabilities.py::test_an_unmet_need_says_who_needs_it_who_lacks_it_and_who_has_it",
    # section 4: data
    "truncated sampling in training": "tests/test_bad_input.py::test_a_wrong_key_or_value_is_explained",
    "a data set of the wrong schema": "tests/test_bad_input.py::test_a_data_set_of_the_wrong_schema_names_file_row_and_column",
    "training data that changed under a run": "tests/test_resume.py::test_training_data_that_changed_under_a_run_is_refused",
    # section 5: config
    "an unknown key, with the nearest": "tests/test_bad_input.py::test_a_wrong_key_or_value_is_explained",
    "two presets that differ": "tests/test_bad_input.py::test_two_presets_that_clash_name_both_and_the_key_to_choose_by",
    "somebody else's run folder": "tests/test_bad_input.py::test_a_run_folder_made_with_another_config_is_left_as_it_is",
    # section 6: processes
    "another process in the run folder": "tests/test_resume.py::test_a_folder_that_another_process_holds_is_refused_and_names_it",
    "a changed plugin lock is told with a diff": "tests/test_resume.py::test_a_plugin_whose_version_changed_is_told_from_the_lock_in_the_checkpoint",
    "a torn weight update": "plugins/backends/transformers/tests/test_transformers_engine.py::test_a_wrong_update_is_refused_and_the_old_weights_stay",
    "an update finished with another version": "plugins/backends/transformers/tests/test_transformers_engine.py::test_finishing_another_version_is_refused",
    # section 7: what is left
    "a damaged checkpoint": "tests/test_resume.py::test_a_damaged_newest_checkpoint_is_told_and_the_one_before_is_used",
    "pickled weights": "plugins/backends/transformers/tests/test_transformers_tokenizer.py::test_pickled_weights_are_not_read",
    "nothing pickled is written": "tests/test_resume.py::test_nothing_that_is_loaded_from_a_run_is_a_pickle",
    "exports and logs move where they are sent": "tests/test_resume.py::test_exports_go_where_they_are_asked_to_and_as_often",
}  # fmt: skip
"""What is promised or refused → the test that shows it."""


@pytest.mark.parametrize("promise", PROVEN)
def test_the_test_of_a_promise_exists(promise):
    file, _, name = PROVEN[promise].partition("::")
    tree = ast.parse((ROOT / file).read_text())
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.fixture
def lab(random_model, tmp_path):
    with probe_installed(tmp_path / "site"):
        yield Lab(random_model, tmp_path)


def install(lab, name, source):
    """A plugin of kind ``plugin``."""
    make_plugins(lab.folder / "site", {name: source})


# --- 1: a run that learns nothing says so -----------------------------------------------------


def test_promise_1_a_batch_that_is_all_masked_says_so(lab):
    install(
        lab,
        "shutter",
        """
        from dataclasses import replace
        from skyrl_kernel.hookspecs import hookimpl

        @hookimpl(wrapper=True)
        def select():
            inner = yield

            def mask_all(candidates, target, rng):
                chosen = inner(candidates, target, rng)
                return replace(chosen, verdicts=("mask",) * len(candidates))

            return mask_all
        """,
    )
    outcome = lab.run("run", "--plugin", "shutter")
    assert outcome.code == 0
    assert "warning: step 1: every token of the batch is masked: the step trains on nothing" in (
        outcome.out
    )
    assert "warning: step 1: the optimizer left every weight as it was" in outcome.out


def test_promise_1_a_nan_stops_the_run_and_names_where_it_is(lab):
    install(
        lab,
        "poison",
        """
        from dataclasses import replace
        from skyrl_kernel.hookspecs import hookimpl

        @hookimpl(wrapper=True)
        def loss():
            inner = yield

            def fn(inputs):
                out = inner.fn(inputs)
                return replace(out, terms={name: t * float("nan") for name, t in out.terms.items()})

            return replace(inner, fn=fn)
        """,
    )
    outcome = lab.run("run", "--plugin", "poison")
    assert outcome.code == 1
    assert "Traceback" not in outcome.err
    assert "NaN" in outcome.err
    assert "the loss terms 'policy'" in outcome.err
    assert "0:" in outcome.err  # a trajectory, by its prompt's row


# --- 2: one bad call costs one trajectory --------------------------------------------------------

ONE_BAD_CALL = """
    from skyrl_kernel.hookspecs import hookimpl

    @hookimpl(wrapper=True)
    def generate():
        inner = yield

        async def play(prompt, context):
            if (prompt.uid, context.sample) == ("0:0", 1) and "{stage}" == "generate":
                raise ConnectionError("the engine hung up")
            return await inner(prompt, context)

        return play

    @hookimpl(wrapper=True)
    def reward():
        inner = yield

        def judge(trajectories):
            if "{stage}" == "reward" and any(t.id == "0:0/1" for t in trajectories):
                raise ValueError("no verdict")
            return inner(trajectories)

        return judge
"""


@pytest.mark.parametrize(
    ("stage", "cause"),
    [
        ("generate", "ConnectionError: the engine hung up"),
        ("reward", "ValueError: no verdict"),
    ],
)
def test_promise_2_one_bad_engine_or_reward_call_costs_one_trajectory(lab, stage, cause):
    install(lab, "hiccup", ONE_BAD_CALL.format(stage=stage))
    outcome = lab.run("run", "--plugin", "hiccup", trainer__epochs=1, data__val_data=[])
    assert outcome.code == 0
    (failure,) = lab.at().read_failures()
    assert (failure["uid"], failure["sample"], failure["plugin"]) == ("0:0", 1, "hiccup")
    assert failure["kind"] in {"infrastructure", "task"}
    assert failure["message"].endswith(cause)
    trained = [one for step in (1, 2) for one in lab.at().read_trajectories(step)]
    assert len(trained) == 31  # 2 steps of 4 prompts by 4, less one
    assert sum(line.get("failures/trajectories", 0) for line in lab.at().read_metrics()) == 1


# --- 5: commands are quick ------------------------------------------------------------------------


@pytest.mark.parametrize(("words", "limit_s"), [(["--help"], 0.3), (["plugins", "list"], 0.5)])
def test_promise_5_help_and_a_list_of_40_plugins_are_quick(tmp_path, words, limit_s):
    for number in range(40):
        make_distribution(
            tmp_path,
            f"skyrl-env-n{number}",
            modules={f"skyrl_env_n{number}.plugin": "raise SystemExit"},
            entry_points={"skyrl.envs": {f"n{number}": f"skyrl_env_n{number}.plugin"}},
            files={f"skyrl_env_n{number}/plugin.toml": f'[n{number}]\nsummary = "One of 40."\n'},
        )
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        environment = os.environ | {"PYTHONPATH": str(tmp_path)}
        done = subprocess.run([COMMAND, *words], env=environment, capture_output=True, text=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.returncode == 0, done.stderr
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert "plugins" not in words or "n39" in done.stdout
    assert min(seconds) < limit_s, f"{seconds} s of computing on {sys.version}"


# --- 6: numbers repeat ------------------------------------------------------------------------------


def test_promise_6_the_same_seed_gives_the_same_numbers_and_another_seed_others(lab):
    for name, seed in {"one": 1, "again": 1, "other": 2}.items():
        assert lab.run(name, trainer__seed=seed, trainer__algorithm__use_kl_loss=True).code == 0
    one, again, other = (lab.at(name) for name in ("one", "again", "other"))
    assert without_times(one.read_metrics()) == without_times(again.read_metrics())
    assert without_times(one.read_metrics()) != without_times(other.read_metrics())
    exported = "global_step_4/model.safetensors"
    assert (one.export / exported).read_bytes() == (again.export / exported).read_bytes()


# --- observers ----------------------------------------------------------------------------------------


def test_an_observer_that_raises_is_named_and_does_not_stop_the_run(lab):
    install(
        lab,
        "clumsy",
        """
        from skyrl_kernel.hookspecs import hookimpl

        @hookimpl
        def on_step_end(step):
            raise RuntimeError("cannot draw")
        """,
    )
    outcome = lab.run("run", "--plugin", "clumsy")
    assert outcome.code == 0
    assert "clumsy" in outcome.out
    assert "cannot draw" in outcome.out
    assert [line["step"] for line in lab.at().read_metrics()] == [0, 1, 2, 3, 4]


def test_an_observer_that_stops_the_run_ends_it_cleanly_and_the_same_command_goes_on(lab):
    install(
        lab,
        "brake",
        """
        from skyrl_kernel.errors import StopRun
        from skyrl_kernel.hookspecs import hookimpl

        @hookimpl
        def on_step_end(step):
            if step.step == 1:
                raise StopRun("that was enough")
        """,
    )
    outcome = lab.run("run", "--plugin", "brake")
    assert outcome.code == 0
    assert "stopped at step 1: that was enough" in outcome.out
    assert [path.name for path in lab.at().checkpoints.iterdir()] == ["global_step_1"]
    assert lab.run("run", "--plugin", "brake").code == 0
    assert lab.run("straight").code == 0
    weights = "global_step_4/weights.safetensors"
    assert (lab.at().checkpoints / weights).read_bytes() == (
        lab.at("straight").checkpoints / weights
    ).read_bytes()
