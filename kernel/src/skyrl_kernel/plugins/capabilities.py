"""Whether the selected plugins fit together, found out before anything is allocated."""

from collections.abc import Collection, Iterable, Mapping, Sequence

from skyrl_kernel.errors import CapabilityError
from skyrl_kernel.place import PLACES
from skyrl_kernel.plugins.catalog import Catalog, PluginEntry
from skyrl_kernel.plugins.vocabulary import ENGINE, PROMISED_BY, SYNC
from skyrl_kernel.plugins.wording import did_you_mean, listed

Holders = Mapping[str, PluginEntry]
"""Key of a slot → the plugin whose name it holds."""


def check_capabilities(
    entries: Sequence[PluginEntry],
    catalog: Catalog,
    holders: Holders,
    extra_needs: Mapping[str, Iterable[str]] | None = None,
) -> None:
    """Every capability that somebody needs must be offered by who would keep the promise.

    The kinds are capabilities too: who needs ``env`` needs some env to be selected.

    Args:
        entries: The selected plugins.
        catalog: All installed ones, to name who could help.
        holders: Of the run's slots.
        extra_needs: What is needed for other reasons: who, in words for the message
            (``trainer.algorithm.recompute_old_logprobs=false``) → capabilities.

    Raises:
        CapabilityError: One line per unmet need: who needs what, who of the selected lacks
            it, which installed plugin has it.
    """
    given = {*PLACES, *(entry.kind for entry in entries)}  # places: see `missing_places`
    needs = [(str(entry), entry.manifest.needs) for entry in entries]
    needs += [(who, tuple(what)) for who, what in (extra_needs or {}).items()]
    unmet = [
        _explained(who, capability, entries, catalog, holders)
        for who, capabilities in needs
        for capability in capabilities
        if capability not in given and not is_offered(capability, entries, holders)
    ]
    if unmet:
        raise CapabilityError("\n".join(unmet))


def is_offered(capability: str, entries: Iterable[PluginEntry], holders: Holders) -> bool:
    """Whether the run has the capability: from the slot whose promise it is.

    A word that the kernel does not know may come from any selected plugin, unless that one is made
    for slots and holds none.
    """
    keys = PROMISED_BY.get(capability)
    able = [holders[key] for key in keys if key in holders] if keys else entries
    return any(capability in one.manifest.offers and _takes_part(one, holders) for one in able)


def _takes_part(entry: PluginEntry, holders: Holders) -> bool:
    slots = entry.manifest.slots
    return entry in holders.values() or not slots or any(slot not in holders for slot in slots)


def missing_places(entries: Sequence[PluginEntry], here: Collection[str]) -> list[str]:
    """What selected plugins need of the machines of the run, and these are not: a sentence each.

    Args:
        entries: The selected plugins.
        here: Of `skyrl_kernel.place.PLACES`, those that the run has.
    """
    return [
        f"{entry} needs {PLACES[need]}, which this run does not have; "
        "generator.inference_engine.weight_sync_backend=auto takes the best that it has"
        for entry in entries
        for need in entry.manifest.needs
        if need in PLACES and need not in here
    ]


def _explained(
    who: str, capability: str, entries: Sequence[PluginEntry], catalog: Catalog, holders: Holders
) -> str:
    keys = PROMISED_BY.get(capability, ())
    able = catalog.offering(capability)
    able = [one for one in able if {*keys} & {*one.manifest.slots}] or able
    fitting = _fitting(who, capability, catalog, holders)
    if idle := [entry for entry in entries if capability in entry.manifest.offers]:
        held = " or ".join(f"{key}={holders[key].name}" for key in keys if key in holders)
        where = f" of {held}, which does not offer it" if held else ""
        slots = (
            f"{slot}={one.name}"
            for one in able
            for slot in one.manifest.slots
            if slot in keys or not keys
        )
        return (
            f"{who} needs '{capability}'{where}. Selected {listed(map(str, idle))} offers it and is not "
            f"used for it.{fitting} To use one that offers it: {listed(slots)}."
        )
    text = f"{who} needs '{capability}', which no selected plugin offers."
    if not able:
        known = {name for entry in catalog for name in entry.manifest.offers}
        near = did_you_mean(capability, known)
        others = fitting or f" Offered by installed plugins: {listed(sorted(known))}."
        return f"{text} No installed plugin offers it either.{near}{others}"
    kinds = {entry.kind for entry in able}
    for entry in entries:
        if entry.kind in kinds and entry.manifest.offers:
            text += f" Selected {entry} offers only {listed(entry.manifest.offers)}."
        elif entry.kind in kinds and _rivals(entry, able):
            text += f" Selected {entry} lacks it."
    return f"{text}{fitting} Installed with it: " + "; ".join(map(_selectable, able)) + "."


def _fitting(who: str, capability: str, catalog: Catalog, holders: Holders) -> str:
    """Which transports the engine has a receiver for, if ``who`` is one that lacks it."""
    engine, sync = holders.get(ENGINE), holders.get(SYNC)
    if engine is None or sync is None or who != str(sync) or not _is_of_engine(capability):
        return ""
    names = [
        entry.name
        for entry in catalog
        if SYNC in entry.manifest.slots
        and (needed := {*filter(_is_of_engine, entry.manifest.needs)})
        and needed <= {*engine.manifest.offers}
    ]
    return (
        f" The engine '{engine.name}' takes {SYNC}={'|'.join(names) or 'none of those installed'}."
    )


def _is_of_engine(capability: str) -> bool:
    """Whether a transport asks it of the engine, as it does with a word that the kernel does not know."""
    return capability not in PLACES and ENGINE in PROMISED_BY.get(capability, (ENGINE,))


def _rivals(entry: PluginEntry, able: Iterable[PluginEntry]) -> bool:
    """True if one of ``able`` could stand in a slot of ``entry``."""
    return any(set(entry.manifest.slots) & set(other.manifest.slots) for other in able)


def _selectable(entry: PluginEntry) -> str:
    slots = listed((f"{slot}={entry.name}" for slot in entry.manifest.slots), nothing="")
    how = f"--plugin {entry.qualified}" + (f" or {slots}" if slots else "")
    return f"{entry}, selected by {how}"
