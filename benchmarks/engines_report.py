"""The section of RESULTS.md on vLLM, weight sync and asynchronous training."""

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from text import Numbers, machine_line, table

COMMAND = "`make bench-engines`"
SERVING_GOAL = 0.95
"""Our tokens per second over those of vLLM's own benchmark, at least."""
OVERLAP_GOAL = 0.9
"""The ideal step over the asynchronous one, at least."""
SYNC_GOAL, SYNC_GOAL_BYTES = 0.25, 256_000_000
"""A plain copy over moving by shared memory, at least, from that size on."""
SHARED_MEMORY = "shared memory"
SIMULATION_GOAL = 0.9
"""A simulated step over the measured one, or the reverse, at least."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Goal:
    """One thing that was wanted, and what was measured."""

    measurement: str
    """Key of engines.json."""
    what: str
    value: float
    least: float

    @property
    def is_met(self) -> bool:
        return self.value >= self.least

    @property
    def shown(self) -> str:
        return f"{100 * self.value:.0f} %"

    @property
    def wanted(self) -> str:
        return f"≥ {100 * self.least:.0f} %"


def goals(results: Numbers) -> Iterator[Goal]:
    """Of all measurements that there are."""
    if "serving" in results:
        for name, text in WAYS.items():
            yield Goal(
                measurement="serving",
                what=f"tokens/s of our path to vLLM, of vLLM's own benchmark, {text}",
                value=results["serving"]["ratio"][name],
                least=SERVING_GOAL,
            )
    if "overlap" in results:
        yield Goal(
            measurement="overlap",
            what="asynchronous training, of the ideal overlap",
            value=results["overlap"]["of_ideal"],
            least=OVERLAP_GOAL,
        )
    if "sync" in results:
        for size in results["sync"]["sizes"]:
            if size["bytes"] >= SYNC_GOAL_BYTES:
                yield Goal(
                    measurement="sync",
                    what=f"moving {_megabytes(size)} of weights by shared memory, of the speed of a plain copy",
                    value=size["transports"][SHARED_MEMORY]["of_copy"],
                    least=SYNC_GOAL,
                )
    if "simulation" in results:
        yield Goal(
            measurement="simulation",
            what="the simulated step, of the measured one or the reverse",
            value=statistics.median(map(likeness, results["simulation"]["check"])),
            least=SIMULATION_GOAL,
        )


def likeness(checked: Numbers) -> float:
    """The shorter step over the longer."""
    seconds = checked["measured_s"], checked["simulated_s"]
    return float(min(seconds) / max(seconds))


def section(results: Numbers | None) -> str:
    """What was measured, or that nothing was."""
    if not results:
        return f"## With vLLM\n\nNot run: {COMMAND} needs vLLM's CPU build, see CONTRIBUTING.md.\n"
    rows = [
        [goal.what, goal.shown, goal.wanted, "ok" if goal.is_met else "**missed**"]
        for goal in goals(results)
    ]
    parts = [PARTS[name](results[name]) for name in PARTS if name in results]
    head = f"## With vLLM\n\n{table(['', 'measured', 'goal', ''], rows)}\n"
    return "\n".join([head, *parts])


def _measured(numbers: Numbers) -> str:
    machine = numbers["machine"]
    return (
        f"{machine_line(machine)[:-1]}, vLLM {machine['vllm']}. "
        f"Processes that wanted a core at the end of it, its own among them: {numbers['load']:.1f}."
    )


# --- our path to vLLM --------------------------------------------------------------------

WAYS = {"streamed": "a message per token", "whole": "the whole completion in one message"}
"""How vLLM's client was answered."""


def _serving(n: Numbers) -> str:
    speeds = n["tokens_per_s"]
    rows = [
        ["ours", _median(speeds["ours"]), ""],
        *(
            [
                f"vLLM's own, {text}",
                _median(speeds[name]),
                f"{100 * n['ratio'][name]:.0f} % ({_percents(n['ratios'][name])})",
            ]
            for name, text in WAYS.items()
        ),
    ]
    return f"""\
### Our path to vLLM

{table(["", "tokens/s", "ours of it, by round"], rows)}

One server, {n["requests"]} requests of {n["prompt_tokens"]} + {n["output_tokens"]} tokens, \
{n["at_a_time"]} at a time, a random Qwen2 of 4 layers, float32; each seeded and with \
the log-probs of what it sampled. Ours is the engine as the kernel calls it; vLLM's is \
`vllm.benchmarks.serve`, what `vllm bench serve` runs. They take turns; medians of \
{len(speeds["ours"])} rounds. What remains different: ours gives each request a seed of its own, vLLM's \
one to all; ours asks `/inference/v1/generate`, takes token ids and keeps each token's version; vLLM's asks `/v1/completions` and has text made of the tokens, \
once streamed as it does by itself, once told `stream_interval` so that it reads one message.

{_measured(n)}
"""


def _median(values: list[float]) -> str:
    return f"{statistics.median(values):,.0f}"


def _percents(values: list[float]) -> str:
    return ", ".join(f"{100 * value:.0f}" for value in sorted(values))


# --- asynchronous training ---------------------------------------------------------------


def _overlap(n: Numbers) -> str:
    rows = []
    for pair in n["pairs"]:
        sync = pair["sync"]
        rows.append(
            [
                *(f"{sync[name]:.2f}" for name in ("step_s", "generate_s", "train_s", "sync_s")),
                f"{pair['ideal_step_s']:.2f}",
                f"{pair['async']['step_s']:.2f}",
                f"{pair['speed_up']:.2f}",
                f"{100 * pair['of_ideal']:.0f} %",
            ]
        )
    head = ["synchronous step, s", "generate and wait", "train", "sync"]
    return f"""\
### Asynchronous against synchronous training

{table([*head, "ideal step", "asynchronous step", "times as fast", "of the ideal"], rows)}

Runs of `skyrl run` in turns, a row for each pair; medians over their steps, without the first \
{n["unsteady"]}. Of {n["steps"]} steps, each of {n["groups"]} groups of {n["samples"]}, \
{n["output_tokens"]} tokens a completion, after which an env waits {n["generation_s"]:.2f} s: as long \
as generation took in a run before, without the wait. In both, vLLM's server has one core and the run \
with its trainer another, and they come before others there, where the system permits it. \
Asynchronously the bound is max_staleness {n["staleness"]}: the next step is generated and waited for \
while one is trained on. The ideal step is the longer of *generate and wait* and *train and sync* in \
the synchronous run.

{_measured(n)}
"""


def _simulation(n: Numbers) -> str:
    engines = [str(number) for number in n["engines"]]
    rows = [
        [staleness, *(f"{100 * value:.0f} %" for value in values)]
        for staleness, values in n["curves"].items()
    ]
    checked = [
        [f"{one['measured_s']:.2f}", f"{one['simulated_s']:.2f}", f"{_error(one):+.0f} %"]
        for one in n["check"]
    ]
    return f"""\
### More engines, simulated

{table(["max_staleness", *(f"{number} engines" for number in engines)], rows)}

![Throughput over engines](simulation.png)

Trained steps, of those that the trainer alone would allow. A simulation of the loop's events \
(`simulation.py`) with the kernel's own rule of admission and the stages of the synchronous runs \
above. With twice the engines a step has twice the groups ({n["groups_per_engine"]} an engine, of \
{n["samples"]}), and the trainer grows with it, so that its seconds stay. Completions are between 1 token and twice as long as \
above, uniformly; waits are exponential, with the same mean. So the more engines, the longer is the last \
trajectory that a synchronous step waits for.

The same simulation of one engine and of lengths that are all equal, against the asynchronous runs \
above, of which it knows nothing:

{table(["measured step, s", "simulated", "off by"], checked)}
"""


def _error(checked: Numbers) -> float:
    return 100 * float(checked["simulated_s"] / checked["measured_s"] - 1)


# --- weight sync ---------------------------------------------------------------------------


def _sync(n: Numbers) -> str:
    rows = []
    for size in n["sizes"]:
        for name, one in size["transports"].items():
            rows.append(
                [
                    _megabytes(size),
                    name,
                    *(_ms(one[part]) for part in ("copy_s", "moving_s", "loading_s", "total_s")),
                    f"{100 * one['of_copy']:.0f} %",
                    _ms([one["first_s"]]),
                    f"{_ms(one['stopped_s'])} ({_range_ms(one['stopped_s'])})",
                    f"{_ms(one['silence_s'])} ({_range_ms(one['silence_s'])})",
                    f"{1e3 * one['usual_s']:.0f}",
                    _ms(one["paused_s"]),
                ]
            )
    head = ["weights", "transport", "plain copy", "moving", "loading", "all", "moving, of a copy"]
    head += ["the first", "stopped", "silence", "usual", "paused"]
    return f"""\
### Weight sync

{table(head, rows)}

Milliseconds, medians of {n["updates"]} updates of an idle server, after a **first** one that meets \
it and makes files. **moving**: from the trainer's tensors until the server's process has checked \
their bytes. **loading**: into the model that computes. **all**: the kernel's stage `push`, its orders \
to pause and to go on included. **plain copy**: as many bytes in one process, to a place that was \
written before; moving by shared memory shall have {100 * SYNC_GOAL:.0f} % of its speed from \
{SYNC_GOAL_BYTES / 1e6:.0f} MB on.

The last four are of {n["silences"]} other updates, in which a completion is streamed meanwhile; the \
first three of them are told by its tokens alone. **stopped**: by how much the tokens around the \
update took longer than as many did before it; what moves weights shares the cores with what \
generates here, and that counts too. **silence**: the longest time between two of them. **usual**: the \
mean before the update. **paused**: from the engine's order to pause to the answer to go on. In brackets \
are least and most. Seconds are waits for a core: two of the server's processes poll without sleeping, \
which on a machine of two cores leaves none to what moves weights and reads tokens beside them.

{_measured(n)}
"""


def _megabytes(size: Numbers) -> str:
    return f"{size['bytes'] / 1e6:.0f} MB"


def _ms(seconds: list[float]) -> str:
    return f"{1e3 * statistics.median(seconds):.{0 if statistics.median(seconds) > 0.01 else 1}f}"


def _range_ms(seconds: list[float]) -> str:
    return f"{1e3 * min(seconds):.0f}–{1e3 * max(seconds):.0f}"


PARTS: dict[str, Callable[[Numbers], str]] = {
    "serving": _serving,
    "sync": _sync,
    "overlap": _overlap,
    "simulation": _simulation,
}
"""By key of engines.json, in the order of the page."""
