"""Settings that are read, but not in this run: whoever sets them in vain is told."""

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass

from skyrl_kernel.config.compat import Answer, Row
from skyrl_kernel.config.generator import NO_ENGINE
from skyrl_kernel.config.layers import Layers
from skyrl_kernel.config.rules import (
    AHEAD,
    ALGORITHM,
    CORRECTION,
    ENGINE,
    PLACEMENT,
    are_numbers,
    gpus_of,
    is_on,
    ranks_with,
)
from skyrl_kernel.ray.environment import ADDRESS, address


@dataclass(frozen=True, kw_only=True, slots=True)
class Idle:
    """Settings that change nothing where other settings are as they are.

    What only some plugins read they say themselves: ``reads`` in ``plugin.toml``.
    """

    keys: tuple[str, ...]
    """Dotted keys; one that ends in a dot stands for all below it."""
    where: tuple[str, ...] = ()
    """``KEY=VALUE|VALUE``, all of which hold."""
    unless: str = ""
    """A score: if a stage needs it, they are read."""
    text: str
    """What reads them."""


_ESTIMATOR = f"{ALGORITHM}.advantage_estimator"

_OF_REFERENCE = (f"{PLACEMENT}.ref_num_nodes", f"{PLACEMENT}.ref_num_gpus_per_node")
_OF_CRITIC = (f"{PLACEMENT}.critic_num_nodes", f"{PLACEMENT}.critic_num_gpus_per_node")
_LOGPROBS_DIFF = "trainer.logprobs_diff."
_NUM_CPUS = "trainer.ray.num_cpus"
_SPREAD = re.compile(
    r"trainer\.(?P<role>policy|critic|ref)\.fsdp_config\."
    r"(fsdp_size|reshard_after_forward|mixed_precision\..+)"
)
"""How the weights of a role are spread over ranks."""

IDLE: tuple[Idle, ...] = (
    Idle(
        keys=(f"{ALGORITHM}.kl_ctrl.kl_target", f"{ALGORITHM}.kl_ctrl.horizon"),
        where=(f"{ALGORITHM}.kl_ctrl.type=fixed",),
        text=f"read with {ALGORITHM}.kl_ctrl.type=adaptive",
    ),
    *(
        Idle(
            keys=(f"{CORRECTION}.{kind}_tis_ratio_clip_high",),
            where=(f"{CORRECTION}.tis_ratio_type=null|{other}",),
            text=f"read with {CORRECTION}.tis_ratio_type={kind}",
        )
        for kind, other in (("token", "sequence"), ("sequence", "token"))
    ),
    *(
        Idle(
            keys=(f"{CORRECTION}.{short}_mask_low", f"{CORRECTION}.{short}_mask_high"),
            where=(f"{CORRECTION}.sequence_mask_metric=null|{other}",),
            text=f"read with {CORRECTION}.sequence_mask_metric={kind}",
        )
        for short, kind, other in (
            ("product", "product", "geometric"),
            ("geo", "geometric", "product"),
        )
    ),
    Idle(
        keys=(
            "trainer.critic.",
            "trainer.critic_mini_batch_size",
            f"{ALGORITHM}.value_head_prefix",
            *_OF_CRITIC,
        ),
        unless="values",
        text=f"of a critic, which no stage asks for; {_ESTIMATOR}=gae does",
    ),
    Idle(
        keys=("trainer.teacher.",),
        unless="teacher_logprobs",
        text=f"of a teacher, which no stage asks for; {_ESTIMATOR}=distillation does",
    ),
    Idle(
        keys=tuple(
            f"{ENGINE}.{key}"
            for key in (
                "num_engines",
                "tensor_parallel_size",
                "pipeline_parallel_size",
                "data_parallel_size",
                "expert_parallel_size",
                "distributed_executor_backend",
                "gpu_memory_utilization",
                "enforce_eager",
                "enable_prefix_caching",
                "enable_chunked_prefill",
                "max_num_batched_tokens",
                "served_model_name",
                "engine_init_kwargs.",
            )
        ),
        where=(f"{ENGINE}.run_engines_locally=false",),
        text=f"of engines that the run starts; those of {ENGINE}.external_server_urls stay as they are",
    ),
    Idle(
        keys=(_LOGPROBS_DIFF,),
        # Another rollout may keep log-probs all the same.
        where=("generator.rollout=agent", "generator.sampling_params.logprobs=null"),
        text="of log-probs that the engine returns; generator.sampling_params.logprobs=null asks for none",
    ),
    Idle(
        keys=(_LOGPROBS_DIFF,),
        where=(f"{ENGINE}.backend={NO_ENGINE}",),
        text="of what an engine samples, and this run has none",
    ),
    Idle(
        keys=(f"{AHEAD}.",),
        where=(f"{AHEAD}.enabled=false",),
        text=f"of generation ahead of training, which {AHEAD}.enabled=true switches on",
    ),
    *(
        Idle(
            keys=tuple(
                f"trainer.{role}.model.lora.{key}"
                for key in ("alpha", "dropout", "target_modules", "exclude_modules", "init_method")
            ),
            where=(f"trainer.{role}.model.lora.rank=0",),
            text=f"of adapters, which trainer.{role}.model.lora.rank above 0 asks for",
        )
        for role in ("policy", "critic")
    ),
    Idle(
        keys=(f"{PLACEMENT}.colocate_policy_ref",),
        where=(f"{PLACEMENT}.colocate_all=true",),
        text=f"of {PLACEMENT}.colocate_all=false; with true the reference is where the policy is",
    ),
    *(
        Idle(
            keys=_OF_REFERENCE,
            where=where,
            text=f"of a reference on devices of its own, which {PLACEMENT}.colocate_all=false and "
            "colocate_policy_ref=false ask for",
        )
        for where in (
            (f"{PLACEMENT}.colocate_all=true",),
            (f"{PLACEMENT}.colocate_policy_ref=true",),
        )
    ),
    Idle(
        keys=_OF_CRITIC,
        where=(f"{PLACEMENT}.colocate_all=true",),
        text=f"of {PLACEMENT}.colocate_all=false; with true the critic is where the policy is",
    ),
    Idle(
        keys=_OF_REFERENCE,
        unless="ref_logprobs",
        text="of a reference, which no stage asks for",
    ),
    Idle(
        keys=("trainer.ref.model.path",),
        unless="ref_logprobs",
        text="of a reference, which no stage asks for",
    ),
)


def without_effect(
    layers: Layers, needs: Collection[str], unread: Callable[[str], str | None]
) -> list[Answer]:
    """What was set, though not by a preset, to more than its default, and changes nothing.

    Args:
        layers: What was set.
        needs: Scores that the stages ask for.
        unread: Takes a key; who would read it, if nobody of this run does, else None.
    """
    found = []
    for key, value in layers.values.items():
        text = unread(key) or _idle(key, layers, needs)
        origin = layers.origins[key]
        if text is None or origin.startswith("preset "):
            continue
        if layers.asked(key) != Layers({}, {}).asked(key):
            row = Row(name=key, status="not read", text=text)
            found.append(Answer(name=key, value=value, origin=origin, row=row))
    return found


def _idle(key: str, layers: Layers, needs: Collection[str]) -> str | None:
    for idle in IDLE:
        if not any(key == one or (one.endswith(".") and key.startswith(one)) for one in idle.keys):
            continue
        if idle.unless not in needs and all(is_on(one, layers) for one in idle.where):
            return idle.text
    if key == _NUM_CPUS and (named := address()) is not None:
        return (
            f"of a Ray of the run's own; {ADDRESS}={named} joins a cluster, which has what it has"
        )
    if spread := _SPREAD.fullmatch(key):
        return _on_one_rank(spread["role"], layers, needs)
    return _more_than_begin(layers) if key == f"{AHEAD}.num_parallel_generation_workers" else None


def _on_one_rank(role: str, layers: Layers, needs: Collection[str]) -> str | None:
    """Weights that are whole where they are."""
    asked = layers.asked
    whose = ranks_with(asked, role)
    # A teacher, which is always with the policy, has the settings of a reference.
    with_it = {"policy"} if role == "ref" and "teacher_logprobs" in needs else set()
    if asked(f"trainer.{role}.fsdp_config.cpu_offload") or any(
        gpus_of(asked, one) > 1 for one in {whose, *with_it}
    ):
        return None
    return (
        f"of weights that are spread over ranks, and there is one: {PLACEMENT}.{whose}_num_gpus_per_node "
        "above 1 makes more"
    )


def _more_than_begin(layers: Layers) -> str | None:
    """A bound on groups that admission never reaches."""
    asked = layers.asked
    batch, ahead = asked("trainer.train_batch_size"), asked(f"{AHEAD}.max_staleness_steps")
    most = asked(f"{AHEAD}.num_parallel_generation_workers")
    if not are_numbers(batch, ahead, most) or most <= batch * (ahead + 1):
        return None
    return (
        f"trainer.train_batch_size × ({AHEAD}.max_staleness_steps + 1) = {batch * (ahead + 1)} groups run "
        "at most, so it bounds nothing"
    )
