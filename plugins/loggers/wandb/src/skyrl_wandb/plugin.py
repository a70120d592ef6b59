"""Sends a run to Weights & Biases, or keeps it in the run folder for ``wandb sync``.

Steps are wandb's steps and names are SkyRL's; the tables ``trajectories/train``
and ``trajectories/eval`` are wandb tables, and what ended a failed run is the
table ``error/tracebacks``. A continued run has the same id, so that it goes on
where it was.
"""

import netrc
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel

from skyrl_kernel.config import Section, TrainerConfig
from skyrl_kernel.errors import ConfigError
from skyrl_kernel.feed import NOTHING, LogEnd, LogRecord, LogRun
from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.protocols import Settings
from skyrl_wandb.offline import is_finished, kept_steps

SERVER = "https://api.wandb.ai"
"""Where wandb sends runs unless WANDB_BASE_URL says otherwise."""
FORBIDDEN, LONGEST_PROJECT, LONGEST_TAG = frozenset("/\\#?%:"), 128, 64
"""wandb's rules for the names of projects and for tags."""
OFFLINE = frozenset({"offline", "dryrun"})
"""Modes in which a run is kept in its folder."""


class WandbConfig(Section):
    """``trainer.wandb``: where a run is sent. The key is the environment's WANDB_API_KEY."""

    entity: str | None = None
    """User or team; default: WANDB_ENTITY, and without it that of the key."""
    group: str | None = None
    """Shows this run together with others of the group."""
    mode: Literal["online", "offline", "disabled"] | None = None
    """``offline`` keeps the run in the run folder, for ``wandb sync``; default: WANDB_MODE, and
    without it ``online``."""


class WandbSink:
    """One run of wandb.

    Args:
        config: ``trainer.wandb``.

    Raises:
        ConfigError: It would be sent, and there is no key.
    """

    def __init__(self, config: WandbConfig) -> None:
        self._config = config
        self._mode = config.mode or os.environ.get("WANDB_MODE") or "online"
        self._run: Any = None
        if self._mode not in {*OFFLINE, "disabled"} and not _has_key():
            raise ConfigError(
                f"trainer.logger=wandb sends the run to {_server()}, but there is no key for it: "
                "WANDB_API_KEY is not set, and ~/.netrc has none. Set WANDB_API_KEY, or run "
                "'wandb login'; or keep the run in its folder with trainer.wandb.mode=offline"
            )

    def open(self, run: LogRun) -> int | None:
        """Begin, or go on with the same id after the last step that is there."""
        import wandb

        os.environ.setdefault("WANDB_SILENT", "true")
        self._run = wandb.init(
            project=run.project,
            name=run.name,
            id=run.id,
            resume=None if self._mode in OFFLINE else "allow",
            entity=self._config.entity,
            group=self._config.group,
            tags=list(run.tags) or None,
            config={**run.config, "plugins": list(run.plugins)},
            dir=str(run.folder),
            mode=self._mode,  # type: ignore[arg-type]
            settings=wandb.Settings(console="off"),
        )
        if not run.resumed or self._mode == "disabled":
            return None
        if self._mode in OFFLINE:  # wandb writes in blocks: a crash may have taken the last steps
            return max(kept_steps(run.folder, run.id), default=NOTHING)
        return int(self._run.step) - 1

    def log(self, record: LogRecord) -> None:
        """One step, its tables included."""
        import wandb

        tables = {
            table.name: wandb.Table(columns=list(table.columns), data=list(map(list, table.rows)))
            for table in record.tables
        }
        self._run.log({**record.metrics, **tables}, step=record.step, commit=True)

    def close(self, end: LogEnd) -> None:
        """Finish; a run that failed is shown as failed, with what ended it."""
        import wandb

        if end.status == "failed":
            table = wandb.Table(columns=["step", "error"], data=[[end.step, end.message]])
            self._run.summary["error/tracebacks"] = table  # not a step: steps are the run's
        self._run.summary["status"] = end.status
        file = Path(self._run.settings.sync_file)
        self._run.finish(exit_code=1 if end.status == "failed" else 0)
        while self._mode in OFFLINE and not is_finished(file):  # wandb's own process writes it
            time.sleep(0.1)


def _server() -> str:
    return os.environ.get("WANDB_BASE_URL") or SERVER


def _has_key() -> bool:
    """True if wandb will find a key: in the environment, a token file, or netrc."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(_server()).hostname or ""
    named = os.environ.get("NETRC")
    for path in [Path(named)] if named else [Path("~/.netrc"), Path("~/_netrc")]:
        try:
            if netrc.netrc(path.expanduser()).authenticators(host):
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False


@hookimpl
def config_sections() -> Mapping[str, type[BaseModel]]:
    """This plugin's section."""
    return {"trainer.wandb": WandbConfig}


def _refuse_names(config: TrainerConfig) -> None:
    """What wandb would refuse minutes later."""
    found = sorted(FORBIDDEN.intersection(config.project_name))
    if found or not 0 < len(config.project_name) <= LONGEST_PROJECT:
        raise ConfigError(
            f"trainer.project_name='{config.project_name}' is no name of a project for wandb: it has 1 "
            f"to {LONGEST_PROJECT} characters, none of them in {' '.join(sorted(FORBIDDEN))}"
        )
    for tag in config.tags or ():
        if not 0 < len(tag) <= LONGEST_TAG:
            raise ConfigError(
                f"trainer.tags: '{tag}' is no tag for wandb: it has 1 to {LONGEST_TAG} characters"
            )


@hookimpl
def make_sink(name: str, settings: Settings) -> WandbSink | None:
    """A run of wandb."""
    if name != "wandb":
        return None
    _refuse_names(settings[TrainerConfig])
    return WandbSink(settings[WandbConfig])
