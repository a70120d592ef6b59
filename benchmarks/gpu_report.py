"""The section of RESULTS.md on GPUs."""

from text import Numbers, machine_line, table

COMMAND = "`python benchmarks/gpu.py`"


def section(results: Numbers | None) -> str:
    """What was measured, or that nothing was."""
    if results is None:
        return f"## On a GPU\n\nNot run: {COMMAND} needs a CUDA device.\n"
    n, machine = results["numbers"], results["machine"]
    kept = "yes" if n["offload_keeps_bits"] else "**no**"
    return f"""\
## On a GPU

{_table(n, results["limits"], kept)}

Written by {COMMAND}, one process, the in-process engine. {machine_line(machine)} {machine["gpu"]}, \
CUDA {machine["cuda"]}.
"""


def _table(n: Numbers, limits: Numbers, kept: str) -> str:
    return table(
        ["", "measured", ""],
        [
            [
                "log-probs, float32, GPU against CPU",
                f"{n['logprobs_difference']:.1e} nats",
                f"at most {limits['logprobs']:g}",
            ],
            [
                "one update, float32, GPU against CPU",
                f"{n['update_difference']:.1e} of its norm",
                f"at most {limits['update']:g}",
            ],
            ["weights after offload and onload are the same", kept, "bit for bit"],
            [
                "demo on the GPU: held-out accuracy",
                f"{n['demo_start']:.3f} → {n['demo_end']:.3f}",
                f"{n['demo_steps']:.0f} steps of {n['demo_step_s']:.2f} s",
            ],
            [
                "training, 0.5 billion weights",
                f"{n['update_tokens_per_s']:,.0f} tokens/s",
                "bfloat16, activations recomputed, rows of 512 tokens, 8 at a time",
            ],
            ["scoring, the same", f"{n['score_tokens_per_s']:,.0f} tokens/s", ""],
            [
                "generating, the same",
                f"{n['generate_tokens_per_s']:,.0f} tokens/s",
                "64 rows of 128 + 256 tokens at once",
            ],
            ["peak memory of training it", f"{n['peak_train_gib']:.1f} GiB", "allocated"],
        ],
    )
