"""Whose code raised: from a traceback to the plugin that a user should blame."""

from collections.abc import Iterable
from types import FrameType, TracebackType

from skyrl_kernel.errors import PluginError
from skyrl_kernel.plugins.catalog import PluginEntry

_KERNEL = ("skyrl_kernel",)
_DEFAULTS = ("skyrl_kernel", "defaults")


def owner_of(error: BaseException, entries: Iterable[PluginEntry]) -> PluginEntry | None:
    """The plugin that owns the deepest frame which belongs to one of ``entries``.

    A frame belongs to the entry whose module shares the most leading names
    with it (helpers in other modules of its package included); frames of
    libraries and of the kernel belong to nobody. Kernel defaults are owned
    each by its own module.
    """
    owner: PluginEntry | None = None
    traceback: TracebackType | None = error.__traceback__
    while traceback is not None:
        owner = module_owner(_module_of(traceback.tb_frame), entries) or owner
        traceback = traceback.tb_next
    return owner


def running_owner(
    innermost: FrameType, entries: Iterable[PluginEntry]
) -> tuple[PluginEntry, str] | None:
    """The plugin whose code runs, and its function and line; None if it is nobody's.

    Args:
        innermost: Frame of a thread; a plugin may have called a library.
        entries: The loaded plugins.
    """
    frame: FrameType | None = innermost
    while frame is not None:
        module = _module_of(frame)
        if owner := module_owner(module, entries):
            return owner, f"{module}.{frame.f_code.co_qualname}, line {frame.f_lineno}"
        frame = frame.f_back
    return None


def module_owner(module: str, entries: Iterable[PluginEntry]) -> PluginEntry | None:
    """The plugin that a module belongs to, by the rule of `owner_of`."""
    names = tuple(module.split("."))
    # A module of the kernel is a plugin's only inside one default's own.
    least = len(_DEFAULTS) + 1 if names[: len(_KERNEL)] == _KERNEL else 1
    best: PluginEntry | None = None
    for entry in entries:
        shared = 0
        for ours, theirs in zip(names, entry.value.split("."), strict=False):
            if ours != theirs:
                break
            shared += 1
        if shared >= least:
            best, least = entry, shared + 1
    return best


def _module_of(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))


def attributed(
    error: BaseException,
    entries: Iterable[PluginEntry],
    *,
    hook: str,
    step: int | None,
    process: str = "controller",
    provider: PluginEntry | None = None,
    kernel_version: str = "unknown",
) -> PluginError:
    """``error`` as a `PluginError` that names its owner, chained to the original.

    Args:
        error: What was caught, with its traceback.
        entries: The loaded plugins.
        hook: The hook, or the stage, whose code was running.
        step: The training step, or None outside of one.
        process: Which process.
        provider: Who is named if no frame of any plugin is in the traceback, as when a
            callable refuses its arguments, or the error came from another process.
        kernel_version: Named if nobody else can be.
    """
    if isinstance(error, PluginError):
        return error
    owner = owner_of(error, entries) or provider
    name = owner.name if owner is not None else "kernel"
    label = owner.label if owner is not None else f"skyrl-kernel {kernel_version}"
    wrapped = PluginError(name, label, hook, step, process, f"{type(error).__name__}: {error}")
    wrapped.__cause__ = error
    return wrapped
