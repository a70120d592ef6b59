"""The pictures: held-out accuracy over steps, every seed a line."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from text import Numbers

LINES = (("rl", "tab:blue", "RL"), ("random", "tab:gray", "random rewards"))
"""Key of the curve, its colour, its name."""


def draw_curves(seeds: Numbers, file: Path) -> None:
    """RL and random rewards as lines; SFT, which has no such steps, as a mark at the end."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), dpi=100, layout="constrained")
    last = 0
    for number, name in enumerate(sorted(seeds, key=int)):
        one = seeds[name]
        for key, colour, label in LINES:
            steps, values = zip(*one["curves"][key], strict=True)
            last = max(last, *steps)
            axes.plot(
                steps, values, color=colour, alpha=0.8, linewidth=1.4, label=_once(label, number)
            )
        axes.plot(
            [last],
            [one["sft"]],
            "o",
            color="tab:orange",
            markersize=5,
            label=_once("same seconds of SFT", number),
        )
    axes.set(
        xlabel="step",
        ylabel="exact match, held-out problems",
        xlim=(0, last * 1.02),
        ylim=(0, 1),
        title=f"The demo, {len(seeds)} seeds",
    )
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3)
    figure.savefig(file, metadata={"Software": None})
    plt.close(figure)


def _once(label: str, number: int) -> str | None:
    """The legend names each kind of line once."""
    return label if number == 0 else None


PROMISED, SABOTAGED, MISTAKEN = "tab:blue", "tab:red", "tab:orange"


def draw_algorithms(rows: Numbers, file: Path) -> None:
    """A small plot per row of algorithms.json: every seed a thin line, their mean a thick one.

    Over several turns the rescue rate is a second bundle of lines.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    rows = {key: row for key, row in rows.items() if row["seeds"]}
    columns = 4
    lines = -(-len(rows) // columns)
    figure, grid = plt.subplots(
        lines,
        columns,
        figsize=(10, 2.3 * lines + 0.5),
        dpi=100,
        layout="constrained",
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    places = list(grid.flat)
    for axes, row in zip(places, rows.values(), strict=False):
        colour = {"fails": SABOTAGED, "reported": MISTAKEN}.get(row["expect"], PROMISED)
        runs = list(row["seeds"].values())
        _bundle(axes, [one["curves"]["exact_match"] for one in runs], colour)
        if row["turns"] > 1:
            _bundle(axes, [one["curves"]["rescued"] for one in runs], "tab:green")
        axes.set_title(_title(row), fontsize=10)
        axes.grid(alpha=0.3)
        axes.set(xlim=(0, None), ylim=(0, 1))
    for axes in places[len(rows) :]:
        axes.set_axis_off()
    for axes in places[max(len(rows) - columns, 0) : len(rows)]:
        axes.tick_params(labelbottom=True)  # the lowest of its column, whatever is left off below
    figure.supxlabel("step", fontsize=10)
    figure.supylabel("held-out problems", fontsize=10)
    names = {PROMISED: "exact match", "tab:green": "rescue rate", SABOTAGED: "sabotaged"}
    names[MISTAKEN] = "a mistake"
    figure.legend(
        [mpl.lines.Line2D([], [], color=colour, linewidth=2) for colour in names],
        list(names.values()),
        loc="outside upper center",
        ncols=4,
        frameon=False,
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, metadata={"Software": None})
    plt.close(figure)


def _bundle(axes: Any, curves: Sequence[Sequence[tuple[int, float]]], colour: str) -> None:
    """The curves, and their mean at the steps that all of them have."""
    for points in curves:
        axes.plot(*zip(*points, strict=True), color=colour, alpha=0.35, linewidth=0.9)
    shared = sorted(set.intersection(*({step for step, _ in points} for points in curves)))
    means = [sum(dict(points)[step] for points in curves) / len(curves) for step in shared]
    axes.plot(shared, means, color=colour, linewidth=2)


def _title(row: Numbers) -> str:
    title = str(row["title"]).replace(", ", ",\n")
    return f"{title}, two turns" if row["turns"] > 1 else title


def draw_simulation(simulation: Numbers, file: Path) -> None:
    """Throughput over the number of engines, a line for each bound of staleness."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), dpi=100, layout="constrained")
    shades = mpl.colormaps["viridis"].resampled(len(simulation["curves"]) + 1).colors
    for (staleness, values), shade in zip(simulation["curves"].items(), shades, strict=False):
        axes.plot(simulation["engines"], values, "o-", color=shade, label=staleness, markersize=4)
    axes.set_xscale("log", base=2)
    axes.set_xticks(simulation["engines"], [str(number) for number in simulation["engines"]])
    axes.set(
        xlabel="engines, each with as much of a step",
        ylabel="throughput, of what the trainer would allow",
        ylim=(0, 1.02),
        title="Simulated: completions and waits that differ in length",
    )
    axes.grid(alpha=0.3)
    figure.legend(
        loc="outside lower center", ncols=len(simulation["curves"]), title="max_staleness"
    )
    figure.savefig(file, metadata={"Software": None})
    plt.close(figure)
