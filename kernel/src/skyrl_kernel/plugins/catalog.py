"""The plugins that are installed, and how one of them is found by name.

A `Catalog` is a plain value made by `discovery`; nothing in it has been
imported.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from skyrl_kernel.errors import PluginSelectionError
from skyrl_kernel.plugins.manifest import Manifest
from skyrl_kernel.plugins.wording import did_you_mean, listed
from skyrl_kernel.slots import GROUPS

KINDS: dict[str, str] = {group: kind for kind, group in GROUPS.items()}
"""Entry-point group → kind."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PluginEntry:
    """One entry point of one installed distribution.

    Example:
        ``skyrl-grpo 0.1.0`` has in group ``skyrl.algorithms`` the line
        ``grpo = skyrl_grpo.plugin``. Its entry has name ``grpo``, kind
        ``algorithm``, value ``skyrl_grpo.plugin``, package ``skyrl_grpo``,
        qualified name ``algorithm/grpo`` and label ``skyrl-grpo 0.1.0``.
    """

    name: str
    """What ``--plugin`` and slots take."""
    group: str
    """Entry-point group."""
    value: str
    """Module with the hook implementations."""
    distribution: str
    """Name on the package index."""
    version: str
    """Version of the distribution."""
    requires_kernel: str = ""
    """Kernel versions that the distribution accepts, such as ``>=0.1,<0.2``; empty: any."""
    extras: tuple[str, ...] = ()
    """Optional parts of the distribution, as in ``skyrl-vllm[gpu]``."""
    manifest: Manifest = field(default_factory=Manifest, hash=False)
    """Its table in ``plugin.toml``, or the distribution's summary."""
    problems: tuple[str, ...] = ()
    """Why it cannot be used; selecting it is refused."""
    warnings: tuple[str, ...] = ()
    """What its user should know; it works."""

    @property
    def kind(self) -> str:
        """``algorithm``, ``env``, …: the singular of its group."""
        return KINDS[self.group]

    @property
    def qualified(self) -> str:
        """``kind/NAME``, which is never ambiguous between kinds."""
        return f"{self.kind}/{self.name}"

    @property
    def package(self) -> str:
        """Top-level import package."""
        return self.value.partition(".")[0]

    @property
    def label(self) -> str:
        """Distribution and version."""
        return f"{self.distribution} {self.version}"

    def __str__(self) -> str:
        return f"{self.kind} '{self.name}' ({self.label})"


@dataclass(frozen=True, kw_only=True)
class Catalog:
    """All installed plugins, sorted by group, name and distribution."""

    entries: tuple[PluginEntry, ...]
    """Every entry point found, usable or not."""
    kernel_version: str
    """Version of the installed skyrl-kernel."""
    problems: tuple[str, ...] = ()
    """Faults that belong to no entry, such as an unreadable ``entry_points.txt``."""

    def __iter__(self) -> Iterator[PluginEntry]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def named(self, asked: str, groups: Sequence[str] | None = None) -> list[PluginEntry]:
        """Every entry that NAME or ``kind/NAME`` may mean, the order of ``groups`` first.

        Raises:
            PluginSelectionError: The part before the slash is no kind.
        """
        kind, slash, name = asked.rpartition("/")
        if slash and kind not in GROUPS:
            raise PluginSelectionError(
                f"no plugin kind '{kind}' (asked: '{asked}').{did_you_mean(kind, GROUPS)} "
                f"Kinds: {listed(GROUPS)}. Write NAME or kind/NAME."
            )
        searched = list(GROUPS.values()) if groups is None else list(groups)
        if slash:
            searched = [group for group in searched if group == GROUPS[kind]]
        return [
            entry
            for group in searched
            for entry in self.entries
            if entry.group == group and entry.name == name
        ]

    def find(
        self, asked: str, groups: Sequence[str] | None = None, *, slot: str | None = None
    ) -> PluginEntry:
        """The entry that NAME or ``kind/NAME`` means.

        Args:
            asked: As the user wrote it.
            groups: Entry-point groups to look in, in this order, the first one
                that has the name; default: all, and the name must be unique.
            slot: Key that holds the name, so that a message speaks of what may stand there.

        Raises:
            PluginSelectionError: Not installed, claimed by two distributions,
                or found in several kinds.
        """
        matches = self.named(asked, groups)
        if not matches:
            raise self._not_found(asked, groups, slot)
        first = [entry for entry in matches if entry.group == matches[0].group]
        if len(first) > 1:
            claims = " and ".join(entry.label for entry in first)
            raise PluginSelectionError(
                f"{first[0].kind} '{first[0].name}' is claimed by {claims}. "
                f"One name is one plugin: uninstall one of them (pip uninstall "
                f"{first[0].distribution})."
            )
        # One module under one name in two groups is one plugin, whichever is meant.
        if groups is None and len({(entry.distribution, entry.value) for entry in matches}) > 1:
            forms = " or ".join(f"{entry.qualified} ({entry.label})" for entry in matches)
            raise PluginSelectionError(f"'{asked}' is the name of several plugins. Write {forms}.")
        return matches[0]

    def offering(self, capability: str) -> list[PluginEntry]:
        """The installed plugins that offer a capability."""
        return [entry for entry in self.entries if capability in entry.manifest.offers]

    def sharing_module(self, value: str) -> list[PluginEntry]:
        """The entries whose hook implementations stand in one module."""
        return [entry for entry in self.entries if entry.value == value]

    def _not_found(
        self, asked: str, groups: Sequence[str] | None, slot: str | None
    ) -> PluginSelectionError:
        kind, _, name = asked.rpartition("/")
        kinds = [kind] if kind else [KINDS[group] for group in groups or GROUPS.values()]
        what = " or ".join(kinds) if kind or groups else "plugin"
        able = [entry for entry in self.entries if entry.kind in kinds]
        fitting = [entry for entry in able if slot in entry.manifest.slots]
        known = sorted({entry.name for entry in fitting or able})
        elsewhere = [str(entry) for entry in self.entries if entry.name == name]
        meant = did_you_mean(name, known)
        if elsewhere:
            meant = f" There is {listed(elsewhere)}, which is of another kind."
        if elsewhere or not meant:
            meant += f" Installed: {listed(known)}."
        return PluginSelectionError(
            f"no {what} named '{name}' is installed.{meant} If it exists: pip install skyrl-{name}. "
            "'skyrl plugins list' shows what is installed and what each provides."
        )
