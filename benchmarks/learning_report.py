"""The section of RESULTS.md on learning, and what counts as passed."""

from collections.abc import Sequence
from statistics import mean

from text import Numbers, machine_line, table

EXPLAINED = """\
- **start**: `builtin:tiny@SEED`, before RL. The seed decides which facts its teacher has wrong, \
the initial weights, and the order of everything.
- **RL**: `skyrl run --plugin demo trainer.seed=SEED trainer.policy.model.path=builtin:tiny@SEED`. \
Evaluated more often than the demo is, which changes no weight.
- **random rewards**: the same run, its training rewards tossed by a coin (`--plugin \
random_reward`, a wrapper of the hook `reward`); evaluation is judged as ever.
- **more SFT**: the seconds that RL trained, spent on more examples of the same teacher instead, \
at the learning rate where the warm start ended, with a fresh optimizer.
- **gain**: RL − start. **lead**: RL − the better control.
"""

STYLES_EXPLAINED = """\
- **led**: every answer of the start is made to begin as a worked example does (`2*5=` for \
272 * 5). The warm start has only this one style, so leading it there changes little or nothing: \
what RL gains is no change of style.
- **sampled**: mean over 8 answers at temperature 1. **best of 8**: a problem counts if any of \
them is right. The right facts are in the start, as its less likely choice; its best of 8 says how \
often they surface. RL makes them the likely ones.
"""


def gain(one: Numbers) -> float:
    """Of RL over the start."""
    return float(one["rl"] - one["start"])


def lead(one: Numbers) -> float:
    """Of RL over the better control."""
    return float(one["rl"] - max(one["random"], one["sft"]))


def passes(one: Numbers, least_gain: float, least_lead: float) -> bool:
    """The promise, for one seed."""
    return gain(one) >= least_gain and lead(one) >= least_lead


def section(results: Numbers) -> str:
    """The seeds and the controls."""
    names = sorted(results["seeds"], key=int)
    seeds = [results["seeds"][name] for name in names]
    limits = results["least_gain"], results["least_lead"]
    problems = seeds[0]["problems"]
    passed = sum(passes(one, *limits) for one in seeds)
    return f"""\
## Does the reward teach?

**{passed} of {len(seeds)} seeds pass**: a gain of at least {limits[0]:g} over the start, and of at \
least {limits[1]:g} more than either control. Exact match of the greedy answer on {problems} \
held-out problems, none of which anything was trained on or chosen by. The standard error of one \
such number is at most {0.5 / problems**0.5:.3f}.

{_seeds_table(names, seeds, limits)}

![Held-out accuracy over steps](learning.png)

{EXPLAINED}
### What the start had, and what RL made of it

{_styles_table(names, seeds)}

{STYLES_EXPLAINED}
### Seconds and steps of training

{_times_table(names, seeds)}

One thread; the machine had other work, so these seconds are not its speed.

{machine_line(results["machine"])} Recipe and preset: `{results["key"]}`.
"""


def _seeds_table(
    names: Sequence[str], seeds: Sequence[Numbers], limits: tuple[float, float]
) -> str:
    keys = ("start", "rl", "random", "sft")
    rows = [
        [
            name,
            *(f"{one[key]:.3f}" for key in keys),
            f"{gain(one):+.3f}",
            f"{lead(one):+.3f}",
            "pass" if passes(one, *limits) else "**fail**",
        ]
        for name, one in zip(names, seeds, strict=True)
    ]
    means = [f"{mean(one[key] for one in seeds):.3f}" for key in keys]
    last = ["mean", *means, f"{mean(map(gain, seeds)):+.3f}", f"{mean(map(lead, seeds)):+.3f}", ""]
    head = ["seed", "start", "RL", "random rewards", "more SFT", "gain", "lead", ""]
    return table(head, [*rows, last])


def _styles_table(names: Sequence[str], seeds: Sequence[Numbers]) -> str:
    columns = {
        "start": "start",
        "led": "start_led",
        "sampled": "start_sampled",
        "best of 8": "start_pass_at_8",
        "RL": "rl",
        "RL, sampled": "rl_sampled",
        "RL, best of 8": "rl_pass_at_8",
    }
    rows = [
        [name, *(f"{one[key]:.3f}" for key in columns.values())]
        for name, one in zip(names, seeds, strict=True)
    ]
    return table(["seed", *columns], rows)


def _times_table(names: Sequence[str], seeds: Sequence[Numbers]) -> str:
    runs = {"RL": "rl", "random rewards": "random", "SFT": "sft"}
    rows = [
        [
            name,
            *(f"{one['seconds'][key]:.0f} s, {one['steps'][key]} steps" for key in runs.values()),
        ]
        for name, one in zip(names, seeds, strict=True)
    ]
    return table(["seed", *runs], rows)
