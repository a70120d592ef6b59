"""What a server that the run did not start says of itself, against what the run needs of it.

A server with other settings answers every request: its log-probs would be of another
distribution, or its weights rounded otherwise, and only the check after the first sync would
say that something differs.
"""

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skyrl_vllm.client import Client, Refused, ServerError
from skyrl_vllm.wire import GENERATE

START = (
    "VLLM_SERVER_DEV_MODE=1 TRITON_F32_DEFAULT=ieee python -m vllm.entrypoints.openai.api_server "
    "--model MODEL "
    "--enable-scale-out --logprobs-mode processed_logprobs --max-logprobs -1 "
    '--weight-transfer-config \'{"backend": "BACKEND"}\''
)
"""How a server is started for a run; skyrl-vllm must be installed beside it."""
VERSION = "0.32."
"""Begins that of the vLLM which this package is tested with."""
_SHAPE = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "tie_word_embeddings",
)
"""Words of a ``config.json`` that say which tensors a model has."""
_UNKNOWN = object()


@dataclass(frozen=True, kw_only=True, slots=True)
class Needs:
    """Of each server that somebody else started."""

    model: Path
    """Directory of the model that is trained."""
    dtype: str
    """What it computes in, such as ``bfloat16``."""
    backend: str
    """Its half of the transport: `skyrl_vllm.transports.server_backend`."""
    sleeps: bool
    """Whether it is to give back GPU memory at times."""


async def check(client: Client, needs: Needs, timeout_s: float) -> list[str]:
    """Ask one server what it is, and wake it if somebody left it asleep.

    Args:
        client: To it.
        needs: What it must be.
        timeout_s: Longest wait of each question.

    Returns:
        What it does not say, and what is merely unusual: a sentence each.

    Raises:
        ServerError: It is something else; names each setting, and how to start it.
    """
    try:
        info, version, is_asleep = await asyncio.gather(
            client.ask("GET", "/server_info?config_format=json", timeout_s=timeout_s),
            client.ask("GET", "/version", timeout_s=timeout_s),
            client.ask("GET", "/is_sleeping", timeout_s=timeout_s),
        )
        problems, notes = compare(info, needs)
        problems += await _closed_routes(client, timeout_s)
    except (Refused, TimeoutError) as error:
        raise ServerError(
            f"the vLLM server at {client.url} does not say how it was started ({error}); start it "
            f"with: {START.replace('BACKEND', needs.backend)}"
        ) from error
    if problems:
        raise ServerError(
            f"the vLLM server at {client.url} was started otherwise than this run needs: "
            f"{'; '.join(problems)}. Start it with: {START.replace('BACKEND', needs.backend)}"
        )
    found = str((version or {}).get("version"))
    if not found.startswith(VERSION):
        notes.append(f"is version {found}; this package is tested with {VERSION}x")
    if (is_asleep or {}).get("is_sleeping"):
        await client.ask("POST", "/wake_up", timeout_s=timeout_s)
        notes.append("was asleep, as a run that was killed leaves it, and is awake now")
    return [f"the vLLM server at {client.url} {note}" for note in notes]


async def _closed_routes(client: Client, timeout_s: float) -> list[str]:
    """Whether tokens may be sent: the one thing that a server does not tell, but shows."""
    try:
        await client.ask("POST", GENERATE, {}, timeout_s=timeout_s)
    except Refused as error:
        if error.status in (403, 404):
            return ["it takes no token ids (--enable-scale-out)"]
    return []


def compare(info: Any, needs: Needs) -> tuple[list[str], list[str]]:
    """What a server's ``/server_info`` says: what does not fit, and what it does not say.

    Example:
        >>> told = {"vllm_config": {"model_config": {"dtype": "torch.float16"}}}
        >>> needs = Needs(model=Path("m"), dtype="float32", backend="skyrl", sleeps=False)
        >>> compare(told, needs)[0]
        ['it computes in float16, the run in float32 (--dtype float32, or \
generator.inference_engine.model_dtype=float16)']
    """
    problems: list[str] = []
    unsaid: list[str] = []

    def look(what: str, *path: str) -> Any:
        found: Any = info
        for word in ("vllm_config", *path):
            found = found.get(word, _UNKNOWN) if isinstance(found, Mapping) else _UNKNOWN
        if found is _UNKNOWN:
            unsaid.append(what)
        return found

    dtype = look("what it computes in", "model_config", "dtype")
    if dtype is not _UNKNOWN and (word := str(dtype).removeprefix("torch.")) != needs.dtype:
        problems.append(
            f"it computes in {word}, the run in {needs.dtype} (--dtype {needs.dtype}, or "
            f"generator.inference_engine.model_dtype={word})"
        )
    mode = look("of which distribution its log-probs are", "model_config", "logprobs_mode")
    if mode not in (_UNKNOWN, "processed_logprobs"):
        problems.append(
            f"its log-probs are {mode}, not those of what it samples from "
            "(--logprobs-mode processed_logprobs)"
        )
    transfer = look("how weights reach it", "weight_transfer_config")
    backend = transfer.get("backend") if isinstance(transfer, Mapping) else None
    if transfer is not _UNKNOWN and backend != needs.backend:
        problems.append(
            f"weights reach it through {backend or 'nothing'}, this run sends them through "
            f"{needs.backend} (--weight-transfer-config)"
        )
    can_sleep = look("whether it can sleep", "model_config", "enable_sleep_mode")
    is_cpu = look("what device it has", "device_config", "device") == "cpu"
    if needs.sleeps and can_sleep is False and not is_cpu:
        problems.append("it cannot give back memory (--enable-sleep-mode)")
    draft = look("whether it drafts", "speculative_config")
    if draft not in (_UNKNOWN, None):
        problems.append("it has a draft model, which no update reaches (--speculative-config)")
    model = look("which model it has", "model_config", "model")
    more: Sequence[str] = ()
    if model is not _UNKNOWN:
        differing, more = _other_model(str(model), needs.model)
        problems += differing
    notes = [*more]
    if unsaid:
        notes.append(
            f"does not say {', '.join(unsaid)}; the check after each sync does not see it all"
        )
    return problems, notes


def _other_model(name: str, own: Path) -> tuple[list[str], list[str]]:
    """Whether it has a model of other tensors; and a sentence where that cannot be found out."""
    if str(own) == name:
        return [], []
    here = Path(name) / "config.json"
    if not here.is_file():
        return [], [
            f"has the model '{name}', whose files are not here to be compared with {own}; whether it "
            "is the same kind is seen at the first sync"
        ]
    theirs, ours = (
        json.loads(path.read_text(encoding="utf-8")) for path in (here, own / "config.json")
    )
    differing = [
        f"{word} {theirs.get(word)} instead of {ours.get(word)}"
        for word in _SHAPE
        if theirs.get(word) != ours.get(word)
    ]
    if not differing:
        return [], []
    return [f"it has the model '{name}', with {', '.join(differing)} of {own} (--model)"], []
