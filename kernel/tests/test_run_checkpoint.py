import json
import math
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skyrl_kernel.errors import CheckpointError, ResumeError, is_disk_full
from skyrl_kernel.run.checkpoint import (
    checkpoint_at,
    dump_json,
    latest_checkpoint,
    load_state,
    save_checkpoint,
    set_aside_later,
    verify,
)

SAVE_FOR_EVER = """
import sys
from pathlib import Path
from skyrl_kernel.run.checkpoint import save_checkpoint

def write(step):
    def fill(folder):
        (folder / "shards").mkdir()
        for shard in range(4):
            (folder / "shards" / f"{shard}.bin").write_bytes(bytes([step % 256]) * 300_000)
    return fill

step = int(sys.argv[2])
while True:
    step += 1
    save_checkpoint(Path(sys.argv[1]), step, write(step), {"step": step}, keep=2)
    print(step, flush=True)
"""


def weights(value: int):
    def write(folder: Path) -> None:
        (folder / "model").mkdir()
        (folder / "model" / "weights.bin").write_bytes(bytes([value]) * 1000)

    return write


def save(folder: Path, step: int, keep: int = -1) -> Path:
    return save_checkpoint(folder, step, weights(step), {"step": step, "rng": 2**90}, keep)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_newest_checkpoint_is_found_with_its_state(tmp_path):
    save(tmp_path, 9)
    save(tmp_path, 10)  # 10 > 9, though "10" < "9"
    newest, damaged = latest_checkpoint(tmp_path)
    assert newest is not None
    assert (newest.step, newest.path.name, damaged) == (10, "global_step_10", [])
    assert load_state(newest) == {"step": 10, "rng": 2**90}
    assert (newest.path / "model" / "weights.bin").read_bytes() == b"\n" * 1000


def test_a_folder_without_checkpoints_has_no_newest_one(tmp_path):
    assert latest_checkpoint(tmp_path) == (None, [])
    assert latest_checkpoint(tmp_path / "missing") == (None, [])


def truncate(checkpoint: Path) -> None:
    (checkpoint / "model" / "weights.bin").write_bytes(b"x" * 999)


def flip_a_bit(checkpoint: Path) -> None:
    file = checkpoint / "model" / "weights.bin"
    data = bytearray(file.read_bytes())
    data[500] ^= 1
    file.write_bytes(data)


def flip_a_digit_of_the_state(checkpoint: Path) -> None:
    file = checkpoint / "state.json"
    file.write_text(file.read_text().replace("20", "21"))


def remove_a_file(checkpoint: Path) -> None:
    (checkpoint / "model" / "weights.bin").unlink()


def remove_the_manifest(checkpoint: Path) -> None:
    (checkpoint / "manifest.json").unlink()


def truncate_the_manifest(checkpoint: Path) -> None:
    file = checkpoint / "manifest.json"
    file.write_bytes(file.read_bytes()[:-20])


def copy_the_manifest_of_another_step(checkpoint: Path) -> None:
    other = checkpoint.with_name("global_step_10") / "manifest.json"
    (checkpoint / "manifest.json").write_bytes(other.read_bytes())


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (truncate, "model/weights.bin has 999 bytes, 1000 were written"),
        (flip_a_bit, "model/weights.bin is not what was written"),
        (flip_a_digit_of_the_state, "state.json is not what was written"),
        (remove_a_file, "model/weights.bin is missing"),
        (remove_the_manifest, "manifest.json is missing"),
        (truncate_the_manifest, "manifest.json is unreadable"),
        (copy_the_manifest_of_another_step, "its manifest is that of step 10"),
    ],
)
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_used(tmp_path, damage, reason):
    save(tmp_path, 10)
    newest = save(tmp_path, 20)
    damage(newest)

    found, damaged = latest_checkpoint(tmp_path)

    assert found is not None
    assert found.step == 10
    assert len(damaged) == 1
    assert str(newest) in damaged[0]
    assert reason in damaged[0]
    assert newest.exists(), "a damaged checkpoint is never deleted"
    with pytest.raises(CheckpointError, match="take another, or let trainer"):
        checkpoint_at(newest)


def test_any_flipped_byte_of_any_file_is_noticed(tmp_path):
    path = save(tmp_path, 20)
    generator = random.Random(0)
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        whole = file.read_bytes()
        for position in generator.sample(range(len(whole)), min(60, len(whole))):
            file.write_bytes(
                whole[:position] + bytes([whole[position] ^ 0x11]) + whole[position + 1 :]
            )
            assert verify(path) is not None, (file.name, position)
        file.write_bytes(whole)
    assert verify(path) is None


def test_a_damaged_checkpoint_that_the_run_catches_up_with_is_kept_under_another_name(tmp_path):
    truncate(save(tmp_path, 20))
    save(tmp_path, 20)
    assert names(tmp_path) == ["global_step_20", "global_step_20.1"]
    assert verify(tmp_path / "global_step_20") is None


def test_old_checkpoints_beyond_the_number_to_keep_are_removed(tmp_path):
    for step in (10, 20, 30):
        save(tmp_path, step, keep=2)
    assert names(tmp_path) == ["global_step_20", "global_step_30"]


def test_pruning_never_counts_a_damaged_checkpoint_as_one_to_keep(tmp_path):
    save(tmp_path, 10)
    truncate(save(tmp_path, 20))
    save(tmp_path, 30, keep=2)
    # 30 and 10 are whole; 20 is damaged, so it neither counts nor goes.
    assert names(tmp_path) == ["global_step_10", "global_step_20", "global_step_30"]


def test_pruning_leaves_the_newly_saved_one_where_a_later_step_lies_damaged(tmp_path):
    flip_a_bit(save(tmp_path, 20))
    save(tmp_path, 15, keep=1)
    newest, damaged = latest_checkpoint(tmp_path)
    assert newest is not None
    assert newest.step == 15
    assert len(damaged) == 1


def test_going_back_sets_later_checkpoints_aside(tmp_path):
    for step in (10, 20, 30):
        save(tmp_path, step)
    assert [path.name for path in set_aside_later(tmp_path, 10)] == [
        "global_step_30.1",
        "global_step_20.1",
    ]
    newest, _ = latest_checkpoint(tmp_path)
    assert newest is not None
    assert newest.step == 10


def test_a_trainer_that_fails_leaves_nothing_behind(tmp_path):
    save(tmp_path, 10)

    def fail(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        save_checkpoint(tmp_path, 20, fail, {})
    assert names(tmp_path) == ["global_step_10"]


WRITE_ON = """
import itertools, sys
from pathlib import Path

folder = Path(sys.argv[1])
for number in itertools.count():
    try:
        (folder / f"{number}.bin").touch()
    except FileNotFoundError:
        folder.mkdir(parents=True, exist_ok=True)
"""


def test_a_trainer_that_fails_while_ranks_of_it_write_on_is_told_as_it_is(tmp_path):
    others = []

    def die_beside_others(folder: Path) -> None:
        for number in range(2):
            (folder / f"{number}").mkdir()
            command = [sys.executable, "-c", WRITE_ON, str(folder / f"{number}")]
            others.append(subprocess.Popen(command))
        while len(list(folder.glob("*/*"))) < 1000:
            time.sleep(0.001)
        raise RuntimeError("critic rank 1 has died")

    try:
        with pytest.raises(RuntimeError, match="critic rank 1 has died"):
            save_checkpoint(tmp_path, 1, die_beside_others, {})
    finally:
        for other in others:
            other.kill()
            other.wait()
    save(tmp_path, 1)
    assert names(tmp_path) == ["global_step_1"]


def test_a_trainer_may_not_write_the_kernels_files(tmp_path):
    def write(folder: Path) -> None:
        (folder / "state.json").write_text("{}")

    with pytest.raises(ValueError, match=r"wrote state\.json, a name that the kernel uses"):
        save_checkpoint(tmp_path, 1, write, {})


def test_a_full_disk_keeps_what_was_there(tmp_path):
    save(tmp_path, 10)

    def fill_the_disk(folder: Path) -> None:
        (folder / "weights.bin").symlink_to("/dev/full")
        (folder / "weights.bin").write_bytes(b"x" * 100)

    with pytest.raises(OSError, match="No space left") as caught:
        save_checkpoint(tmp_path, 20, fill_the_disk, {})
    assert is_disk_full(caught.value)
    assert names(tmp_path) == ["global_step_10"]
    assert verify(tmp_path / "global_step_10") is None


def test_a_file_size_limit_in_the_middle_of_a_write_keeps_what_was_there(tmp_path):
    code = (
        "import resource, sys\nfrom pathlib import Path\n"
        "from skyrl_kernel.errors import is_disk_full\n"
        "from skyrl_kernel.run.checkpoint import save_checkpoint\n"
        "folder = Path(sys.argv[1])\n"
        "write = lambda n: lambda f: (f / 'w.bin').write_bytes(b'x' * n)\n"
        "save_checkpoint(folder, 1, write(1000), {})\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
        "try:\n    save_checkpoint(folder, 2, write(9000), {})\n"
        "except OSError as error:\n    sys.exit(77 if is_disk_full(error) else 1)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert ended.returncode == 77
    assert names(tmp_path) == ["global_step_1"]
    assert verify(tmp_path / "global_step_1") is None


def test_killed_while_saving_the_newest_checkpoint_is_always_whole(tmp_path):
    script = tmp_path / "save.py"
    script.write_text(SAVE_FOR_EVER)
    folder = tmp_path / "checkpoints"
    generator = random.Random(0)
    done = 0
    for _ in range(12):
        child = subprocess.Popen(
            [sys.executable, str(script), str(folder), str(done)], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        with child.stdout as announced:
            first = int(announced.readline())  # at least one save is through
            time.sleep(generator.uniform(0, 0.05))
            child.send_signal(signal.SIGKILL)
            child.wait()
            last = max([first, *(int(line) for line in announced if line.strip())])

        newest, damaged = latest_checkpoint(folder)

        assert damaged == []
        assert newest is not None
        # One more save than announced may have been through.
        assert newest.step in (last, last + 1)
        assert load_state(newest) == {"step": newest.step}
        for shard in range(4):
            data = (newest.path / "shards" / f"{shard}.bin").read_bytes()
            assert data == bytes([newest.step % 256]) * 300_000
        assert not [name for name in names(folder) if name.startswith(".")]
        done = newest.step


def test_a_path_that_is_no_checkpoint_is_refused_naming_those_nearby(tmp_path):
    save(tmp_path / "checkpoints", 10)
    with pytest.raises(ResumeError, match="is no checkpoint") as caught:
        checkpoint_at(tmp_path)
    assert str(tmp_path / "checkpoints" / "global_step_10") in str(caught.value)
    with pytest.raises(ResumeError, match="near there: none"):
        checkpoint_at(tmp_path / "nowhere" / "global_step_3")


def test_the_checkpoint_at_a_path_is_verified_and_read(tmp_path):
    path = save(tmp_path, 10)
    assert checkpoint_at(path).step == 10


@settings(max_examples=50, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=8,
    )
)
def test_state_keeps_every_bit(value):
    assert json.loads(dump_json({"value": value}, "state")) == {"value": value}


def test_state_keeps_what_is_not_finite():
    back = json.loads(dump_json({"best": -math.inf, "last": math.nan}, "state"))
    assert back["best"] == -math.inf
    assert math.isnan(back["last"])


def test_state_that_json_would_change_is_refused(tmp_path):
    with pytest.raises(TypeError, match=r"state\['seen'\] has the key 3"):
        save_checkpoint(tmp_path / "c", 1, weights(1), {"seen": {3: True}})
    with pytest.raises(TypeError, match="does not fit in JSON"):
        save_checkpoint(tmp_path / "c", 1, weights(1), {"seen": {1, 2}})
    assert not (tmp_path / "c").exists()
