"""The devices of a run, reserved, and a seat on each for an actor.

A device is one bundle of one of Ray's placement groups: a GPU and a processor, or a processor
alone. (Ray would put two actors that ask for a fifth of a GPU each on the same GPU of a larger
bundle.) Those who share one take a fifth each, as in SkyRL.
"""

import collections
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from skyrl_kernel.errors import CapabilityError, ConfigError
from skyrl_kernel.logs import get_logger
from skyrl_kernel.place import VISIBLE
from skyrl_kernel.ray.demands import Demand

TIMEOUT = "SKYRL_RAY_PG_TIMEOUT_IN_S"
DEFAULT_TIMEOUT_S = 180.0
SHARED = 0.2
"""Part of a device that each of those takes who share it; SkyRL's."""
_ANNOUNCED_S = 5.0
"""A wait for devices that takes longer is spoken of."""

log = get_logger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Seat:
    """Where one actor computes."""

    group: PlacementGroup
    bundle: int
    node: str
    """Ray's id of it."""
    gpus: float
    cpus: float

    @property
    def options(self) -> dict[str, Any]:
        """What its actor is made with."""
        return {
            "num_cpus": self.cpus,
            "num_gpus": self.gpus,
            "scheduling_strategy": PlacementGroupSchedulingStrategy(
                placement_group=self.group, placement_group_bundle_index=self.bundle
            ),
        }

    @property
    def environment(self) -> dict[str, str]:
        """Over what Ray sets in its actor's: one without a GPU sees none, which Ray leaves open."""
        return {} if self.gpus else {VISIBLE: ""}


class Placement:
    """The devices of a run, reserved.

    Args:
        wanted: See `skyrl_kernel.ray.demands`.
        grows: Whether the cluster may get more nodes, so that what it lacks is waited for.

    Raises:
        CapabilityError: They are not there, or not within ``SKYRL_RAY_PG_TIMEOUT_IN_S``.
    """

    def __init__(self, wanted: Sequence[Demand], *, grows: bool) -> None:
        self._groups: dict[str, PlacementGroup] = {}
        self._wanted = {demand.name: demand for demand in wanted}
        timeout_s = timeout()
        if not grows:
            _refuse_too_much(wanted)
        try:
            for demand in wanted:
                group = placement_group(
                    [dict(bundle) for bundle in demand.bundles], strategy=demand.strategy
                )
                self._groups[demand.name] = group
                _wait(group, demand, timeout_s)
                _tell_other_nodes(_nodes(group), demand)
        except BaseException:
            self.close()
            raise

    def seats(self, name: str, *, shared: bool) -> list[Seat]:
        """One for each device of a `Demand`, those of one node behind each other.

        Args:
            name: Of the demand.
            shared: Whether others compute there too.
        """
        group, demand = self._groups[name], self._wanted[name]
        nodes = _nodes(group)
        part = SHARED if shared else 1.0
        order = sorted(nodes, key=lambda bundle: (_first(nodes, nodes[bundle]), bundle))
        return [
            Seat(
                group=group,
                bundle=bundle,
                node=nodes[bundle],
                gpus=part * demand.bundles[bundle].get("GPU", 0.0),
                cpus=part * demand.bundles[bundle]["CPU"],
            )
            for bundle in order
        ]

    def close(self) -> None:
        """Give the devices back."""
        for group in self._groups.values():
            remove_placement_group(group)
        self._groups.clear()


def _wait(group: PlacementGroup, demand: Demand, timeout_s: float) -> None:
    """Until it is reserved; a long wait is spoken of, once."""
    ready = group.ready()
    announced_s = min(_ANNOUNCED_S, timeout_s)
    try:
        try:
            ray.get(ready, timeout=announced_s)
        except GetTimeoutError:
            if announced_s == timeout_s:
                raise
            log.warning(
                f"waiting for devices, at most {TIMEOUT}={timeout_s:g} s: {_there_for(demand)}"
            )
            ray.get(ready, timeout=timeout_s - announced_s)
    except GetTimeoutError:
        raise CapabilityError(_lacking(demand, f"{timeout_s:g} s")) from None


def _nodes(group: PlacementGroup) -> Mapping[int, str]:
    """Bundle → Ray's id of its node."""
    found: Mapping[int, str] = placement_group_table(group)["bundles_to_node_id"]
    return found


def _tell_other_nodes(nodes: Mapping[int, str], demand: Demand) -> None:
    """Ray packs bundles as it can: it promises nodes, and not how many bundles are on each."""
    counts = sorted(collections.Counter(nodes.values()).values(), reverse=True)
    if demand.nodes is not None and counts != [len(nodes) // demand.nodes] * demand.nodes:
        log.warning(
            f"devices for {demand.name} are on nodes with {' + '.join(map(str, counts))} of them, where "
            f"{demand.why} asked for {demand.nodes} nodes: the run computes the same, and what is near to "
            "each other differs"
        )


def _first(nodes: Mapping[int, str], node: str) -> int:
    return min(bundle for bundle, where in nodes.items() if where == node)


def timeout() -> float:
    """Seconds that devices are waited for.

    Raises:
        ConfigError: ``SKYRL_RAY_PG_TIMEOUT_IN_S`` is no number of seconds.
    """
    text = os.environ.get(TIMEOUT) or str(DEFAULT_TIMEOUT_S)
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise ConfigError(f"{TIMEOUT}={text} is no number of seconds above 0")
    return seconds


def _refuse_too_much(wanted: Sequence[Demand]) -> None:
    """Of a Ray that will not grow it is known at once."""
    there = ray.cluster_resources()
    for kind in ("GPU", "CPU"):
        sums = {d.name: sum(bundle.get(kind, 0) for bundle in d.bundles) for d in wanted}
        if sum(sums.values()) > there.get(kind, 0):
            worst = max(wanted, key=lambda demand: sums[demand.name])
            together = "" if len(wanted) == 1 else f"; {_sum(sums, kind)} in all"
            raise CapabilityError(_lacking(worst, together=together) + _counted(kind))


def _counted(kind: str) -> str:
    """Of processors such a Ray has what the run needs, unless it was told a number."""
    return ". Or leave trainer.ray.num_cpus out" if kind == "CPU" else ""


def _sum(sums: Mapping[str, float], kind: str) -> str:
    parts = " + ".join(f"{count:g} for {name}" for name, count in sums.items())
    return f"{parts} = {sum(sums.values()):g} {kind}"


def _lacking(demand: Demand, waited: str = "", *, together: str = "") -> str:
    when = f" within {TIMEOUT}={waited}" if waited else ""
    raised = f", or raise {TIMEOUT} if nodes are still coming" if waited else ""
    return (
        f"Ray does not have what the run needs{when}: {_there_for(demand, together)}. Lower those keys, "
        f"put more on the same devices with trainer.placement.colocate_all=true, or add nodes{raised}"
    )


def _there_for(demand: Demand, together: str = "") -> str:
    """What it asks for, and what of that there is."""
    asked = f"{len(demand.bundles)} × ({_resources(demand.bundles[0])})"
    one_node = " on one node" if demand.strategy == "STRICT_PACK" else ""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    there = "; ".join(f"{n['NodeManagerHostname']}: {_resources(n['Resources'])}" for n in nodes)
    return (
        f"{asked}{one_node} for {demand.name} ({demand.why}){together}. There is {there}; "
        f"free of that: {_resources(ray.available_resources())}"
    )


def _resources(of: Mapping[str, float]) -> str:
    return ", ".join(f"{kind} {of.get(kind, 0):g}" for kind in ("GPU", "CPU") if of.get(kind)) or (
        "nothing"
    )
