"""A plugin that sends its own process a signal at a chosen moment, once.

    armed(site, "loss", 3, signal.SIGKILL)

ends the next run in the third computation of the loss since its start, and disarms itself, so
that repeating the command shows what a user sees who repeats it.
"""

import json
from pathlib import Path

from skyrl_kernel.testing.distributions import make_distribution

MOMENTS = ("generate", "loss", "sync_weights", "evaluate", "checkpoint", "export", "saved", "step")
"""In a rollout; in an update; in a weight sync; in an evaluation; while files of a checkpoint, or of
the exported model, are being written; after that; after a step."""

SABOTAGE = '''
import dataclasses
import json
import os
import sys
from collections import Counter
from pathlib import Path

from skyrl_kernel.hookspecs import hookimpl

ORDER = Path(__file__).with_name("order.json")
seen = Counter()


def strike(moment):
    seen[moment] += 1
    if not ORDER.exists():
        return
    order = json.loads(ORDER.read_text())
    if order["moment"] == moment and order["count"] == seen[moment]:
        ORDER.unlink()
        os.kill(os.getpid(), order["signal"])


@hookimpl(wrapper=True)
def generate():
    inner = yield

    async def play(prompt, context):
        if context.phase == "train":
            strike("generate")
        return await inner(prompt, context)

    return play


@hookimpl(wrapper=True)
def loss():
    inner = yield

    def fn(inputs):
        strike("loss")
        return inner.fn(inputs)

    return dataclasses.replace(inner, fn=fn)


@hookimpl(wrapper=True)
def sync_weights():
    inner = yield

    async def sync(trainer, engine, version):
        strike("sync_weights")
        await inner(trainer, engine, version)

    return sync


@hookimpl(wrapper=True)
def evaluate():
    inner = yield

    def fn(scored):
        strike("evaluate")
        return inner(scored)

    return dataclasses.replace(inner, fn=fn)


@hookimpl
def on_step_end(step):
    strike("step")


@hookimpl
def on_checkpoint(step, folder):
    strike("saved")


@hookimpl
def on_run_start(run):
    """Hear of files that are opened in folders in the making: no hook is called then."""
    seen.clear()
    moment = json.loads(ORDER.read_text())["moment"] if ORDER.exists() else ""
    if moment not in ("checkpoint", "export"):
        return
    folder = str(run.folder / {"checkpoint": "checkpoints", "export": "export"}[moment])
    known = set()

    def heard(event, args):
        if event != "open" or not str(args[0]).startswith(folder):
            return
        name = os.path.relpath(args[0], folder).split(os.sep)[0]
        if ".tmp-" in name and name not in known:
            known.add(name)
            strike(moment)

    sys.addaudithook(heard)
'''


STALE = """
import copy

from skyrl_kernel.hookspecs import hookimpl

@hookimpl(wrapper=True)
def sync_weights():
    inner = yield
    kept = []

    async def sync(trainer, engine, version):
        await inner(trainer, engine, version)
        if version <= LAST:
            kept[:] = [copy.deepcopy(trainer.module("policy"))]
        engine.share(kept[0])

    return sync
"""
"""An engine that answers as if it had the newest weights, and samples from those of version ``LAST``."""


def install_stale(site: Path, *, last: int) -> None:
    """The plugin ``stale``, as a distribution; ``last`` is the newest version that arrives."""
    make_distribution(
        site,
        "skyrl-stale",
        modules={"skyrl_stale": f"LAST = {last}\n{STALE}"},
        entry_points={"skyrl.plugins": {"stale": "skyrl_stale"}},
    )


def install_sabotage(site: Path) -> None:
    """The plugin ``sabotage``, as a distribution."""
    make_distribution(
        site,
        "skyrl-sabotage",
        modules={"skyrl_sabotage": SABOTAGE},
        entry_points={"skyrl.plugins": {"sabotage": "skyrl_sabotage"}},
    )


def armed(site: Path, moment: str, count: int, signal: int) -> Path:
    """Plan the signal; the file returned is gone once it was sent."""
    assert moment in MOMENTS
    order = site / "order.json"
    order.write_text(json.dumps({"moment": moment, "count": count, "signal": int(signal)}))
    return order
