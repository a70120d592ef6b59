"""The picture: held-out accuracy over steps, every seed a line."""

from pathlib import Path

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
