"""The section of RESULTS.md on several processes, and what is promised of them."""

from text import Numbers, machine_line, table

LIMITS = {
    "overhead_of_2_s": (0.05, True),
    "pickled_share": (0.001, True),
    "two_ranks": (0.8, False),
}
"""Name → (limit, whether it is the most that is allowed, or the least)."""


def is_whole(results: Numbers) -> bool:
    """Whether all three parts of the benchmark have been run."""
    return {*LIMITS, "start_up", "sent_bytes"} <= set(results["numbers"])


def missed(results: Numbers) -> list[str]:
    """Names of the promises that do not hold."""
    numbers = results["numbers"]
    return [
        name
        for name, (limit, is_most) in LIMITS.items()
        if name in numbers and (numbers[name] > limit if is_most else numbers[name] < limit)
    ]


def section(results: Numbers) -> str:
    """Overhead, traffic, scaling, start-up."""
    n = results["numbers"]
    rows = [
        [
            "what Ray adds to a step of 2 s",
            f"{100 * n['overhead_of_2_s']:.1f} %",
            _promised(results, "overhead_of_2_s", 100, " %"),
            f"{1e3 * n['extra_step_s']:.0f} ms, the median of what it adds to steps 2 to {n['steps']} of the "
            f"demo{_range(n)}; these take {n['local_step_s']:.2f} s in one process",
        ],
        [
            "two ranks, of what two processes do that know nothing of each other",
            f"{100 * n['two_ranks']:.0f} %",
            _promised(results, "two_ranks", 100, " %"),
            f"{n['ranks_tokens_per_s']:,.0f} and {n['alone_tokens_per_s']:,.0f} tokens/s, 12 million "
            "parameters, a core each",
        ],
        [
            "pickled, of a tensor above 1 MB",
            f"{100 * n['pickled_share']:.3f} %",
            _promised(results, "pickled_share", 100, " %"),
            "the rest is read where the sender has put it",
        ],
    ]
    start = n["start_up"]
    parts = [[STEPS[event], f"{seconds:.1f}"] for event, seconds in start.items()]
    return f"""\
## Several processes

{table(["", "measured", "promised", ""], rows)}

For each trajectory of {n["tokens"]:.0f} sampled tokens, the controller hands {n["sent_bytes"]:,.0f} \
bytes to other processes (the request, the training sample) and gets {n["got_bytes"]:,.0f} \
(the completion). Weights go from trainer to engines beside it.

### Until a run's processes are there: {sum(start.values()):.1f} s

{table(["", "s"], parts)}

{machine_line(results["machine"])}
"""


def _range(numbers: Numbers) -> str:
    """From least to most."""
    least, most = (f"{1e3 * one:.0f}" for one in numbers["extra_step_range_s"])
    return f" ({least} to {most})"


STEPS = {
    "ray joined": "the command, plugins, data; Ray starts",
    "devices reserved": "devices are reserved",
    "begun": "the trainer's process starts",
    "trainer made": "it imports torch and loads the model",
    "engines made": "the engine's process starts, imports torch and loads the model",
}
"""What log.jsonl tells in this order, and what happens until then."""


def _promised(results: Numbers, key: str, scale: float, unit: str) -> str:
    limit, is_most = LIMITS[key]
    sign = "≤" if is_most else "≥"
    return f"{sign} {scale * limit:g}{unit}{' **missed**' if key in missed(results) else ''}"
