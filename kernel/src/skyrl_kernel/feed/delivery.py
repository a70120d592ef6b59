"""One logger's deliveries: what its store has not been given, in order, exactly up to now."""

import contextlib
from collections.abc import Callable, Iterator

from skyrl_kernel.config import TrainerConfig
from skyrl_kernel.feed.backlog import LOGGERS, Backlog, Wanted
from skyrl_kernel.feed.cursor import Cursor
from skyrl_kernel.feed.sink import NOTHING, LogEnd, LogRun, Sink
from skyrl_kernel.run.folder import RunFolder


class Delivery:
    """Brings a store up to date from a run folder, as often as it is asked to.

    An exception of the sink passes to the caller, and the sink is given up: the
    next call makes another one and goes on with the record that failed.

    Args:
        folder: The run's; only ``loggers/<name>.json`` is written.
        name: The logger's.
        make: Makes a fresh sink.
        config: ``trainer`` of the run.
        back_to: The step that the run went back to by ``trainer.resume_path``, if it did:
            what the store was given of later steps is another run then.
        watched: Entered around each call of the sink, with the call's name.
    """

    def __init__(
        self,
        folder: RunFolder,
        name: str,
        make: Callable[[], Sink],
        config: TrainerConfig,
        *,
        back_to: int | None = None,
        watched: Callable[
            [str], contextlib.AbstractContextManager[object]
        ] = contextlib.nullcontext,
    ) -> None:
        self.cursor = Cursor.load(folder.path / LOGGERS / f"{name}.json")
        if back_to is not None and self.cursor.step > back_to:
            self.cursor.go_back()
        self._folder = folder
        self._make = make
        self._config = config
        self._watched = watched
        wanted = Wanted(
            train_samples=config.num_logger_train_samples if config.dump_trajectories else 0,
            eval_samples=config.num_logger_eval_samples,
        )
        self._backlog = Backlog(folder, wanted)
        self._sink: Sink | None = None

    def missing(self) -> list[int]:
        """Steps that the run has finished and the store has not been given."""
        return [step for step in self._backlog.steps() if step > self.cursor.step]

    def catch_up(self, *, ended: bool = False) -> Iterator[int]:
        """Deliver what is there and not delivered; the steps, one by one.

        Args:
            ended: True if the run writes no more.
        """
        if self._backlog.read_on(self.cursor.step) and self._sink is None:
            self._opened()  # the store may tell that it holds less, or more, than was noted
            self._backlog.read_on(self.cursor.step)
        for record in self._backlog.records(self.cursor.step, ended=ended):
            sink = self._opened()
            with self._call("log"):
                sink.log(record)
            self.cursor.step = record.step
            self.cursor.save()
            yield record.step

    def close(self, end: LogEnd) -> None:
        """Tell the store that the run ended, unless it knows."""
        if self.cursor.closed:
            return
        sink = self._opened()
        with self._call("close"):
            sink.close(end)
        self._sink = None
        self.cursor.closed = True
        self.cursor.save()

    def _opened(self) -> Sink:
        if self._sink is not None:
            return self._sink
        cursor, config = self.cursor, self._config
        sink = self._make()
        lock = self._folder.read_plugins() if self._folder.plugins.exists() else []
        run = LogRun(
            id=cursor.id,
            name=config.run_name if cursor.copy == 1 else f"{config.run_name}.{cursor.copy}",
            project=config.project_name,
            folder=self._folder.path,
            config=self._folder.read_config(),
            tags=tuple(config.tags or ()),
            plugins=[f"{one['name']} {one['distribution']} {one['version']}" for one in lock],
            resumed=cursor.opened,
            last_step=None if cursor.step == NOTHING else cursor.step,
        )
        with self._call("open"):
            held = sink.open(run)
        if held is not None and held != cursor.step:
            cursor.step = held
            self._backlog.rewind()
        self._sink = sink
        cursor.opened, cursor.closed = True, False
        cursor.save()
        return sink

    @contextlib.contextmanager
    def _call(self, name: str) -> Iterator[None]:
        """Around a call of the sink: one that raised is not used again."""
        try:
            with self._watched(name):
                yield
        except BaseException:
            self._sink = None
            raise
