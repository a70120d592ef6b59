"""Draws docs/images/demo.png from the ``metrics.jsonl`` of a run.

The picture in the README is of:

    skyrl run --plugin demo trainer.eval_interval=3 trainer.run_name=curve
    python docs/figures.py runs/curve
"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from skyrl_kernel.run import RunFolder

IMAGE = Path(__file__).parent / "images" / "demo.png"
REWARD, HELD_OUT = "#b9c4d0", "#0b5fa5"


def main() -> None:
    """Draw the run whose folder is named."""
    (folder,) = sys.argv[1:]
    draw(Path(folder), IMAGE)


def draw(run: Path, image: Path) -> None:
    """Reward of every step, and held-out exact match wherever it was evaluated."""
    lines = RunFolder(run).read_metrics()
    reward = [
        (line["step"], line["reward/avg_raw_reward"])
        for line in lines
        if "reward/avg_raw_reward" in line
    ]
    held_out = [
        (line["step"], line["eval/all/exact_match"])
        for line in lines
        if "eval/all/exact_match" in line
    ]
    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(figsize=(6.4, 3.0), dpi=110)
    axes.plot(*zip(*reward, strict=True), color=REWARD, label="reward of the step's samples")
    axes.plot(
        *zip(*held_out, strict=True),
        "o-",
        color=HELD_OUT,
        ms=4,
        label="held-out exact match, greedy",
    )
    for (step, value), side, shift in (
        (held_out[0], "left", (7, -9)),
        (held_out[-1], "right", (0, 8)),
    ):
        axes.annotate(
            f"{value:.3f}",
            (step, value),
            xytext=shift,
            textcoords="offset points",
            ha=side,
            color=HELD_OUT,
        )
    axes.set(xlabel="step", ylim=(0, 1), xlim=(-0.5, held_out[-1][0] + 0.5))
    axes.grid(axis="y", alpha=0.25)
    axes.legend(loc="lower right", frameon=False)
    figure.tight_layout()
    figure.savefig(image, metadata={"Software": None})


if __name__ == "__main__":
    main()
