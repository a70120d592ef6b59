"""From run folders to a page that keeps its size."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skyrl_kernel.errors import UsageError
from skyrl_kernel.report.choice import Choice, choose
from skyrl_kernel.report.page import pack, render
from skyrl_kernel.report.runs import describe_run, open_run
from skyrl_kernel.report.text import Pieces, find_pieces
from skyrl_kernel.report.trajectories import (
    describe_choices,
    describe_step,
    read_rows,
    step_files,
)
from skyrl_kernel.run.folder import RunFolder

FORMAT = 1
"""Of the data in the page."""
_MEASURED = 4
"""Choices that are read first, to see how much room a token takes."""
_SLACK = 1.3
"""How much more is read than will probably fit."""
_OF_GROUP = ("step", "group", "uid", "env", "source", "messages", "rewards")
"""What the trajectories of a group share."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """A finished page."""

    html: str
    num_shown: int
    """Trajectories on the page."""
    num_trajectories: int
    """Trajectories in the folders."""
    notes: tuple[str, ...]
    """What the page lacks, in full sentences."""

    @property
    def num_bytes(self) -> int:
        """Size of the file."""
        return len(self.html.encode())


@dataclass(frozen=True, kw_only=True, slots=True)
class _Run:
    """A run on its way to the page."""

    facts: dict[str, Any]
    choices: list[list[dict[str, Any]]]
    """Trajectories that go on the page together, the most telling first."""
    pieces: Pieces | None


def build_report(
    paths: Sequence[Path], *, max_bytes: int = 2_000_000, max_trajectories: int = 3000
) -> Report:
    """Make the page of some runs.

    Args:
        paths: Run folders.
        max_bytes: Size of the page; trajectories are left out until it fits.
        max_trajectories: On the page, over all runs.

    Raises:
        UsageError: A path is no run folder, or the curves alone take more than ``max_bytes``.
    """
    folders = [open_run(path) for path in paths]
    limits = (max_trajectories // len(folders), max_bytes // len(folders))
    runs = [
        _gather(folder, label, *limits)
        for folder, label in zip(folders, _labels(folders), strict=True)
    ]
    html, shown = _fit(runs, max_bytes)
    steps = [step for run in runs for step in run.facts["steps"]]
    return Report(
        html=html,
        num_shown=shown,
        num_trajectories=sum(step["trajectories"] for step in steps),
        notes=tuple(dict.fromkeys(note for run in runs for note in run.facts["notes"])),
    )


def _gather(folder: RunFolder, label: str, limit: int, max_bytes: int) -> _Run:
    """Read the folder."""
    facts: dict[str, Any] = {"name": label, "folder": str(folder.path), **describe_run(folder)}
    notes: list[str] = facts["notes"]
    files = step_files(folder)
    rows = {}
    for step, path in files.items():
        try:
            rows[step] = read_rows(step, path)
        except (OSError, ValueError) as error:  # what pyarrow raises for a damaged file
            notes.append(f"{path.name} is left out, for it cannot be read: {error}")
    facts["steps"] = [describe_step(step, members) for step, members in rows.items()]
    if not any(rows.values()):
        notes.append("The folder holds no trajectories (trainer.dump_trajectories).")
        return _Run(facts=facts, choices=[], pieces=None)
    pieces, reason = find_pieces(folder)
    if pieces is None:
        notes.append(
            "Completions are shown as text, not token by token, and what the env replied is not "
            f"shown: the run's tokenizer could not be made here ({reason})"
        )
    chosen = choose(rows)
    first = describe_choices(files, chosen[:_MEASURED], rows, pieces)
    tokens = sum(row.num_tokens for choice in chosen[:_MEASURED] for row in choice.rows)
    room = _SLACK * max_bytes * max(tokens, 1) / len(pack({"trajectories": first}))
    choices = describe_choices(files, _within(chosen, limit, room), rows, pieces)
    blocks = (block for choice in choices for one in choice for block in one["blocks"])
    if choices and not any("advantages" in block for block in blocks):
        notes.append(
            "The trajectory files hold no advantage per token: there was none (SFT), or an earlier "
            "version wrote them. That colouring is off."
        )
    return _Run(facts=facts, choices=choices, pieces=pieces)


def _within(choices: Sequence[Choice], limit: int, max_tokens: float) -> list[Choice]:
    """The first ones, as long as they may fit."""
    kept: list[Choice] = []
    count = tokens = 0
    for choice in choices:
        count += len(choice.rows)
        tokens += sum(row.num_tokens for row in choice.rows)
        if count > limit or (tokens > max_tokens and kept):
            break
        kept.append(choice)
    return kept


def _fit(runs: Sequence[_Run], max_bytes: int) -> tuple[str, int]:
    """The page with as many trajectories as there is room for, and their number.

    Raises:
        UsageError: There is not even room for the curves.
    """
    title = " · ".join(run.facts["name"] for run in runs)

    def page(share: float) -> tuple[str, int, int]:
        finished = [_finish(run, share) for run in runs]
        html = render(title, {"format": FORMAT, "runs": finished})
        return html, sum(len(run["trajectories"]) for run in finished), len(html.encode())

    share = 1.0
    html, shown, size = page(share)
    if size <= max_bytes:
        return html, shown
    least = page(0.0)
    if least[2] > max_bytes:
        raise UsageError(
            f"a page of {max_bytes / 1e6:g} MB has no room: the curves alone take "
            f"{least[2] / 1e6:.1f} MB. Allow more (--max-mb), or report on fewer runs"
        )
    while size > max_bytes and shown > 0:
        share *= 0.98 * (max_bytes - least[2]) / (size - least[2])
        html, shown, size = page(share)
    return html, shown


def _finish(run: _Run, share: float) -> dict[str, Any]:
    """The run's data with this part of its trajectories; what they share stands once."""
    chosen = [one for choice in run.choices[: int(len(run.choices) * share)] for one in choice]
    chosen.sort(key=lambda one: (one["step"], one["group"], one["sample"]))
    groups: list[dict[str, Any]] = []
    trajectories = []
    for one in chosen:
        if not groups or any(groups[-1][name] != one[name] for name in ("step", "group")):
            groups.append(_group(one))
        own = {name: value for name, value in one.items() if name not in _OF_GROUP}
        own["blocks"] = [_without_prompt(block, groups[-1]["prompt"]) for block in one["blocks"]]
        trajectories.append(own | {"in": len(groups) - 1})
    return {
        **run.facts,
        "groups": groups,
        "trajectories": trajectories,
        "vocabulary": _vocabulary(run.pieces, chosen),
    }


def _group(one: Mapping[str, Any]) -> dict[str, Any]:
    prompts = [block["tokens"] for block in one["blocks"] if block["kind"] == "prompt"]
    return {**{name: one[name] for name in _OF_GROUP}, "prompt": prompts[0] if prompts else []}


def _without_prompt(block: Mapping[str, Any], prompt: Sequence[int]) -> Mapping[str, Any]:
    """The block; one that is the group's prompt says so by having no tokens."""
    is_prompt = block["kind"] == "prompt" and block["tokens"] == prompt
    return {**block, "tokens": None} if is_prompt else block


def _vocabulary(
    pieces: Pieces | None, trajectories: Sequence[Mapping[str, Any]]
) -> dict[str, Any] | None:
    """The ids on the page and their texts; None without a tokenizer."""
    if pieces is None:
        return None
    blocks = [block for one in trajectories for block in one["blocks"]]
    ids = sorted({token for block in blocks for token in block["tokens"]})
    return {"ids": ids, "texts": [pieces.piece(token) for token in ids], "end": pieces.end_tokens()}


def _labels(folders: Sequence[RunFolder]) -> list[str]:
    """A short name for each run, no two alike: the folder's, or more of its path."""
    paths = [folder.path.resolve() for folder in folders]
    for length in range(1, max(len(path.parts) for path in paths)):
        labels = ["/".join(path.parts[-length:]) for path in paths]
        if len(set(labels)) == len(labels):
            return labels
    return [str(path) for path in paths]
