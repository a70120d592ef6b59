"""Room for a connection per request."""

import resource

SPARE = 512
"""Files that a run has open besides."""


def allowed(connections: int) -> int:
    """How many of ``connections`` this process may have, once its own limit is as high as it can set it.

    Servers that are started later inherit the limit.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + SPARE
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY:
        return connections
    return max(1, min(connections, soft - SPARE))
