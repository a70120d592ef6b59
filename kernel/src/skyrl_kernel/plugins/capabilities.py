"""Whether the selected plugins fit together, found out before anything is allocated."""

from collections.abc import Collection, Iterable, Mapping, Sequence

from skyrl_kernel.errors import CapabilityError
from skyrl_kernel.place import PLACES
from skyrl_kernel.plugins.catalog import Catalog, PluginEntry
from skyrl_kernel.plugins.wording import did_you_mean, listed


def check_capabilities(
    entries: Sequence[PluginEntry],
    catalog: Catalog,
    extra_needs: Mapping[str, Iterable[str]] | None = None,
) -> None:
    """Every capability that somebody needs must be offered by somebody selected.

    The kinds are capabilities too: who needs ``env`` needs some env to be selected.

    Args:
        entries: The selected plugins.
        catalog: All installed ones, to name who could help.
        extra_needs: What is needed for other reasons: who, in words for the message
            (``trainer.algorithm.recompute_old_logprobs=false``) → capabilities.

    Raises:
        CapabilityError: One line per unmet need: who needs what, who of the selected lacks
            it, which installed plugin has it.
    """
    offered = {capability for entry in entries for capability in entry.manifest.offers}
    offered |= {*PLACES, *(entry.kind for entry in entries)}  # places: see `missing_places`
    needs = [(str(entry), entry.manifest.needs) for entry in entries]
    needs += [(who, tuple(what)) for who, what in (extra_needs or {}).items()]
    unmet = [
        _explained(who, capability, entries, catalog)
        for who, capabilities in needs
        for capability in capabilities
        if capability not in offered
    ]
    if unmet:
        raise CapabilityError("\n".join(unmet))


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


def _explained(who: str, capability: str, entries: Sequence[PluginEntry], catalog: Catalog) -> str:
    text = f"{who} needs '{capability}', which no selected plugin offers."
    able = catalog.offering(capability)
    if not able:
        known = {name for entry in catalog for name in entry.manifest.offers}
        return (
            f"{text} No installed plugin offers it either.{did_you_mean(capability, known)} "
            f"Offered by installed plugins: {listed(sorted(known))}."
        )
    kinds = {entry.kind for entry in able}
    for entry in entries:
        if entry.kind in kinds and entry.manifest.offers:
            text += f" Selected {entry} offers only {listed(entry.manifest.offers)}."
        elif entry.kind in kinds and _rivals(entry, able):
            text += f" Selected {entry} lacks it."
    return f"{text} Installed with it: " + "; ".join(map(_selectable, able)) + "."


def _rivals(entry: PluginEntry, able: Iterable[PluginEntry]) -> bool:
    """True if one of ``able`` could stand in a slot of ``entry``."""
    return any(set(entry.manifest.slots) & set(other.manifest.slots) for other in able)


def _selectable(entry: PluginEntry) -> str:
    slots = listed((f"{slot}={entry.name}" for slot in entry.manifest.slots), nothing="")
    how = f"--plugin {entry.qualified}" + (f" or {slots}" if slots else "")
    return f"{entry}, selected by {how}"
