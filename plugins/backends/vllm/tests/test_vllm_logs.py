"""Where servers log."""

from pathlib import Path

from skyrl_kernel.config.trainer import TrainerConfig
from skyrl_kernel.logs import RunLogs
from skyrl_vllm.plugin import _logs


def test_servers_of_several_processes_log_to_files_of_their_own(tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = TrainerConfig(ckpt_path=str(tmp_path), run_name="run")
    with RunLogs(run):
        assert _logs(config, 1) == [run / "vllm.log"]
        assert _logs(config, 2) == [run / "vllm-0.log", run / "vllm-1.log"]
    of_its_own = {"process": "engine 3"}
    with RunLogs(run / "logs", file="engine_3.jsonl", fields=of_its_own):
        assert _logs(config, 1) == [run / "logs" / "engine_3-vllm.log"]
    assert _logs(config, 1) == [run / "vllm.log"]
