"""The section of RESULTS.md on speed and memory."""

from text import Numbers, machine_line, table


def section(results: Numbers) -> str:
    """Commands, memory, and where a step's time goes."""
    n = results["numbers"]
    return f"""\
## Speed and memory

{_promises(results)}

{_why_missed(results)}Commands: the best of several, each in a fresh process. An empty Python program takes \
{n["python_s"]:.3f} s here.

### A step of the demo: {n["step_cpu_s"]:.2f} s of one core

{_parts(n)}

{_figures(n)}

One thread. Shares and tokens/s are of CPU seconds; other seconds depend on who else uses the \
machine. Agent loop and env are measured by doing a step's work of theirs once more; what they \
leave of the rollouts is the kernel's. \
`trainer.dump_trajectories=false` leaves the trajectory file out.

{machine_line(results["machine"])}
"""


def _why_missed(results: Numbers) -> str:
    """What stands between the kernel's share and its promise."""
    n = results["numbers"]
    if n["kernel_share"] <= results["limits"]["kernel_share"]:
        return ""
    return """\
The kernel's share is above its promise. With a model this small a trajectory is some milliseconds \
of computing, of which one per cent is less than its task, its checks and its records take; the \
cost is per trajectory, so the share falls as models grow.

"""


def _promises(results: Numbers) -> str:
    n = results["numbers"]

    def row(name: str, key: str, unit: str, form: str, note: str) -> list[str]:
        scale = 100 if unit == "%" else 1
        measured, limit = n[key] * scale, results["limits"][key] * scale
        missed = "" if n[key] <= results["limits"][key] else " **missed**"
        unit = f" {unit}" if unit else ""
        return [name, f"{measured:{form}}{unit}", f"≤ {limit:g}{unit}{missed}", note]

    return table(
        ["", "measured", "promised", ""],
        [
            row("`skyrl --help`", "help_s", "s", ".2f", _imports(n["help_imports"])),
            row(
                "`skyrl plugins list`",
                "plugins_list_s",
                "s",
                ".2f",
                f"{results['plugins']} extra plugins; {_imports(n['plugins_list_imports'])}",
            ),
            row("peak memory of the demo", "peak_mib", "MiB", ".0f", "resident"),
            row(
                "kernel and dispatch",
                "kernel_share",
                "%",
                ".1f",
                f"of a step: {n['kernel_us_per_trajectory']:.0f} µs per trajectory; no plugin's code. "
                f"Of it {100 * n['told_share']:.1f} % are metrics and the trajectory file. All but engine and trainer: {100 * n['outside_share']:.1f} %",
            ),
            row(
                "computations of a prompt per group",
                "prompt_computations",
                "",
                ".2f",
                f"of {n['group_size']:g} trajectories",
            ),
        ],
    )


def _imports(packages: list[str]) -> str:
    return f"imports {', '.join(packages)}"


def _parts(n: Numbers) -> str:
    rows = [
        [text, f"{100 * share:.1f} %", f"{1e3 * share * n['step_cpu_s']:.0f}"]
        for text, share in n["parts"].items()
    ]
    return table(["", "share", "ms"], rows)


def _figures(n: Numbers) -> str:
    return table(
        ["", ""],
        [
            ["generated", f"{n['generated_tokens_per_s']:,.0f} tokens/s"],
            ["trained, prompts included", f"{n['trained_tokens_per_s']:,.0f} tokens/s"],
            ["evaluation of the held-out problems", f"{n['evaluation_s']:.1f} s"],
            ["command to first rollout", f"{n['start_up_s']:.1f} s"],
            [
                "command to end of first step, evaluation before it included",
                f"{n['first_step_s']:.1f} s",
            ],
            ["making `builtin:tiny`, once", f"{n['warm_start_s']:.0f} s"],
            ["peak memory of that", f"{n['warm_start_peak_mib']:.0f} MiB"],
        ],
    )
