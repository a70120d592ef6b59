"""The folder that a run leaves behind.

    <ckpt_path>/<run_name>/
        config.yaml                  the resolved config, with origins
        plugins.json                 the plugin lock
        metrics.jsonl                one object per step
        failures.jsonl               one object per lost trajectory
        trajectories/step_N.parquet  what was trained on
        dumped_evals/                what evaluations generated; `skyrl_kernel.run.eval_dump`
        checkpoints/global_step_N/   `skyrl_kernel.run.checkpoint`
        export/                      Hugging Face directories
        log.jsonl                    `skyrl_kernel.logs`
        logs/                        of each other process; `skyrl_kernel.ray.logs`

One process writes a folder at a time. Lines are appended and flushed, whole
files are renamed into place; after a kill, `RunFolder.truncate_after` takes the
folder back to the step of the checkpoint that the run continues from.
"""

import dataclasses
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from skyrl_kernel.errors import ResumeError
from skyrl_kernel.json_lines import LineFile, append_lines, number, read_lines
from skyrl_kernel.run.atomic import (
    discard,
    remove_leftovers,
    set_aside,
    sync_file,
    sync_folder,
    write_atomically,
    write_folder_atomically,
)
from skyrl_kernel.run.config_file import config_text, read_config
from skyrl_kernel.run.lock import LOCK_NAME, FolderLock
from skyrl_kernel.run.trajectory_file import read_trajectories, trajectory_table, write_table

if TYPE_CHECKING:
    from skyrl_kernel.config import TrainerConfig
    from skyrl_kernel.credited import Credited
    from skyrl_kernel.records import Failure, Group

_TRAJECTORIES = re.compile(r"^step_(\d+)\.parquet$")
_EVALS = re.compile(r"^global_step_(\d+)_evals$")


class RunFolder:
    """Paths, writers and readers of one run's folder.

    ``RunFolder(path)`` reads and touches nothing by itself; `create` makes the
    folder and holds it until `close`.

    Args:
        path: The folder.
        export: ``trainer.export_path``; default ``export/`` inside.
        logs: ``trainer.log_path``; default the folder itself.
    """

    def __init__(self, path: Path, *, export: Path | None = None, logs: Path | None = None) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.plugins = path / "plugins.json"
        self.metrics = path / "metrics.jsonl"
        self.failures = path / "failures.jsonl"
        self.trajectories = path / "trajectories"
        self.checkpoints = path / "checkpoints"
        self.export = path / "export" if export is None else export
        is_inside = self.export == path / "export"
        self.dumped_evals = (path if is_inside else self.export) / "dumped_evals"
        self.logs = path if logs is None else logs
        self._metrics_file: LineFile | None = None
        """Kept open while the folder is held; None where it is not."""
        self._lock: FolderLock | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._writing: Future[None] | None = None
        self._unsynced: list[Path] = []
        """Files of trajectories that a power cut could still take."""

    @classmethod
    def of(cls, config: "TrainerConfig") -> Self:
        """Where the run with this ``trainer`` section has its files."""
        name = config.run_name

        def own_part(root: str | None) -> Path | None:  # runs must not overwrite each other
            return Path(root).expanduser() / name if root else None

        return cls(
            Path(config.ckpt_path).expanduser() / name,
            export=own_part(config.export_path),
            logs=own_part(config.log_path),
        )

    @classmethod
    def create(cls, path: Path, *, export: Path | None = None, logs: Path | None = None) -> Self:
        """Make the folder if it is missing, and hold it.

        Raises:
            ResumeError: Another process holds it; says which.
        """
        folder = cls(path, export=export, logs=logs)
        folder._lock = FolderLock(path)
        folder._metrics_file = LineFile(folder.metrics)
        return folder

    def close(self) -> None:
        """Finish writing, and give the folder back."""
        try:
            self._wait()
        finally:
            if self._metrics_file is not None:
                self._metrics_file.close()
            if self._thread is not None:
                self._thread.shutdown()
                self._thread = None
            if self._lock is not None:
                self._lock.release()
                self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def is_empty(self) -> bool:
        """True if no run has written here."""
        return not self.path.exists() or all(
            entry.name == LOCK_NAME for entry in self.path.iterdir()
        )

    @property
    def has_results(self) -> bool:
        """True if there is something that a new run would take away."""
        results = (self.metrics, self.failures, self.trajectories, self.checkpoints)
        return any(path.exists() for path in results)

    def set_aside(self) -> Path:
        """Rename the folder to ``<name>.1`` or the next number, and give it back; the new path.

        Nothing in it is lost; a checkpoint in it can be named by ``trainer.resume_path``.

        Raises:
            ResumeError: Another process holds it.
        """
        if self._lock is None:
            self._lock = FolderLock(self.path)
        try:
            return set_aside(self.path)
        finally:
            self.close()

    # --- written once ---------------------------------------------------------------

    def write_config(self, tree: Mapping[str, Any], origins: Mapping[str, str]) -> None:
        """Write the resolved config; ``origins``: dotted key → where its value came from."""
        write_atomically(self.config, config_text(tree, origins).encode())

    def read_config(self) -> dict[str, Any]:
        """The config as written, secrets masked; compare it with `mask_secrets` of another."""
        return read_config(self.config)

    def write_plugins(self, lock: Mapping[str, Any] | Sequence[Any]) -> None:
        """Write the plugin lock: any JSON value."""
        write_atomically(self.plugins, (json.dumps(lock, indent=1) + "\n").encode())

    def read_plugins(self) -> Any:
        """The plugin lock as written.

        Raises:
            ResumeError: It cannot be read.
        """
        try:
            return json.loads(self.plugins.read_bytes())
        except (OSError, ValueError) as error:
            raise ResumeError(
                f"{self.plugins} is damaged: {error}. Restore it from a copy: it says which plugins the run had"
            ) from error

    # --- written at every step --------------------------------------------------------

    def append_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """One line of ``metrics.jsonl``: ``{"step": 3, "reward/avg_raw_reward": 0.25, …}``.

        Numbers that are not finite are written as ``"NaN"``, ``"Infinity"`` and
        ``"-Infinity"``, since JSON has none.
        """
        line = {"step": step, **metrics}
        if self._metrics_file is None:
            append_lines(self.metrics, [line])
        else:
            self._metrics_file.append([line])

    def read_metrics(self) -> list[dict[str, Any]]:
        """The lines of ``metrics.jsonl``, non-finite numbers as floats again."""
        return [
            {key: number(value) for key, value in record.items()}
            for _, record in read_lines(self.metrics)
        ]

    def eval_dump(self, step: int) -> Path:
        """Where what the evaluation after a step generated is."""
        return self.dumped_evals / f"global_step_{step}_evals"

    def append_failures(self, failures: Sequence["Failure"]) -> None:
        """One line of ``failures.jsonl`` for each lost trajectory."""
        append_lines(self.failures, [dataclasses.asdict(failure) for failure in failures])

    def read_failures(self) -> list[dict[str, Any]]:
        """The lines of ``failures.jsonl``."""
        return [record for _, record in read_lines(self.failures)]

    def trajectory_file(self, step: int) -> Path:
        """Where the trajectories of a step are."""
        return self.trajectories / f"step_{step}.parquet"

    def write_trajectories(
        self,
        step: int,
        groups: Sequence["Group"],
        credited: "Credited | None" = None,
    ) -> Path:
        """Begin to write what a step trained on, in a thread beside its updates; the file.

        What goes into it is taken down before this returns.

        `sync`, `close` and the next call wait until it is there.

        Raises:
            OSError: The call before this one could not write its file.
        """
        self._wait()
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "skyrl-trajectories")
        path = self.trajectory_file(step)
        self._unsynced.append(path)
        # Here, not in the thread: it is Python, and the two would wait for each other all the time.
        table = trajectory_table(groups, credited)
        self._writing = self._thread.submit(write_table, path, table)
        return path

    def _wait(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def read_trajectories(self, step: int, *, timings: bool = True) -> list[dict[str, Any]]:
        """What a step trained on, one dict per trajectory."""
        self._wait()
        return read_trajectories(self.trajectory_file(step), timings=timings)

    def sync(self) -> None:
        """Bring everything written to the disk; call it before a checkpoint that counts on it.

        Raises:
            OSError: Something could not be written.
        """
        self._wait()
        for path in (self.metrics, self.failures, *self._unsynced):
            if path.exists():
                sync_file(path)
        if self._unsynced:
            sync_folder(self.trajectories)
        sync_folder(self.path)
        self._unsynced.clear()

    @staticmethod
    def write_aside(path: Path, write: Callable[[Path], None]) -> Path:
        """Have ``write`` fill a folder, which then stands at ``path`` whole or not at all.

        A folder already there is replaced. For exports; checkpoints have a writer
        of their own.
        """
        write_folder_atomically(path, write)
        return path

    # --- on resume ------------------------------------------------------------------

    def truncate_after(self, step: int) -> list[int]:
        """Remove what steps after ``step`` wrote, and whatever a kill left half-written.

        Lines that stay keep their bytes. Checkpoints are not touched: see
        `skyrl_kernel.run.checkpoint.set_aside_later`.

        Args:
            step: The step of the checkpoint to continue from; -1 to begin anew.

        Returns:
            The steps of which something was removed, in order.
        """
        self._wait()
        if self._metrics_file is not None:
            self._metrics_file.close()
        removed: set[int] = set()
        for path in (self.metrics, self.failures):
            removed.update(_truncate_lines(path, step))
        if self.trajectories.is_dir():
            for entry in self.trajectories.iterdir():
                name = _TRAJECTORIES.match(entry.name)
                if name and int(name[1]) > step:
                    entry.unlink()
                    removed.add(int(name[1]))
            remove_leftovers(self.trajectories)
        if self.dumped_evals.is_dir():
            for entry in self.dumped_evals.iterdir():
                name = _EVALS.match(entry.name)
                if name and int(name[1]) > step:
                    discard(entry)
                    removed.add(int(name[1]))
            remove_leftovers(self.dumped_evals)
        remove_leftovers(self.path)
        return sorted(removed)


def _truncate_lines(path: Path, step: int) -> set[int]:
    """Keep the whole lines up to ``step``; the later steps found."""
    if not path.exists():
        return set()
    lines = [(line, int(record.get("step", 0))) for line, record in read_lines(path)]
    kept = b"".join(line for line, found in lines if found <= step)
    if len(kept) != os.path.getsize(path):
        write_atomically(path, kept)
    return {found for _, found in lines if found > step}
