"""``skyrl run``."""

from collections.abc import Mapping
from pathlib import Path

import click

DEMO = "demo"
"""The preset of a bare ``skyrl run``."""


@click.command()
@click.option(
    "--plugin",
    "plugins",
    multiple=True,
    metavar="NAME",
    help="Select a plugin (NAME or kind/NAME) and apply its preset. May be repeated.",
)
@click.option(
    "--config",
    "files",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="YAML or TOML file with config keys. May be repeated; later files win.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Check config, plugins and stages, print what would run and what is missing, and stop.",
)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
def run(
    plugins: tuple[str, ...], files: tuple[Path, ...], dry_run: bool, overrides: tuple[str, ...]
) -> None:
    """Train a policy.

    \b
    skyrl run                                    the demo: tiny model, multiplication
    skyrl run --plugin demo trainer.seed=3 trainer.run_name=seed3
    skyrl run --plugin grpo --plugin gsm8k data.train_data="['train.parquet']"

    All keys: docs/reference/config.md. The same command goes on with a run that was
    interrupted.
    """  # noqa: D301 -- click's \\b
    from skyrl_kernel.plan import make_plan

    if not plugins and not files and not overrides:
        plugins = (DEMO,)
    plan = make_plan(plugins, files, overrides, allow_not_yet=dry_run)
    if dry_run:
        from skyrl_kernel.cli.show import describe_plan

        click.echo(describe_plan(plan))
        return
    from skyrl_kernel.progress import say
    from skyrl_kernel.runner import carry_out

    result = carry_out(plan)
    if result.status != "already finished":
        if "console" not in plan.tree.trainer.loggers:  # which has said it
            say(_summary(result.first_eval, result.last_eval))
        say(f"run folder: {result.folder}")
        if result.export is not None:
            say(f"trained model: {result.export}")


def _summary(before: Mapping[str, float], after: Mapping[str, float]) -> str:
    """Held-out accuracy before and after, the reward, or what rows that were read gave."""
    lines = []
    named = {"exact_match": "exact match", "avg_score": "mean reward"}
    for name, text in (named | {"accuracy": "accuracy", "loss": "loss"}).items():
        key = f"eval/all/{name}"
        if key in after:
            start = f"{before[key]:.3f} → " if key in before else ""
            lines.append(f"held-out {text}: {start}{after[key]:.3f}")
    return "\n".join(lines) or "nothing was evaluated: data.val_data is empty"
