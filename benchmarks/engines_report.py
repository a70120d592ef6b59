"""The section of RESULTS.md on vLLM, weight sync and asynchronous training."""

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from text import Numbers, machine_line, table

COMMAND = "`make bench-engines`"
SERVING_GOAL = 0.95
"""Our tokens per second over those of vLLM's own benchmark, at least."""


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
{n["at_a_time"]} at a time, a random Qwen2 of 4 layers, float32; each with a seed of its own and with \
the log-probs of what it sampled. Ours is the engine as the kernel calls it; vLLM's is \
`vllm.benchmarks.serve`, what `vllm bench serve` runs. They take turns; medians of \
{len(speeds["ours"])} rounds. What remains different: ours asks `/inference/v1/generate`, takes token \
ids and keeps each token's version; vLLM's asks `/v1/completions` and has text made of the tokens, \
once streamed as it does by itself, once told `stream_interval` so that it reads one message.

{_measured(n)}
"""


def _median(values: list[float]) -> str:
    return f"{statistics.median(values):,.0f}"


def _percents(values: list[float]) -> str:
    return ", ".join(f"{100 * value:.0f}" for value in sorted(values))


PARTS: dict[str, Callable[[Numbers], str]] = {"serving": _serving}
"""By key of engines.json, in the order of the page."""
