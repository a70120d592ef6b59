"""What a process of a run prints: in its file, without secrets, up to its last words."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from skyrl_kernel.ray.logs import last_words, output_file

pytest.importorskip("ray")

PRINTS = """
import os, signal, sys
from pathlib import Path
from skyrl_kernel.logs import process_name
from skyrl_kernel.ray.logs import write_to

write_to(Path(sys.argv[1]), "engine 3", "gpu-1")
print("the key is", end=" ")
print(os.environ["JUDGE_API_KEY"])
print("half a line, ", end="", flush=True)
sys.stderr.write("Authorization: Bearer abcdefghijklmnop\\n")
os.write(1, b"from C\\n")
print("password=hunter2hunter2 of", process_name())
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_secrets_are_masked_in_what_python_prints_and_a_kill_loses_nothing(tmp_path: Path) -> None:
    secret = "not-for-anybody-else"
    done = subprocess.run(
        [sys.executable, "-c", PRINTS, str(tmp_path)],
        env=os.environ | {"JUDGE_API_KEY": secret},
        capture_output=True,
        text=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert done.stdout + done.stderr == ""
    output = output_file(tmp_path, "engine 3")
    said = output.read_text()
    assert secret not in said
    assert said == (
        "the key is ***\nhalf a line, Authorization: *** ***\nfrom C\npassword=*** of engine 3\n"
    )
    assert last_words(output) == "password=*** of engine 3"
    assert not re.search("hunter|abcdef", said)
