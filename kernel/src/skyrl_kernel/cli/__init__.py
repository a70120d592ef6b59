"""The command ``skyrl``. Subcommands are imported when they are called, so that help is quick."""

import importlib
import sys
from typing import Any

import click

_COMMANDS = {
    "run": ("skyrl_kernel.cli.run", "Train: the loop, with the plugins and settings given."),
    "eval": ("skyrl_kernel.cli.eval", "Evaluate a run's newest checkpoint, or a model."),
    "report": ("skyrl_kernel.cli.report", "Make one HTML page about a run or several."),
    "log": ("skyrl_kernel.cli.log", "Deliver a run to the stores of loggers, from its folder."),
    "data": ("skyrl_kernel.cli.data", "Make a data set."),
    "plugins": ("skyrl_kernel.cli.plugins", "List installed plugins, or explain one."),
}


class _Lazy(click.Group):
    """A group whose subcommands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = getattr(importlib.import_module(_COMMANDS[cmd_name][0]), cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])


@click.group(
    cls=_Lazy,
    invoke_without_command=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name="skyrl-kernel", prog_name="skyrl")
def skyrl() -> None:
    """Reinforcement learning for language models.

    `skyrl run` without arguments trains a built-in tiny model on multiplication:
    no GPU and no network needed.
    """


def main(argv: list[str] | None = None) -> None:
    """Entry point: one line per error, exit codes 0, 1 (failed), 2 (asked wrongly), 130 (Ctrl-C)."""
    sys.exit(_exit_code(argv))


def _exit_code(argv: list[str] | None) -> int:
    from skyrl_kernel.errors import SkyrlError, is_disk_full

    try:
        result: Any = skyrl.main(args=argv, prog_name="skyrl", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except SkyrlError as error:
        _say(error)
        return error.exit_code
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.UsageError as error:
        error.show()
        return 2
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort) as error:
        cause = error.__cause__ if isinstance(error, click.Abort) else error
        print(f"skyrl: {str(cause or '') or 'interrupted'}", file=sys.stderr)
        return 130
    except Exception as error:
        if not is_disk_full(error):
            raise
        what = "What was finished is kept; make room and repeat the command"
        _say(error, f"cannot write: {error}. {what}")
        return 1


def _say(error: Exception, text: str | None = None) -> None:
    print(f"skyrl: {text or error}", file=sys.stderr)
    for note in getattr(error, "__notes__", ()):
        print(f"  {note}", file=sys.stderr)
