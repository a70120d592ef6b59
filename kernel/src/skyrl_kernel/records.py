"""The records that travel between stages.

Tokens in, tokens out: what the engine sampled is what the trainer trains on;
text is never tokenised again. Nothing here is padded: arrays are as long as
what they describe, and a batch is a sequence of records.

Shapes: T tokens of one row (prompt and all that follows).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from skyrl_kernel.quick import quick

IntArray = NDArray[np.int32]
FloatArray = NDArray[np.float32]
BoolArray = NDArray[np.bool_]

Message = Mapping[str, Any]
"""One chat message: ``{"role": "user", "content": "2 * 3"}``."""

Phase = Literal["train", "eval"]
Verdict = Literal["keep", "mask", "drop"]

NOT_SAMPLED = -1
"""`Segment.versions` of a token that no policy sampled (prompt, observation, data set)."""


class StopReason(StrEnum):
    """Why a trajectory ended."""

    STOP = "stop"
    """The env said done, or the model ended its last turn."""
    LENGTH = "length"
    """A completion or the whole row reached its limit."""
    ABORT = "abort"
    """The engine was told to stop."""
    MAX_TURNS = "max_turns"
    """``generator.max_turns`` ended an episode that its env had not."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """One row of a data set, ready to be rolled out.

    Example:
        >>> Prompt(uid="7", messages=[{"role": "user", "content": "6 * 7"}],
        ...        env_class="multiply", extras={"reward_spec": {"ground_truth": "42"}}).uid
        '7'
    """

    uid: str
    """Identity within its data set; trajectories of one prompt share it."""
    messages: Sequence[Message]
    """The conversation so far, in chat format."""
    env_class: str
    """Entry-point name of the env that judges it."""
    data_source: str | None = None
    """Where the row came from; evaluation reports each source apart."""
    extras: Mapping[str, Any] = field(default_factory=dict)
    """Every other column of the row; the env receives a copy."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How an engine samples. Log-probs it reports are of the distribution it sampled from."""

    max_tokens: int = 1024
    """Most tokens of one completion, at least 1."""
    temperature: float = 1.0
    """0 takes the most likely token."""
    top_p: float = 1.0
    """Nucleus mass in (0, 1]."""
    top_k: int = -1
    """Most likely tokens kept; -1 keeps all."""
    min_p: float = 0.0
    """Least probability relative to the most likely token."""
    stop: tuple[str, ...] = ()
    """Strings that end a completion; the string stays in it."""
    stop_token_ids: tuple[int, ...] = ()
    """Ids that end a completion besides the model's own end-of-sequence ids."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """More, by the engine's own names."""


@quick
@dataclass(frozen=True, kw_only=True, slots=True)
class GenerateRequest:
    """One completion asked of an engine."""

    tokens: IntArray
    """[T_prompt] ids to continue."""
    sampling: Sampling
    seed: int
    """Same seed, weights, tokens and sampling give the same completion, whatever else is in the batch."""


@quick
@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """What an engine sampled for one request."""

    tokens: IntArray
    """[T_completion] sampled ids, the end-of-sequence id included if it was sampled."""
    logprobs: FloatArray
    """[T_completion] nats, of the distribution sampled from (temperature and truncation applied)."""
    versions: IntArray
    """[T_completion] policy version that sampled each token."""
    finish_reason: Literal["stop", "length", "abort"]


@quick
@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """Part of a completion that is still being sampled."""

    tokens: IntArray
    """[T_piece] sampled ids; none in a last piece that only ends it."""
    logprobs: FloatArray
    """[T_piece] nats, as in `Completion`."""
    completion: Completion | None = None
    """Comes with the last piece: the whole, with the policy version of each token."""


@quick
@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """One token row of a trajectory: what the trainer runs forward.

    Example: a two-turn row. The prompt is ids 1-2, the policy sampled 7 8, the
    env answered 3 4, the policy sampled 9:

        tokens    = [1, 2, 7, 8, 3, 4, 9]
        loss_mask = [F, F, T, T, F, F, T]
        logprobs  = [0, 0, -.1, -.7, 0, 0, -.2]
        versions  = [-1, -1, 0, 0, -1, -1, 0]
    """

    tokens: IntArray
    """[T] ids."""
    num_prompt_tokens: int
    """Length of the leading prompt."""
    loss_mask: BoolArray
    """[T] True where a token contributes to the loss."""
    logprobs: FloatArray | None = None
    """[T] sampler log-probs in nats, 0 where nothing was sampled; None if the data was not sampled."""
    versions: IntArray | None = None
    """[T] policy version that sampled each token, `NOT_SAMPLED` elsewhere; None with `logprobs`."""

    def __post_init__(self) -> None:
        length = len(self.tokens)
        if len(self.loss_mask) != length:
            raise ValueError(f"loss_mask has {len(self.loss_mask)} entries for {length} tokens")
        if self.logprobs is not None and len(self.logprobs) != length:
            raise ValueError(f"logprobs has {len(self.logprobs)} entries for {length} tokens")
        if self.versions is not None and len(self.versions) != length:
            raise ValueError(f"versions has {len(self.versions)} entries for {length} tokens")
        if not 0 <= self.num_prompt_tokens <= length:
            raise ValueError(f"num_prompt_tokens is {self.num_prompt_tokens}, the row has {length}")
        if (self.logprobs is None) != (self.versions is None):
            raise ValueError("logprobs and versions come together: both or neither")


@quick
@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """One completion and the env's reply to it."""

    segment: int
    """Index into `Trajectory.segments`."""
    start: int
    """First token of the completion in that segment."""
    stop: int
    """One past its last token."""
    reward: float
    """What the env gave for this turn, in task units."""
    action: str
    """The completion as text, as the env saw it."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Whatever the env reported beside the reward."""


@quick
@dataclass(frozen=True, kw_only=True, slots=True)
class Reward:
    """How a trajectory was judged: named components, and their total by turn.

    Example:
        >>> Reward(turns=(0.0, 1.0), components={"env": 1.0}).total
        1.0
    """

    turns: tuple[float, ...]
    """Reward of each turn, in task units; a reward for the whole trajectory stands on its last turn."""
    components: Mapping[str, float] = field(default_factory=dict)
    """What the total is made of, by name."""

    @property
    def total(self) -> float:
        """Sum over turns."""
        return float(sum(self.turns))


@quick
@dataclass(frozen=True, kw_only=True, slots=True)
class Trajectory:
    """The data of one episode: its token rows, its turns and, once judged, its reward."""

    prompt: Prompt
    sample: int
    """Which of the group's trajectories this is, from 0."""
    segments: tuple[Segment, ...]
    """One, unless an agent rewrote its context."""
    turns: tuple[Turn, ...]
    """In order; empty if nothing was sampled (SFT)."""
    stop_reason: StopReason
    reward: Reward | None = None
    """None until the reward stage ran."""
    env_metrics: Mapping[str, float] = field(default_factory=dict)
    """What the env's ``get_metrics`` returned."""
    timings: Mapping[str, float] = field(default_factory=dict)
    """Seconds by kind: ``llm``, ``env``, ``total``."""

    @property
    def id(self) -> str:
        """Names the trajectory in messages: prompt uid and sample number."""
        return f"{self.prompt.uid}/{self.sample}"

    @property
    def num_completion_tokens(self) -> int:
        """Tokens the policy sampled, over all turns."""
        return sum([turn.stop - turn.start for turn in self.turns])

    @property
    def total_reward(self) -> float:
        """What it earned in all, in task units; 0 where nothing was judged."""
        return self.reward.total if self.reward is not None else 0.0

    @property
    def version(self) -> int | None:
        """Oldest policy version among its tokens; None if nothing was sampled."""
        return next(iter(oldest_versions([self])), None)

    def judged(self, reward: Reward) -> "Trajectory":
        """The same with this reward; `dataclasses.replace` takes five times as long."""
        return Trajectory(
            prompt=self.prompt,
            sample=self.sample,
            segments=self.segments,
            turns=self.turns,
            stop_reason=self.stop_reason,
            reward=reward,
            env_metrics=self.env_metrics,
            timings=self.timings,
        )


def oldest_versions(trajectories: Sequence[Trajectory]) -> list[int]:
    """The oldest policy version among the tokens of each, those without sampled tokens left out."""
    rows = [
        [segment.versions for segment in one.segments if segment.versions is not None]
        for one in trajectories
    ]
    lengths = [sum([len(row) for row in own]) for own in rows]
    starts = np.cumsum([0, *[length for length in lengths if length]])[:-1]
    if not starts.size:
        return []
    flat = np.concatenate([row for own in rows for row in own])
    never = np.iinfo(flat.dtype).max
    oldest = np.minimum.reduceat(np.where(flat == NOT_SAMPLED, never, flat), starts)
    return [int(version) for version in oldest if version != never]


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """One lost trajectory, as it is counted and written to ``failures.jsonl``."""

    step: int
    uid: str
    sample: int
    kind: str
    """A `skyrl_kernel.errors.FailureKind`."""
    plugin: str | None
    message: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """The trajectories that share one prompt, and what was lost of them."""

    index: int
    """Place in the order of admission, from 0 over the whole run."""
    prompt: Prompt
    trajectories: tuple[Trajectory, ...]
    failures: tuple[Failure, ...] = ()


@quick
@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """Log-probs and values of one segment under the models that were asked, [T] each."""

    old_logprobs: FloatArray | None = None
    """Under the weights before this step's updates; the sampler's own where those are the same."""
    ref_logprobs: FloatArray | None = None
    """Under the frozen reference."""
    teacher_logprobs: FloatArray | None = None
    """Under the frozen teacher."""
    values: FloatArray | None = None
    """The critic's estimate of what is still to be earned, before each token."""


@quick
@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """A judged trajectory with the scores of each of its segments: what `advantage` sees."""

    trajectory: Trajectory
    scores: tuple[Scores, ...]
    token_rewards: tuple[FloatArray, ...] = ()
    """[T] per segment: what single tokens earned beside the turns, such as a KL penalty; empty
    where nothing did. Counts only where the segment's ``loss_mask`` is True."""

    @property
    def total_reward(self) -> float:
        """What it earned in all: its turns and its tokens, in task units."""
        extra = [
            float(rewards[segment.loss_mask].sum(dtype=np.float64))
            for rewards, segment in zip(self.token_rewards, self.trajectory.segments, strict=False)
        ]
        return self.trajectory.total_reward + sum(extra)

    def rewards_by_token(self) -> tuple[FloatArray, ...]:
        """[T] per segment: `token_rewards`, and each turn's reward on the turn's last token.

        A turn without tokens has its reward on the token before it.

        Example: two turns of two tokens with rewards 0 and 1 give, for the row of
        `Segment`'s example, ``[0, 0, 0, 0, 0, 0, 1]``.
        """
        rows = [np.zeros(len(segment.tokens), np.float32) for segment in self.trajectory.segments]
        for row, rewards, segment in zip(
            rows, self.token_rewards, self.trajectory.segments, strict=False
        ):
            row += np.where(segment.loss_mask, rewards, np.float32(0))
        if (judged := self.trajectory.reward) is not None:
            for turn, reward in zip(self.trajectory.turns, judged.turns, strict=True):
                rows[turn.segment][max(turn.stop - 1, 0)] += np.float32(reward)
        return tuple(rows)

    def credited(self, advantage: float) -> "tuple[TokenAdvantages, ...]":
        """Every trained token of every segment with the same advantage: outcome supervision."""
        return tuple(
            TokenAdvantages(
                advantages=segment.loss_mask * np.float32(advantage), loss_mask=segment.loss_mask
            )
            for segment in self.trajectory.segments
        )


@quick
@dataclass(frozen=True, kw_only=True, slots=True)
class TokenAdvantages:
    """What `advantage` says of one segment, [T] each."""

    advantages: FloatArray
    """What the policy term multiplies; read only where ``loss_mask`` is True, and 0 elsewhere."""
    loss_mask: BoolArray
    """The segment's mask, or a subset of it."""
    returns: FloatArray | None = None
    """What a value model regresses to."""


@quick
@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingSample:
    """One token row with everything that the trainer and the loss need of it."""

    trajectory_id: str
    group: int
    """Number of the trajectory's group within the mini-batch, from 0."""
    trajectory: int
    """Number of the trajectory within the mini-batch, from 0; its segments share it."""
    tokens: IntArray
    """[T]"""
    loss_mask: BoolArray
    """[T]"""
    advantages: FloatArray
    """[T]"""
    returns: FloatArray | None
    """[T]"""
    sampler_logprobs: FloatArray | None
    """[T]"""
    scores: Scores
    loss_weights: Mapping[str, FloatArray]
    """Term name → [T] weight, computed over the whole mini-batch; the objective sums weight × term."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UpdateResult:
    """What one optimizer step reports."""

    metrics: Mapping[str, float]
    """Names without prefix: ``final_loss``, ``grad_norm``, ``policy_lr``, …"""
    weights_changed: bool
    """False if every parameter kept its bits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """What `select` decided about the candidates for one batch."""

    verdicts: tuple[Verdict, ...]
    """One per candidate group. ``mask``: stays in the batch, trains on nothing."""
    reasons: tuple[str, ...]
    """Why, one per candidate; empty for ``keep``."""
    stand_ins: Mapping[int, int] = field(default_factory=dict)
    """Place of a dropped candidate → place of the kept one that is trained on once more instead,
    so that no other is generated for it."""


EQUAL_REWARDS = "all rewards equal"
"""Why a group was masked or dropped, where its rewards do not differ; metrics count these."""
