"""Writes RESULTS.md, and the curves, from the numbers that the benchmarks left behind.

    python benchmarks/report.py

The text holds no number of its own, so that it cannot disagree with the files.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "RESULTS.md"
CURVES = HERE / "learning.png"

Numbers = Mapping[str, Any]


def write() -> None:
    """Write what there are numbers for."""
    parts = [
        "# Results\n\nWritten by `make bench` and `make bench-learning`; the numbers are in "
        "`speed.json` and `learning.json` beside this page.\n"
    ]
    learning, speed = HERE / "learning.json", HERE / "speed.json"
    if learning.exists():
        results = json.loads(learning.read_text())
        if results["seeds"]:
            draw_curves(results["seeds"], CURVES)
            parts.append(learning_section(results))
    if speed.exists():
        parts.append(speed_section(json.loads(speed.read_text())))
    RESULTS.write_text("\n".join(parts))


# --- learning -----------------------------------------------------------------------


def learning_section(results: Numbers) -> str:
    """The seeds and the controls."""
    seeds = [results["seeds"][name] for name in sorted(results["seeds"], key=int)]
    names = sorted(results["seeds"], key=int)
    problems = seeds[0]["problems"]
    least_gain, least_lead = results["least_gain"], results["least_lead"]
    rows = [
        [
            name,
            *(f"{one[key]:.3f}" for key in ("start", "rl", "random", "sft")),
            f"{gain(one):+.3f}",
            f"{lead(one):+.3f}",
            "pass" if passes(one, least_gain, least_lead) else "**fail**",
        ]
        for name, one in zip(names, seeds, strict=True)
    ]
    rows.append(
        [
            "mean",
            *(f"{mean(one[key] for one in seeds):.3f}" for key in ("start", "rl", "random", "sft")),
            f"{mean(map(gain, seeds)):+.3f}",
            f"{mean(map(lead, seeds)):+.3f}",
            "",
        ]
    )
    styles = [
        [
            name,
            *(
                f"{one[key]:.3f}"
                for key in (
                    "start",
                    "start_led",
                    "start_sampled",
                    "start_pass_at_8",
                    "rl",
                    "rl_sampled",
                    "rl_pass_at_8",
                )
            ),
        ]
        for name, one in zip(names, seeds, strict=True)
    ]
    times = [
        [
            name,
            *(f"{one['seconds'][key]:.0f}" for key in ("rl", "random", "sft")),
            *(str(one["steps"][key]) for key in ("rl", "random", "sft")),
        ]
        for name, one in zip(names, seeds, strict=True)
    ]
    passed = sum(passes(one, least_gain, least_lead) for one in seeds)
    return "\n".join(
        [
            "## Does the reward teach?",
            "",
            f"**{passed} of {len(seeds)} seeds pass**: a gain of at least {least_gain:g} over the "
            f"start, and of at least {least_lead:g} more than either control. Exact match of the "
            f"greedy answer on {problems} held-out problems, none of which anything "
            "was trained on or chosen by. The standard error of one such number is at most "
            f"{0.5 / problems**0.5:.3f}.",
            "",
            table(
                ["seed", "start", "RL", "random rewards", "more SFT", "gain", "lead", ""],
                rows,
            ),
            "",
            "![Held-out accuracy over steps](learning.png)",
            "",
            "- **start**: `builtin:tiny@SEED`, before RL. The seed decides which facts its teacher "
            "has wrong, the initial weights, and the order of everything.",
            "- **RL**: `skyrl run --plugin demo trainer.seed=SEED "
            "trainer.policy.model.path=builtin:tiny@SEED`. Evaluated more often than the demo is, "
            "which changes no weight.",
            "- **random rewards**: the same run, its training rewards tossed by a coin "
            "(`--plugin random_reward`, a wrapper of the hook `reward`); evaluation is judged as "
            "ever.",
            "- **more SFT**: the seconds that RL trained, spent on more examples of the same "
            "teacher instead, at the learning rate where the warm start ended, with a fresh "
            "optimizer.",
            "- **gain**: RL − start. **lead**: RL − the better control.",
            "",
            "### What the start had, and what RL made of it",
            "",
            table(
                [
                    "seed",
                    "start",
                    "led",
                    "sampled",
                    "best of 8",
                    "RL",
                    "sampled",
                    "best of 8",
                ],
                styles,
            ),
            "",
            "- **led**: every answer of the start is made to begin as a worked example does "
            "(`2*5=` for 272 * 5). The warm start has only this one style, so leading it there "
            "changes little or nothing: what RL gains is no change of style.",
            "- **sampled**: mean over 8 answers at temperature 1. **best of 8**: a problem counts "
            "if any of them is right. The right facts are in the start, as its less likely choice; "
            "its best of 8 says how often they surface. RL makes them the likely ones.",
            "",
            "### Seconds and steps of training",
            "",
            table(
                [
                    "seed",
                    "RL s",
                    "random s",
                    "SFT s",
                    "RL steps",
                    "random steps",
                    "SFT steps",
                ],
                times,
            ),
            "",
            "One thread; the machine had other work, so these seconds are not its speed.",
            "",
            machine_line(results["machine"]) + f" Recipe and preset: `{results['key']}`.",
            "",
        ]
    )


def gain(one: Numbers) -> float:
    """Of RL over the start."""
    return float(one["rl"] - one["start"])


def lead(one: Numbers) -> float:
    """Of RL over the better control."""
    return float(one["rl"] - max(one["random"], one["sft"]))


def passes(one: Numbers, least_gain: float, least_lead: float) -> bool:
    """The promise, for one seed."""
    return gain(one) >= least_gain and lead(one) >= least_lead


def draw_curves(seeds: Numbers, file: Path) -> None:
    """Held-out accuracy over steps: RL and random rewards; SFT as a mark at the end."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), dpi=100, layout="constrained")
    last = 0
    for number, name in enumerate(sorted(seeds, key=int)):
        one = seeds[name]
        for key, colour, label in (
            ("rl", "tab:blue", "RL"),
            ("random", "tab:gray", "random rewards"),
        ):
            steps, values = zip(*one["curves"][key], strict=True)
            axes.plot(
                steps,
                values,
                color=colour,
                alpha=0.8,
                linewidth=1.4,
                label=label if number == 0 else None,
            )
            last = max(last, steps[-1])
        axes.plot(
            [last],
            [one["sft"]],
            "o",
            color="tab:orange",
            markersize=5,
            label="same seconds of SFT" if number == 0 else None,
        )
    axes.set(
        xlabel="step",
        ylabel="exact match, held-out problems",
        ylim=(0, 1),
        xlim=(0, last * 1.02),
        title=f"The demo, {len(seeds)} seeds",
    )
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left")
    figure.savefig(file, metadata={"Software": None})
    plt.close(figure)


# --- speed --------------------------------------------------------------------------


def speed_section(results: Numbers) -> str:
    """Commands, the demo's memory, and where a step's time goes."""
    n, limits = results["numbers"], results["limits"]

    def promised(name: str, text: str, key: str, unit: str, form: str = ".2f") -> list[str]:
        value, limit = n[key], limits[key]
        scale = 100 if unit == "%" else 1
        verdict = "" if value <= limit else " **missed**"
        return [
            name,
            f"{value * scale:{form}} {unit}",
            f"≤ {limit * scale:g} {unit}{verdict}",
            text,
        ]

    rows = [
        promised("`skyrl --help`", f"{imports(n['help_imports'])}", "help_s", "s"),
        promised(
            "`skyrl plugins list`",
            f"{results['plugins']} plugins more than are installed; "
            f"{imports(n['plugins_list_imports'])}",
            "plugins_list_s",
            "s",
        ),
        promised("peak memory of the demo", "resident", "peak_mib", "MiB", ".0f"),
        promised(
            "kernel and dispatch",
            "share of a step that is neither engine nor trainer: table below",
            "kernel_share",
            "%",
            ".1f",
        ),
        promised(
            "prompt computations per group",
            f"of {n['group_size']:g} trajectories; {n['group_size']:g} without sharing",
            "prompt_computations",
            "",
        ),
    ]
    return "\n".join(
        [
            "## Speed and memory",
            "",
            table(["", "measured", "promised", ""], rows),
            "",
            "Commands: best of several, each in a fresh process. An empty Python program takes "
            f"{n['python_s']:.3f} s here.",
            "",
            f"### A step of the demo: {n['step_cpu_s']:.2f} s of one core",
            "",
            table(
                ["", "share", "ms"],
                [
                    [text, f"{100 * share:.1f} %", f"{1e3 * share * n['step_cpu_s']:.0f}"]
                    for text, share in n["parts"].items()
                ],
            ),
            "",
            table(
                ["", ""],
                [
                    ["generated", f"{n['generated_tokens_per_s']:,.0f} tokens/s"],
                    ["trained, prompts included", f"{n['trained_tokens_per_s']:,.0f} tokens/s"],
                    ["evaluation of the held-out problems", f"{n['evaluation_s']:.1f} s"],
                    ["from the command to the first rollout", f"{n['start_up_s']:.1f} s"],
                    [
                        "from the command to the end of the first step, evaluation before it "
                        "included",
                        f"{n['first_step_s']:.1f} s",
                    ],
                    ["making `builtin:tiny`, once", f"{n['warm_start_s']:.0f} s"],
                    ["its peak memory", f"{n['warm_start_peak_mib']:.0f} MiB"],
                ],
            ),
            "",
            "One thread. Shares and tokens/s are of CPU seconds; other seconds depend on who else "
            "uses the machine.",
            "",
            machine_line(results["machine"]),
            "",
        ]
    )


def imports(packages: Iterable[str]) -> str:
    """Which packages a command loaded."""
    return f"imports {', '.join(packages)}"


# --- text ---------------------------------------------------------------------------


def machine_line(machine: Numbers) -> str:
    """What it was measured on."""
    versions = ", ".join(f"{key} {machine[key]}" for key in ("python", "torch", "transformers"))
    return (
        f"Measured on {machine['date']}: {machine['processor']}, {machine['system']}; {versions}."
    )


def to_json(results: Numbers) -> str:
    """Indented, but lists of numbers on one line."""
    text = json.dumps(results, indent=1)
    return re.sub(r"\[[^\[\]{}\"]*\]", _on_one_line, text) + "\n"


def _on_one_line(found: "re.Match[str]") -> str:
    return "[" + " ".join(found[0][1:-1].split()) + "]"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in lines)


if __name__ == "__main__":
    write()
