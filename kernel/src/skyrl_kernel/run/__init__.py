"""What a run leaves on the disk: its folder, and the checkpoints in it."""

from skyrl_kernel.run.checkpoint import (
    Checkpoint,
    checkpoint_at,
    latest_checkpoint,
    load_state,
    save_checkpoint,
    set_aside_later,
    verify,
)
from skyrl_kernel.run.folder import RunFolder
from skyrl_kernel.run.lock import FolderLock
from skyrl_kernel.run.trajectory_file import read_trajectories, write_trajectories

__all__ = [
    "Checkpoint",
    "FolderLock",
    "RunFolder",
    "checkpoint_at",
    "latest_checkpoint",
    "load_state",
    "read_trajectories",
    "save_checkpoint",
    "set_aside_later",
    "verify",
    "write_trajectories",
]
