"""Whether an episode succeeded, as its env says.

A reward is a price, not a verdict: partial credit is above 0, and an env may
price success at anything. So an env that knows says so among its metrics
(`skyrl_kernel.env.Env.get_metrics`): 1 under the first of `NAMES` that it
reports is a success, anything less is none.
"""

from collections.abc import Iterable

from skyrl_kernel.records import Trajectory

NAMES = ("is_success", "exact_match")


def is_success(trajectory: Trajectory) -> bool | None:
    """True or False as the env says; None if it reports neither of `NAMES`."""
    reported = trajectory.env_metrics
    for name in NAMES:
        if name in reported:
            return reported[name] >= 1
    return None


def any_success(trajectories: Iterable[Trajectory]) -> bool | None:
    """True if one of them succeeded; None if no env says anything."""
    known = [known for one in trajectories if (known := is_success(one)) is not None]
    return any(known) if known else None
