"""Runtime ``ray``: controller here, trainer ranks and engines as actors, on one machine or many.

Start with `runtime`, which makes the parts; each of the others is one idea::

    environment  what Ray reads before it is imported: the token of a run's own
    cluster      a Ray of the run's own, or the one that RAY_ADDRESS names
    demands      which devices a run asks for;  placement  they, reserved, and a seat on each
    shared_gpus  engines over several GPUs that ranks are on too
    actors       processes in those seats, from their start to their end
    interpreter  the Python of a process can be one, or the run is refused
    attest       a process has exactly the plugins of the run, or the run is refused
    member       what all actors have in common
    rank         an actor: one process of a trainer
    ranks        those that have the same models;  trainer  what stands for all of them here
    host         an actor: one engine;  engines  what stands for all of them here
    shares       data dealt out to ranks, balanced by tokens
    packets      rows and samples as few large arrays, which Ray moves without pickling
    parcels      weights as such arrays, a bounded number of bytes at a time
    rank_sender  in a rank: brings weights to engines past Ray
    sync_by_ranks  what stands for all of those here: the stage `sync_weights`
    calls        waiting for actors, several at a time
    guard        the last word of a run that Ray's core has ended
    waits        what the start waits for, on the screen
    errors       what Ray says of a process, as errors of the run
    begin        what each process does first: logs, network
    logs         what it logs and prints, in the run's folder
    monitor      an actor on each machine: how busy it is
    network      what its machine is called, and gloo's card
    quiet        Ray's own remarks, in the log

Nothing here but `environment` is imported, and Ray is not, unless a run says ``trainer.runtime=ray``.
"""
