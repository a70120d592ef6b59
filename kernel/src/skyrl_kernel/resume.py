"""Whether a run folder may be continued by this command, and from where.

`make_room` and `hold` come first, then `find_start`; if the run is refused after
all, `undo` puts everything back.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skyrl_kernel.config import TrainerConfig
from skyrl_kernel.config.sources import flatten
from skyrl_kernel.errors import CheckpointError, ConfigError, ResumeError, is_disk_full
from skyrl_kernel.logs import FILE_NAME
from skyrl_kernel.masking import mask_secrets
from skyrl_kernel.plugins import diff_locks
from skyrl_kernel.ray.logs import FOLDER as PROCESS_LOGS
from skyrl_kernel.run import (
    Checkpoint,
    RunFolder,
    checkpoint_at,
    latest_checkpoint,
    load_state,
)
from skyrl_kernel.run.lock import LOCK_NAME

MAY_CHANGE = frozenset(
    {
        "data.val_data",
        "environment.max_env_workers",
        "environment.timeout_s",
        "generator.inference_engine.external_proxy_url",
        "generator.inference_engine.external_server_urls",
        "generator.inference_engine.num_engines",
        "generator.inference_engine.run_engines_locally",
        "generator.inference_engine.weight_sync_backend",
        "generator.inference_engine.weight_sync_timeout_s",
        "generator.request_timeout_s",
        "generator.reward_timeout_s",
        "trainer.ckpt_interval",
        "trainer.ckpt_path",
        "trainer.close_timeout_s",
        "trainer.dump_trajectories",
        "trainer.epochs",
        "trainer.eval_batch_size",
        "trainer.eval_before_train",
        "trainer.eval_interval",
        "trainer.export_path",
        "trainer.fully_async.num_parallel_generation_workers",
        "trainer.hf_save_interval",
        "trainer.log_path",
        "trainer.logger",
        "trainer.logger_timeout_s",
        "trainer.logprobs_diff.stop_above",
        "trainer.logprobs_diff.warn_above",
        "trainer.max_ckpts_to_keep",
        "trainer.max_failed_frac",
        "trainer.max_training_steps",
        "trainer.num_logger_eval_samples",
        "trainer.num_logger_train_samples",
        "trainer.project_name",
        "trainer.resume_mode",
        "trainer.resume_path",
        "trainer.runtime",
        "trainer.tags",
    }
)
"""Keys with which a run may be continued although they were others: they do not change what a step
computes, but for rounding where other processes compute it. (With ``scheduler=linear`` more ``epochs``
also stretch the schedule from there on.)"""
PROCESSES = ("trainer.placement.", "trainer.ray.")
"""The same of all keys below these."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """Where a run begins."""

    checkpoint: Checkpoint | None
    """None: from the initial weights."""
    state: Mapping[str, Any]
    """The controller's state in the checkpoint."""
    notes: tuple[str, ...] = ()
    """What the user must be told: damaged checkpoints, changed plugins."""


def make_room(folder: RunFolder, config: TrainerConfig) -> Path | None:
    """Move an old run aside for one that begins anew; the new place, or None if nothing was moved.

    A run that goes back to a checkpoint in its own folder stays there.
    """
    if config.resume_mode == "latest" or folder.is_empty:
        return None
    if config.resume_path is not None:
        origin = Path(config.resume_path).expanduser().resolve()
        if origin.is_relative_to(folder.path.resolve()):
            return None
    return folder.set_aside()


def hold(folder: RunFolder) -> RunFolder:
    """The same folder, made and held by this process.

    Raises:
        ConfigError: It cannot be made.
        ResumeError: Another process holds it.
    """
    try:
        return RunFolder.create(folder.path, export=folder.export, logs=folder.logs)
    except OSError as error:
        if is_disk_full(error):
            raise
        raise ConfigError(
            f"the run folder {folder.path} cannot be made: {error.strerror}; set trainer.ckpt_path to "
            "a folder that can be written to"
        ) from error


def undo(folder: RunFolder, moved: Path | None) -> None:
    """A run that never began leaves no folder behind, and the one that it moved where it was."""
    if folder.config.exists() or folder.has_results:
        return
    for name in (LOCK_NAME, FILE_NAME):
        (folder.path / name).unlink(missing_ok=True)
    shutil.rmtree(folder.path / PROCESS_LOGS, ignore_errors=True)  # whose last words were told
    if not any(folder.path.iterdir()):
        folder.path.rmdir()
        if moved is not None:
            moved.rename(folder.path)


def find_start(
    folder: RunFolder,
    config: TrainerConfig,
    tree: Mapping[str, Any],
    lock: Sequence[Mapping[str, Any]],
    free: Sequence[str] = (),
) -> Start:
    """Decide where the run begins; the folder is held and, for a new run, empty.

    Args:
        folder: The run's.
        config: ``trainer``.
        tree: The whole config, as plain values.
        lock: The plugins as they are now.
        free: Sections that may change besides `MAY_CHANGE`: those of loggers.

    Raises:
        ResumeError: The folder belongs to another config or is no run folder, or the
            path named is no checkpoint.
        CheckpointError: The path named is damaged, or every checkpoint is.
    """
    if config.resume_mode == "from_path":
        assert config.resume_path is not None, "checked with the config"
        chosen = checkpoint_at(Path(config.resume_path).expanduser())
        damaged: list[str] = []
    elif config.resume_mode == "latest" and folder.config.exists():
        _refuse_other_config(folder, tree, free)
        found, damaged = latest_checkpoint(folder.checkpoints)
        if found is None:
            if damaged:
                raise CheckpointError(
                    f"no checkpoint of {folder.path} can be used: {'; '.join(damaged)}. Start anew with "
                    "trainer.resume_mode=none (the folder is moved aside, nothing is deleted)"
                )
            return Start(checkpoint=None, state={})
        chosen = found
    elif folder.has_results:
        raise ResumeError(
            f"{folder.path} holds results but no config.yaml, so it is not known what made them. Choose "
            "another trainer.run_name, or trainer.resume_mode=none to move that folder aside"
        )
    else:
        return Start(checkpoint=None, state={})
    state = load_state(chosen)
    notes = [f"{problem}; going on from {chosen.path.name} instead" for problem in damaged]
    changed = diff_locks(state["lock"], list(lock))
    if changed:
        notes.append(
            f"plugins changed since {chosen.path.name} was written: {'; '.join(changed)}; "
            "what follows may differ from an undisturbed run"
        )
    return Start(checkpoint=chosen, state=state, notes=tuple(notes))


def _refuse_other_config(folder: RunFolder, tree: Mapping[str, Any], free: Sequence[str]) -> None:
    before = flatten(folder.read_config())
    now = flatten(mask_secrets(tree))
    ignored = (*PROCESSES, *(f"{section}." for section in free))
    changed = [
        f"{key} was {before.get(key)!r}, is {now.get(key)!r}"
        for key in sorted(before.keys() | now.keys())
        if key not in MAY_CHANGE and not key.startswith(ignored) and before.get(key) != now.get(key)
    ]
    if changed:
        shown = "; ".join(changed[:5]) + (
            f"; and {len(changed) - 5} more" if len(changed) > 5 else ""
        )
        raise ResumeError(
            f"the run folder {folder.path} was made with another config: {shown}. Choose another "
            "trainer.run_name, or trainer.resume_mode=none to move that folder aside and start anew"
        )
