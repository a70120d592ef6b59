"""`kill -9` at random moments, then the same command: what a run promises whatever generates for it.

For runs in a process of their own, with a checkpoint every few steps::

    rng = random.Random(seed)
    killed_at_random(command, run, kills=4, rng=rng)
    check_each_prompt_once(run, prompts=8)

The first repeats the command until it ends by itself, the second reads what the
steps that were kept have trained on.
"""

import os
import random
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from skyrl_kernel.run.folder import RunFolder

_POLL_S = 0.005


def killed_at_random(
    command: Sequence[str],
    run: Path,
    *,
    kills: int,
    rng: random.Random,
    env: Mapping[str, str] | None = None,
    how: signal.Signals = signal.SIGKILL,
    timeout_s: float = 300.0,
) -> list[int]:
    """Repeat a command, end it at a random moment of the first steps that it does, and at last let it end.

    Args:
        command: The same each time.
        run: Its run folder.
        kills: How often it is ended.
        rng: Draws the moments.
        env: Of the process; default: this one's.
        how: What it is sent.
        timeout_s: Longest time of one repetition.

    Returns:
        The exit codes of the repetitions that were ended.

    Raises:
        AssertionError: A repetition failed by itself, or the last did not end well; says
            what it printed.
    """
    codes = []
    for _ in range(kills):
        with _started(command, env) as process:
            if not _reaches(process, run, steps=rng.randint(0, 4), timeout_s=timeout_s):
                break
            time.sleep(rng.uniform(0, 0.3))
            process.send_signal(how)
            out, _ = process.communicate(timeout=timeout_s)
            assert process.returncode != 1, f"the run failed instead of being ended\n{out}"
            codes.append(process.returncode)
    with _started(command, env) as process:
        out, _ = process.communicate(timeout=timeout_s)
        assert process.returncode == 0, f"exit code {process.returncode}\n{out}"
    return codes


def _started(command: Sequence[str], env: Mapping[str, str] | None) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        command,
        env=dict(env or os.environ),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _reaches(process: "subprocess.Popen[str]", run: Path, *, steps: int, timeout_s: float) -> bool:
    """Wait until the run has done some more steps; False if it ends before.

    What a repetition takes back of its predecessor counts as not done.
    """
    until = time.monotonic() + timeout_s
    begun, done = run / "plugins.json", run / "metrics.jsonl"
    earlier = begun.stat().st_mtime_ns if begun.exists() else 0
    while process.poll() is None and time.monotonic() < until:
        if begun.exists() and begun.stat().st_mtime_ns != earlier:
            break
        time.sleep(_POLL_S)
    first = _lines(done)
    while process.poll() is None and time.monotonic() < until:
        now = _lines(done)
        first = min(first, now)
        if now - first >= steps:
            return True
        time.sleep(_POLL_S)
    return False


def _lines(file: Path) -> int:
    return file.read_bytes().count(b"\n") if file.exists() else 0


def consumed(run: Path) -> list[tuple[int, int, str]]:
    """(step, group, uid) of each group that the steps of a run have trained on, in their order."""
    folder = RunFolder(run)
    steps = [line["step"] for line in folder.read_metrics() if line["step"] > 0]
    found = {
        (step, row["group"], row["uid"]): None
        for step in steps
        for row in folder.read_trajectories(step, timings=False)
    }
    return list(found)


def check_each_prompt_once(run: Path, *, prompts: int) -> None:
    """No step of a run is missing or there twice, and each epoch trains on each prompt once.

    Args:
        run: A finished run that drops no groups.
        prompts: Of one epoch.

    Raises:
        AssertionError: Says which step, group or prompt is amiss.
    """
    steps = [line["step"] for line in RunFolder(run).read_metrics() if line["step"] > 0]
    assert steps == list(range(1, len(steps) + 1)), f"steps {steps}"
    found = consumed(run)
    groups = [group for _, group, _ in found]
    assert groups == list(range(len(groups))), f"groups {groups}"
    uids = [uid for _, _, uid in found]
    assert len(uids) % prompts == 0, f"{len(uids)} groups are no number of epochs of {prompts}"
    for start in range(0, len(uids), prompts):
        epoch = uids[start : start + prompts]
        assert len(set(epoch)) == prompts, f"epoch {start // prompts} trains on {sorted(epoch)}"
