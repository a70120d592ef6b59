"""Runtime ``ray``: controller here, trainer ranks and engines as actors, on one machine or many.

Start with `runtime`, which makes the parts; each of the others is one idea::

    cluster    a Ray of the run's own, or the one that RAY_ADDRESS names
    placement  which actor computes on which devices of which node
    attest     a process has exactly the plugins of the run, or the run is refused
    rank       an actor: one process of a trainer           trainer   what stands for all of them here
    host       an actor: one engine                         engines   what stands for all of them here
    shares     data dealt out to ranks, balanced by tokens
    packets    rows and samples as few large arrays, which Ray moves without pickling
    parcels    weights as such arrays, a bounded number of bytes at a time
    calls      errors of actors as errors of the run

Nothing here is imported, and Ray is not, unless a run says ``trainer.runtime=ray``.
"""
