"""Which config key decides which implementation of which hook.

One key per slot. Its value is an entry-point name in one of the slot's groups;
naming an implementation in a slot selects its plugin (without its preset).
Switches select one fixed name when they are on.
"""

from dataclasses import dataclass

ALGORITHMS = "skyrl.algorithms"
ENVS = "skyrl.envs"
BACKENDS = "skyrl.backends"
LOGGERS = "skyrl.loggers"
PLUGINS = "skyrl.plugins"

GROUPS: dict[str, str] = {
    "algorithm": ALGORITHMS,
    "env": ENVS,
    "backend": BACKENDS,
    "logger": LOGGERS,
    "plugin": PLUGINS,
}
"""Kind, as in ``--plugin kind/NAME``, → entry-point group."""


@dataclass(frozen=True, slots=True)
class Slot:
    """One decision of a run."""

    key: str
    """Dotted config key that holds the name."""
    hook: str
    """The hook that the name is passed to."""
    groups: tuple[str, ...]
    """Entry-point groups in which the name is looked up, in order."""
    default: str | None = None
    """Name used where the key's value is null or ``auto``."""


STAGES: tuple[Slot, ...] = (
    Slot("generator.rollout", "generate", (PLUGINS, ALGORITHMS)),
    Slot("generator.reward", "reward", (PLUGINS, ALGORITHMS)),
    Slot("trainer.algorithm.dynamic_sampling.type", "select", (ALGORITHMS, PLUGINS), "keep_all"),
    Slot("trainer.algorithm.advantage_estimator", "advantage", (ALGORITHMS, PLUGINS)),
    Slot("trainer.algorithm.policy_loss_type", "loss", (ALGORITHMS, PLUGINS)),
    Slot(
        "generator.inference_engine.weight_sync_backend",
        "sync_weights",
        (PLUGINS, BACKENDS),
        "shared",
    ),
    Slot("trainer.evaluator", "evaluate", (PLUGINS, ALGORITHMS)),
)
"""The seven stages, in the order of a step."""

MAKERS: tuple[Slot, ...] = (
    Slot("trainer.runtime", "make_runtime", (PLUGINS,), "local"),
    Slot("generator.tokenizer", "make_tokenizer", (BACKENDS, PLUGINS)),
    Slot("trainer.strategy", "make_trainer", (BACKENDS,)),
    Slot("generator.inference_engine.backend", "make_engine", (BACKENDS, PLUGINS)),
    Slot("trainer.algorithm.loss_reduction", "make_reduction", (ALGORITHMS, PLUGINS)),
)
"""The objects that a run makes."""

SLOTS: tuple[Slot, ...] = MAKERS + STAGES

SETS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("trainer.logger", (LOGGERS, PLUGINS)),
    ("environment.env_class", (ENVS,)),
)
"""Keys that hold one name or several. Rows of a data set may name other envs, which ``--plugin`` selects."""

MODELS: dict[str, str] = {
    "policy": "trainer.policy.model.path",
    "reference": "trainer.ref.model.path",
    "teacher": "trainer.teacher.model.path",
    "value": "trainer.critic.model.path",
}
"""Role → the key that names its model; null is the policy's, but for a teacher."""

CORRECTION = "trainer.algorithm.off_policy_correction"

SWITCHES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("trainer.algorithm.use_kl_loss", "kl_loss", (PLUGINS,)),
    ("trainer.algorithm.use_kl_in_reward", "kl_in_reward", (PLUGINS,)),
    ("trainer.algorithm.use_entropy_loss", "entropy_loss", (PLUGINS,)),
    ("trainer.algorithm.advantage_batch_normalize", "advantage_batch_normalize", (PLUGINS,)),
    ("trainer.algorithm.zero_variance_filter", "zero_variance_filter", (PLUGINS,)),
    ("generator.apply_overlong_filtering", "overlong_filtering", (PLUGINS,)),
    ("generator.zero_reward_on_non_stop", "zero_reward_on_non_stop", (PLUGINS,)),
    ("trainer.algorithm.overlong_buffer_len", "overlong_penalty", (ALGORITHMS,)),
    *(
        (f"{CORRECTION}.{key}", "off_policy_correction", (ALGORITHMS,))
        for key in (
            "tis_ratio_type",
            "sequence_mask_metric",
            "outlier_token_is_threshold_low",
            "outlier_token_is_threshold_high",
            "token_mask_is_threshold_low",
            "token_mask_is_threshold_high",
        )
    ),
)
"""Key, and the name that it selects unless its value is false, null or 0."""
