"""A server that is somebody else's and dies in the middle of an update; a new one at its address."""

import asyncio
import os
import subprocess
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from skyrl_kernel.testing.distributions import make_distribution
from skyrl_kernel.testing.killing import check_each_prompt_once
from skyrl_tiny.plugin import tiny
from skyrl_vllm.server import Server
from skyrl_vllm.testing import PROMPTS, attached, demo, metrics, run

FLAGS = ("--dtype", "float32", "--max-num-seqs", "64", "--enforce-eager")
STEPS = 5
DIES_IN = 3
"""The policy version whose update the server does not survive."""
DEADLINE_S = 30
"""``weight_sync_timeout_s``: the run must have ended by then."""


def doomed(folder: Path) -> dict[str, str]:
    """Environment of a server that signal 9 ends where it would load what that update has brought."""
    make_distribution(
        folder,
        "doomed",
        modules={
            "doomed": f"""
                import os
                import signal

                def register():
                    from skyrl_vllm.inside.receiver import Receiver

                    begin, load = Receiver.start_weight_update, Receiver.finish_weight_update
                    begun = []

                    def start_weight_update(self):
                        begun.append(self)
                        begin(self)

                    def finish_weight_update(self):
                        if len(begun) > {DIES_IN}:  # the first is version 0
                            os.killpg(0, signal.SIGKILL)
                        load(self)

                    Receiver.start_weight_update = start_weight_update
                    Receiver.finish_weight_update = finish_weight_update
            """
        },
    )
    (metadata,) = folder.glob("doomed-*.dist-info")
    (metadata / "entry_points.txt").write_text("[vllm.general_plugins]\ndoomed = doomed:register\n")
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {"PYTHONPATH": path}


@pytest.mark.slow
def test_a_server_that_is_killed_in_an_update_ends_the_run_and_a_new_one_at_its_address_goes_on(
    servers: Any, tmp_path: Path
) -> None:
    servers.stop()  # one more would not fit a small machine
    log = tmp_path / "vllm.log"
    old = Server(tiny(0), FLAGS, log=log, variables=doomed(tmp_path))
    words = demo(
        tmp_path,
        *attached(old.url),
        "generator.n_samples_per_prompt=4",
        f"generator.inference_engine.weight_sync_timeout_s={DEADLINE_S}",
        "trainer.fully_async.enabled=true",
        "trainer.fully_async.max_staleness_steps=2",
        "trainer.eval_interval=-1",
        "trainer.ckpt_interval=1",
        steps=STEPS,
    )
    try:
        asyncio.run(old.wait_until_ready(300))
        with subprocess.Popen(
            words,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            while old.gone() is None and process.poll() is None:
                time.sleep(0.05)
            try:
                out, said = process.communicate(timeout=DEADLINE_S)
            finally:
                process.kill()
    finally:
        old.close()
    assert process.returncode == 1, out + said
    (line,) = said.splitlines()
    assert old.url in line
    assert f"policy version {DIES_IN}" in line
    assert [step["step"] for step in metrics(tmp_path)] == [1, 2]  # the third was not finished

    new = Server(tiny(0), FLAGS, log=log, port=urlsplit(old.url).port or 0)
    try:
        assert new.url == old.url
        asyncio.run(new.wait_until_ready(300))
        steps = run(words, tmp_path)
    finally:
        new.close()
    assert [step["step"] for step in steps] == list(range(1, STEPS + 1))
    for step in steps:
        assert step["failures/trajectories"] == 0
        assert step["async/staleness_max"] <= 2
        assert step["policy/rollout_train_logprobs_abs_diff_mean"] < 0.05
    check_each_prompt_once(tmp_path / "demo", prompts=STEPS * PROMPTS)
