"""The tables of what each algorithm learned, and what counts as passed."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate
from statistics import mean

from text import Numbers, machine_line, table

HEAD = """\
# What each algorithm learns

Written by `make bench-learning` (`benchmarks/algorithms.py`); the numbers are in \
`benchmarks/algorithms.json`.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What a row must reach on every seed."""

    gain: float
    rescue_rise: float


def gain(one: Numbers) -> float:
    """Held-out exact match, end less start, of one run."""
    return float(one["final"] - one["start"])


def rescue_rise(one: Numbers) -> float:
    """Held-out rescue rate, end less start, of one run over several turns."""
    points = one["curves"]["rescued"]
    return float(points[-1][1] - points[0][1])


def run_passes(row: Numbers, one: Numbers, limits: Limits) -> bool:
    """Whether one run reached what is asked of its row."""
    enough = gain(one) >= limits.gain
    if row["expect"] == "rescues":
        return enough and rescue_rise(one) >= limits.rescue_rise
    return enough


def row_passes(row: Numbers, limits: Limits) -> bool:
    """Whether every seed did what is promised: learn, or, of a sabotaged row, not learn."""
    passed = [run_passes(row, one, limits) for one in row["seeds"].values()]
    match row["expect"]:
        case "reported":
            return True
        case "fails":
            return bool(passed) and not any(passed)
        case _:
            return bool(passed) and all(passed)


def one_line(one: Numbers) -> str:
    """One run, in short."""
    text = f"{one['start']:.3f} → {one['final']:.3f} ({gain(one):+.3f})"
    if "rescued" in one["curves"]:
        points = one["curves"]["rescued"]
        text += f", rescue rate {points[0][1]:.3f} → {points[-1][1]:.3f}"
    return f"{text}, {one['seconds']:.0f} s of training"


def page(results: Numbers) -> str:
    """The whole page in the docs."""
    return f"{HEAD}\n{_body(results, '../../images/algorithms.png')}"


def section(results: Numbers) -> str:
    """The section of RESULTS.md."""
    body = _body(results, "../docs/images/algorithms.png").replace("\n## ", "\n### ")
    return f"## Does every algorithm learn?\n\n{body}"


def _body(results: Numbers, picture: str) -> str:
    limits = Limits(gain=results["least_gain"], rescue_rise=results["least_rescue_rise"])
    rows = {key: row for key, row in results["rows"].items() if row["seeds"]}
    single = {key: row for key, row in rows.items() if _is(row, 1, "learns")}
    turns = {key: row for key, row in rows.items() if row["turns"] == 2}
    controls = {key: row for key, row in rows.items() if _is(row, 1, "fails")}
    parts = [_introduction(rows, limits), f"![Held-out exact match over steps]({picture})"]
    if single:
        parts += ["## One turn", _table(single, limits), _budget(single, results["group_size"])]
    if turns:
        parts += ["## Two turns", _turns_text(limits), _turns_table(turns, limits)]
        if "replies_turns" in turns:
            parts.append(_REPLIES)
    if controls:
        parts += ["## What must not pass", _table(controls, limits), _CONTROLS]
    parts += ["## What was typed", _typed(rows), machine_line(results["machine"])]
    return "\n\n".join(parts) + "\n"


def _is(row: Numbers, turns: int, expect: str) -> bool:
    return bool(row["turns"] == turns and row["expect"] == expect)


def _introduction(rows: Numbers, limits: Limits) -> str:
    promised = [row for row in rows.values() if row["expect"] in ("learns", "rescues")]
    passed = sum(row_passes(row, limits) for row in promised)
    problems = max(one["problems"] for one in _runs(rows))
    return f"""\
**{passed} of {len(promised)} pass**: on every seed, the exact match of the greedy answer on \
{problems} held-out problems gains at least {limits.gain:g} over the start. The seed is the model's \
as well as the run's. All have the demo's prompts, samples per prompt and steps; the seeds, the \
model and the demo's setting were chosen for GRPO before the others were there (PPO's critic alone \
has a learning rate that was looked for in such runs), so this says that each learns, not which is \
best. The standard error of one number is at most \
{0.5 / problems**0.5:.3f}."""


def _runs(rows: Numbers) -> list[Numbers]:
    return [one for row in rows.values() for one in row["seeds"].values()]


def _seeds(rows: Numbers) -> list[str]:
    return sorted({seed for row in rows.values() for seed in row["seeds"]}, key=int)


def _table(rows: Numbers, limits: Limits) -> str:
    """A row per algorithm, a column per seed, the start on top."""
    seeds = _seeds(rows)
    which = "greatest" if any(row["expect"] == "fails" for row in rows.values()) else "least"
    starts = {seed: one["start"] for row in rows.values() for seed, one in row["seeds"].items()}
    head = ["", *(f"seed {seed}" for seed in seeds), "mean", f"{which} gain", "seconds", "CPU", ""]
    first = [
        "*start*",
        *(f"*{starts[seed]:.3f}*" for seed in seeds),
        f"*{mean(starts.values()):.3f}*",
        *[""] * 4,
    ]
    return table(head, [first, *(_row(row, seeds, limits) for row in rows.values())])


def _row(row: Numbers, seeds: Iterable[str], limits: Limits) -> list[str]:
    runs = row["seeds"]
    extreme = max if row["expect"] == "fails" else min  # the seed that comes nearest to the limit
    return [
        row["title"],
        *(f"{runs[seed]['final']:.3f}" if seed in runs else "–" for seed in seeds),
        f"{mean(one['final'] for one in runs.values()):.3f}",
        f"{extreme(map(gain, runs.values())):+.3f}",
        f"{mean(one['seconds'] for one in runs.values()):.0f}",
        _cpu(runs.values()),
        _verdict(row, limits),
    ]


def _cpu(runs: Iterable[Numbers]) -> str:
    """Mean CPU seconds of the runs that were not interrupted."""
    known = [one["cpu_seconds"] for one in runs if "cpu_seconds" in one]
    return f"{mean(known):.0f}" if known else "–"


def _verdict(row: Numbers, limits: Limits) -> str:
    if row["expect"] == "reported":
        return ""
    ok = row_passes(row, limits)
    if row["expect"] == "fails":
        return "fails, as it must" if ok else "**passes**"
    return "pass" if ok else "**fail**"


def _budget(rows: Numbers, group_size: int) -> str:
    """The columns explained, and what it means that a row drops groups."""
    text = (
        "**seconds**: wall time of the training steps, mean over seeds; it depends on what else the "
        "machine does, which was much. **CPU**: CPU seconds of the whole command, start-up and "
        "evaluations included. Each run has one thread."
    )
    for row in rows.values():
        runs = list(row["seeds"].values())
        if any(sum(one["dropped_groups"]) for one in runs):
            sampled = mean(_sampled(one, group_size)[-1] for one in runs)
            trained = mean(one["trained_trajectories"] for one in runs)
            same = [at_budget(one, group_size) for one in runs]
            text += (
                f"\n\n{row['title']} trains on as many answers as the others, but leaves out groups "
                f"that are all right or all wrong and samples on until its batch is full: "
                f"{sampled / trained:.1f} times as many answers. When it had sampled as many as the "
                f"others in all, its exact match was {', '.join(f'{value:.3f}' for value in same)}, a gain of "
                f"at least {min(v - one['start'] for v, one in zip(same, runs, strict=True)):.3f}."
            )
    return text


def _sampled(one: Numbers, group_size: int) -> list[float]:
    """Answers sampled up to each step, dropped groups included."""
    per_step = one["trained_trajectories"] / one["steps"]
    return list(accumulate(per_step + group_size * dropped for dropped in one["dropped_groups"]))


def at_budget(one: Numbers, group_size: int) -> float:
    """Held-out exact match when no more was sampled than is trained on in all."""
    within = [0, *_sampled(one, group_size)]
    budget = one["trained_trajectories"]
    points = one["curves"]["exact_match"]
    return float([value for step, value in points if within[step] <= budget][-1])


def _turns_text(limits: Limits) -> str:
    return f"""\
`builtin:tiny-retry@SEED` may answer again when the env says that its first answer is wrong. The \
**rescue rate** is the fraction of those wrong at first that are right in the end; here it must \
also rise by at least {limits.rescue_rise:g} on every seed. *first* is the exact match of the first \
answer alone. How the model is taught was chosen of two ways by what GRPO made of them on seed 0."""


def _turns_table(rows: Numbers, limits: Limits) -> str:
    head = ["", "seed", "exact match", "gain", "first", "rescue rate", "rise", "seconds", "CPU", ""]
    lines = []
    for row in rows.values():
        for seed in sorted(row["seeds"], key=int):
            one = row["seeds"][seed]
            lines.append(
                [
                    row["title"],
                    seed,
                    _from_to(one, "exact_match"),
                    f"{gain(one):+.3f}",
                    _from_to(one, "exact_match_first_turn"),
                    _from_to(one, "rescued"),
                    f"{rescue_rise(one):+.3f}",
                    f"{one['seconds']:.0f}",
                    _cpu([one]),
                    _seed_verdict(row, one, limits),
                ]
            )
    return table(head, lines)


def _seed_verdict(row: Numbers, one: Numbers, limits: Limits) -> str:
    if row["expect"] == "reported":
        return ""
    return "pass" if run_passes(row, one, limits) else "**fail**"


def _from_to(one: Numbers, name: str) -> str:
    points = one["curves"][name]
    return f"{points[0][1]:.3f} → {points[-1][1]:.3f}"


_CONTROLS = """\
The same run as GRPO above, sabotaged by a wrapper of the stage `advantage` (`benchmarks/controls`): \
once every advantage has the wrong sign, once each trajectory has the advantage of another one of \
the batch. The benchmark ends with an error if either passes on any seed."""

_REPLIES = """\
*Trained on replies too* is a mistake, for comparison: the same run, but what the env said between \
two answers is credited as if the policy had said it. The kernel refuses such masks; the wrapper \
`train_on_replies` has to claim that the tokens were sampled. The test that a reply's tokens have a \
gradient of exactly zero catches it."""


def _typed(rows: Numbers) -> str:
    lines = [f"`skyrl run {row['typed']}`" for row in rows.values()]
    titles = [row["title"] + (" (two turns)" if row["turns"] == 2 else "") for row in rows.values()]
    digests = [f"`{row['digest']}`" for row in rows.values()]
    text = table(["", "", "digest"], list(zip(titles, lines, digests, strict=True)))
    return (
        f"{text}\n\nEach with `trainer.seed=SEED trainer.policy.model.path=builtin:NAME@SEED`, and "
        "evaluated more often than the demo is, which changes no weight. The digest changes with the "
        "model, the settings and the code of the algorithm; then the row is measured anew."
    )
