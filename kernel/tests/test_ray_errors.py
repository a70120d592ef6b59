"""What Ray says of processes, told for users. The texts are Ray 2.60's own."""

import errno
import pickle
from pathlib import Path

import pytest

pytest.importorskip("ray")

from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError

from skyrl_kernel.errors import (
    ConfigError,
    NonFiniteError,
    PluginError,
    RankError,
    RunError,
    WeightSyncError,
    is_disk_full,
)
from skyrl_kernel.ray.errors import (
    FOLLOWS,
    IS_GONE,
    OWN,
    Process,
    ProcessDied,
    as_run_error,
    gravity,
    is_of_another,
)

RANK = Process(name="trainer rank 1", where="gpu-3 (10.0.0.3)")
KILLED = """The actor died unexpectedly before finishing this task.
\tclass_name: Rank
\tactor_id: 12f1eb865b20917838abdf2d01000000
The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit \
detail: Worker unexpectedly exits with a connection error code 2. End of file. Some common causes \
include: (1) the process was killed by the OOM killer due to high memory usage, (2) …"""
UNPLUGGED = """The actor died unexpectedly before finishing this task.
\tip: 192.0.2.2
The actor died because its node has died. Node Id: 711494921b8b0e56ccf1721d42008a883e95783860bd31
\tthe actor's node was terminated unexpectedly: health check failed due to missing too many \
heartbeats"""


def raised(cause: Exception) -> Exception:
    """What `ray.get` raises for an exception in an actor, after its journey."""
    travelled = pickle.loads(pickle.dumps(cause))
    error: Exception = RayTaskError("update", "Traceback", travelled).as_instanceof_cause()
    return error


def died(text: str) -> ActorDiedError:
    """What `ray.get` raises of an actor that is gone."""
    error = ActorDiedError()
    error.error_msg = text
    return error


def test_a_process_that_was_killed_is_told_without_ids_and_guesses() -> None:
    error = as_run_error(died(KILLED), RANK)
    assert isinstance(error, ProcessDied)
    assert str(error) == (
        "trainer rank 1 on gpu-3 (10.0.0.3) has died: its process ended without a word to Ray, as after "
        "kill -9, when the system has no memory left (dmesg says so), or in a crash"
    )


def test_a_machine_that_is_gone_is_told_as_one() -> None:
    error = as_run_error(died(UNPLUGGED), RANK)
    assert str(error).endswith(
        "has died: its node is gone (health check failed due to missing too many heartbeats)"
    )


def test_a_process_that_cannot_be_reached_counts_as_dead() -> None:
    error = as_run_error(ActorUnavailableError("RpcError: Socket closed", actor_id=None), RANK)
    assert isinstance(error, ProcessDied)
    assert "Ray does not reach it any more" in str(error)
    assert "Socket closed" in str(error)


def test_the_last_line_that_it_printed_is_told(tmp_path: Path) -> None:
    output = tmp_path / "trainer_rank_1.out"
    output.write_text("loading\nterminate called after throwing 'c10::Error'\n\n")
    process = Process(name="trainer rank 1", where="gpu-3", output=output)
    text = str(as_run_error(died(KILLED), process))
    assert "The last it printed: \"terminate called after throwing 'c10::Error'\"" in text
    assert text.endswith(f"all of it is in {output}")


@pytest.mark.parametrize(
    "error",
    [
        PluginError("fsdp", "skyrl-fsdp 0.1", "loss", None, "trainer rank 1 on gpu-3", "E: x"),
        ConfigError("no such value"),
    ],
)
def test_what_is_written_for_the_user_comes_through_as_it_is(error: Exception) -> None:
    found = as_run_error(raised(error), RANK)
    assert type(found) is type(error)
    assert str(found) == str(error)


def test_what_does_not_say_whose_it_is_is_told_with_its_process() -> None:
    found = as_run_error(raised(NonFiniteError("the loss is NaN")), RANK)
    assert type(found) is NonFiniteError
    assert str(found) == "trainer rank 1 on gpu-3 (10.0.0.3): the loss is NaN"
    assert str(as_run_error(found, RANK)) == str(found)
    assert str(
        as_run_error(raised(WeightSyncError("trainer rank 1 has no such tensor")), RANK)
    ) == ("trainer rank 1 has no such tensor")


def test_a_full_disk_is_still_one_and_says_whose() -> None:
    found = as_run_error(
        raised(OSError(errno.ENOSPC, "No space left on device", "/shared/x")), RANK
    )
    assert is_disk_full(found)
    assert "No space left on device (trainer rank 1 on gpu-3 (10.0.0.3)): '/shared/x'" in str(found)


def test_any_other_exception_names_the_process_and_its_type() -> None:
    found = as_run_error(raised(KeyError("policy")), RANK)
    assert isinstance(found, RunError)
    assert str(found) == "trainer rank 1 on gpu-3 (10.0.0.3) failed: KeyError: 'policy'"


# Recorded of torch on four GPUs and shortened: the stacks are longer.
GAVE_UP = """\
[rank1]:[E606 09:10:08.364376295 ProcessGroupNCCL.cpp:832] [Rank 1] To avoid data inconsistency, we \
are taking the entire process down.
terminate called after throwing an instance of 'c10::DistBackendError'
  what():  [PG ID 0 PG GUID 0(default_pg) Rank 1] Process group watchdog thread terminated with \
exception: [Rank 1] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=1, \
OpType=ALLGATHER, NumelIn=1, NumelOut=4, Timeout(ms)=600000) ran for 600004 milliseconds before \
timing out.
Exception raised from checkTimeout at ProcessGroupNCCL.cpp:760 (most recent call first):
frame #0: c10::Error::Error(c10::SourceLocation, std::string) + 0x9d (0x14e75056afad in libc10.so)

Fatal Python error: Aborted
"""


def test_a_rank_that_torch_ended_since_another_did_not_come_is_not_the_cause(
    tmp_path: Path,
) -> None:
    output = tmp_path / "trainer_rank_1.out"
    waited = Process(name="trainer rank 1", where="gpu-3", output=output)
    output.write_text(GAVE_UP + '  File "threading.py", line 1002 in _bootstrap\n' * 1000)
    error = as_run_error(died(KILLED), waited)
    assert gravity(error) == FOLLOWS
    assert str(error).startswith(
        "trainer rank 1 on gpu-3 waited for another in vain, and torch ended it: 'Watchdog caught "
        "collective operation timeout: WorkNCCL(SeqNum=1, OpType=ALLGATHER"
    )
    assert gravity(as_run_error(died(UNPLUGGED), waited)) == IS_GONE
    again = Process(name="trainer rank 1", where="gpu-3", output=output)  # the run goes on
    assert gravity(as_run_error(died(KILLED), again)) == IS_GONE


def test_a_death_is_nearer_to_the_cause_than_an_error_and_that_nearer_than_a_partners() -> None:
    assert gravity(as_run_error(died(KILLED), RANK)) == IS_GONE
    assert gravity(as_run_error(raised(KeyError("policy")), RANK)) == OWN
    assert gravity(RankError("rank 1 of 2 does not answer")) == FOLLOWS
    assert gravity(RuntimeError("[pair.cc:553] Connection closed by peer [10.0.0.3]")) == FOLLOWS


def test_what_all_ranks_raise_is_told_of_the_one_that_found_it() -> None:
    error = RuntimeError("rank 1 of 12: no such luck")
    assert not is_of_another(error, RANK)
    assert is_of_another(error, Process(name="trainer rank 11"))
    assert not is_of_another(RuntimeError("no such luck"), Process(name="trainer rank 0"))
