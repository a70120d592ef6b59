"""What machines measure, and what becomes of it; the runs that write it are in test_ray_run."""

from pathlib import Path

import pytest

from skyrl_kernel.ray.monitor import mean_sample, node_metrics, parse_gpus, used_bytes


def test_gpus_and_machines_are_averaged_each_by_itself() -> None:
    first = {"cpu_ram_used_gb": 10.0, **parse_gpus("0, 100, 20480\n1, 50, 10240\n")}
    second = {"cpu_ram_used_gb": 20.0, **parse_gpus("0, 0, 3072\n")}
    assert node_metrics([first, second]) == {
        "ray/node.0.cpu_ram_used_gb": 10.0,
        "ray/node.0.gpu.0.util": 100.0,
        "ray/node.0.gpu.0.mem_used_gb": 20.0,
        "ray/node.0.gpu.1.util": 50.0,
        "ray/node.0.gpu.1.mem_used_gb": 10.0,
        "ray/node.1.cpu_ram_used_gb": 20.0,
        "ray/node.1.gpu.0.util": 0.0,
        "ray/node.1.gpu.0.mem_used_gb": 3.0,
        "ray/gpu.util.avg": 50.0,  # (100 + 50 + 0) / 3: of GPUs, not of machines
        "ray/gpu.mem_used_gb.avg": 11.0,  # (20 + 10 + 3) / 3
        "ray/cpu_ram_used_gb.avg": 15.0,
    }


def test_a_machine_that_is_silent_keeps_its_number() -> None:
    assert node_metrics([{}, {"cpu_ram_used_gb": 2.0}]) == {
        "ray/node.1.cpu_ram_used_gb": 2.0,
        "ray/cpu_ram_used_gb.avg": 2.0,
    }
    assert node_metrics([{}, {}]) == {}


def test_samples_are_averaged_over_those_that_have_the_number() -> None:
    samples = [{"gpu.0.util": 10.0, "cpu_ram_used_gb": 1.0}, {"gpu.0.util": 30.0}]
    assert mean_sample(samples) == {"gpu.0.util": 20.0, "cpu_ram_used_gb": 1.0}


@pytest.mark.parametrize("text", ["", "No devices were found\n", "0, [N/A], [N/A]\n"])
def test_what_is_no_number_is_left_out(text: str) -> None:
    assert parse_gpus(text) == {}


STAT = "anon 500\n{0}inactive_file 200\n{0}active_file 100\n"


@pytest.mark.parametrize(
    ("folder", "usage", "prefix"),
    [
        ("memory", "memory.usage_in_bytes", "total_"),
        (".", "memory.current", ""),
    ],
)
def test_a_container_counts_its_own_memory_without_cached_files(
    tmp_path: Path, folder: str, usage: str, prefix: str
) -> None:
    (tmp_path / folder).mkdir(exist_ok=True)
    (tmp_path / folder / usage).write_text("1000\n")
    (tmp_path / folder / "memory.stat").write_text(STAT.format(prefix))
    assert used_bytes(cgroup=tmp_path) == 700  # 1000 - 200 - 100


def test_a_machine_counts_what_is_not_available(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(
        "MemTotal: 4096 kB\nMemFree: 10 kB\nMemAvailable: 1024 kB\nHugePages_Total: 0\n"
    )
    assert used_bytes(cgroup=tmp_path, meminfo=meminfo) == 3 * 2**20
    assert used_bytes(cgroup=tmp_path, meminfo=tmp_path / "nowhere") is None
