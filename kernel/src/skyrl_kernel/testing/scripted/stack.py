"""Running the whole stack on the fakes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from skyrl_kernel.json_lines import read_lines
from skyrl_kernel.metrics import is_wall_clock
from skyrl_kernel.plugins import discover
from skyrl_kernel.runner import RunResult, run
from skyrl_kernel.slots import ALGORITHMS, BACKENDS, ENVS, PLUGINS
from skyrl_kernel.testing.distributions import make_distribution, on_path
from skyrl_kernel.testing.scripted.script import COUNTING, NAME, Script, perform


@contextmanager
def installed(folder: Path, version: str = "0.1.0") -> Iterator[Path]:
    """Have the distribution ``skyrl-scripted`` in ``folder``, and ``folder`` on ``sys.path``.

    Others may be made in the folder too; call `discover` with ``refresh=True`` then.
    """
    with on_path(folder):
        make_distribution(
            folder,
            "skyrl-scripted",
            version,
            entry_points={
                group: {name: __name__.rpartition(".")[0] for name in names}
                for group, names in {
                    ALGORITHMS: [NAME],
                    BACKENDS: [NAME, COUNTING],
                    ENVS: [NAME],
                    PLUGINS: [NAME],
                }.items()
            },
        )
        discover(refresh=True)
        yield folder


def run_scripted(
    folder: Path, *overrides: str, script: Script | None = None, plugins: Sequence[str] = ()
) -> RunResult:
    """``skyrl run --plugin scripted trainer.ckpt_path=FOLDER …``; see `runner.run`.

    Args:
        folder: Where the run folder goes.
        overrides: ``key=value`` words.
        script: What the fakes do; default: an untouched `Script`.
        plugins: More plugins.
    """
    with perform(script or Script()):
        return run([NAME, *plugins], overrides=[f"trainer.ckpt_path={folder}", *overrides])


def read_metrics(result: RunResult, *, timings: bool = False) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl``.

    Args:
        result: A run.
        timings: False leaves out what no two runs share.
    """
    return [
        {key: value for key, value in line.items() if timings or not is_wall_clock(key)}
        for _, line in read_lines(result.folder / "metrics.jsonl")
    ]
