"""``skyrl report``."""

from pathlib import Path

import click

from skyrl_kernel.errors import UsageError

_NAME = "report.html"


@click.command()
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Where the page goes; default: report.html in the run folder, of several runs here.",
)
@click.option(
    "--max-mb",
    type=click.FloatRange(min=0.1),
    default=2.0,
    show_default=True,
    metavar="N",
    help="Megabytes of the page; trajectories are left out until it fits.",
)
@click.option(
    "--max-trajectories",
    type=click.IntRange(min=0),
    default=3000,
    show_default=True,
    metavar="N",
    help="Trajectories on the page, over all runs.",
)
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN...")
def report(
    runs: tuple[Path, ...], output: Path | None, max_mb: float, max_trajectories: int
) -> None:
    """Make one HTML page about a run, or about several beside each other.

    \b
    skyrl report runs/demo
    skyrl report runs/demo runs/seed3 --output compare.html

    Curves, times, failures, settings, and trajectories turn by turn with the log-prob and
    advantage of each token. The file needs nothing else: open it in a browser, or send it.
    """  # noqa: D301 -- click's \\b
    from skyrl_kernel.report import build_report
    from skyrl_kernel.report.runs import open_run
    from skyrl_kernel.run.atomic import write_atomically

    paths = [path.expanduser() for path in runs]
    repeated = {str(path) for path in paths if paths.count(path) > 1}
    if repeated:
        raise UsageError(f"{', '.join(sorted(repeated))} is named twice; name each run once")
    for path in paths:
        open_run(path)  # says now that it is none, before anything is said of the page's place
    target = output or (paths[0] / _NAME if len(paths) == 1 else Path(_NAME))
    target = target.expanduser()
    if not target.parent.is_dir():
        raise UsageError(f"--output {target}: there is no folder {target.parent}; make it first")
    made = build_report(paths, max_bytes=round(max_mb * 1e6), max_trajectories=max_trajectories)
    write_atomically(target, made.html.encode())
    for note in made.notes:
        click.echo(f"note: {note}", err=True)
    click.echo(
        f"{target}: {made.num_bytes / 1e6:.2f} MB, {made.num_shown:,} of "
        f"{made.num_trajectories:,} trajectories"
    )
