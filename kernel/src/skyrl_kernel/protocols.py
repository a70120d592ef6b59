"""What the kernel asks of the objects that plugins make.

Nothing here is a base class: a plugin's object keeps a protocol by having its
methods. `skyrl_kernel.testing` has a contract suite for each.
"""

from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, runtime_checkable

import numpy as np
from pydantic import BaseModel

from skyrl_kernel.counts import Count
from skyrl_kernel.env import EnvStep
from skyrl_kernel.quick import quick
from skyrl_kernel.records import (
    BoolArray,
    Completion,
    FloatArray,
    GenerateRequest,
    Group,
    IntArray,
    Message,
    Phase,
    Piece,
    Prompt,
    Reward,
    Sampling,
    Scored,
    Selection,
    TokenAdvantages,
    TrainingSample,
    Trajectory,
    UpdateResult,
)

if TYPE_CHECKING:
    import torch

    from skyrl_kernel.recipe import EngineRecipe, TrainerRecipe
    from skyrl_kernel.torch import LossInputs, LossTerms, ValueInputs

Section = TypeVar("Section", bound=BaseModel)


class Settings(Protocol):
    """The config sections of one run, by their class: ``settings[MultiplyConfig]``.

    Kernel sections (`skyrl_kernel.config`) and sections of selected plugins are
    there; asking for another raises a `KeyError` that names the plugin to select.
    """

    def __getitem__(self, section: type[Section]) -> Section: ...


class Tokenizer(Protocol):
    """Text to ids and back, with the model's chat format."""

    eos_token_ids: frozenset[int]
    """Ids that end a turn."""

    def encode(self, text: str) -> IntArray:
        """[T] ids of plain text, no special tokens added."""
        ...

    def encode_chat(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> IntArray:
        """[T] ids of a conversation in the model's chat template."""
        ...

    def decode(self, tokens: IntArray, *, skip_special_tokens: bool = True) -> str:
        """Text of the ids, special tokens left out unless told otherwise."""
        ...


class Generates(Protocol):
    """An engine as one rollout sees it."""

    async def generate(self, requests: Sequence[GenerateRequest]) -> list[Completion]:
        """Complete every request, in order. Equal prompts should be computed once."""
        ...


@runtime_checkable
class Engine(Protocol):
    """Generates. Owns a copy of the weights, or shares the trainer's."""

    lockstep: bool
    """True if it computes in the caller's thread, so that the kernel should hand it
    all requests of a round at once, in a fixed order."""
    version: int
    """Policy version of the weights it holds; 0 for the initial ones."""

    async def generate(self, requests: Sequence[GenerateRequest]) -> list[Completion]:
        """Complete every request, in order. Equal prompts should be computed once."""
        ...

    async def logprobs(self, rows: Sequence[IntArray], *, temperature: float) -> list[FloatArray]:
        """[T] log-prob in nats of each row's tokens given those before; 0 at index 0."""
        ...

    async def abort(self) -> None:
        """End all running requests; they return with ``finish_reason="abort"``."""
        ...

    async def pause(self) -> None:
        """Stop computing; requests stay."""
        ...

    async def resume(self) -> None:
        """Go on after `pause`."""
        ...

    async def begin_update(self, version: int) -> None:
        """Get ready for the weights of ``version``; a later `finish_update` commits them."""
        ...

    async def apply_update(self, weights: Iterable[tuple[str, "torch.Tensor"]]) -> None:
        """Receive some or all tensors, by Hugging Face name."""
        ...

    async def finish_update(self, version: int) -> None:
        """Commit. Raises if tensors are missing or ``version`` is not the one begun.

        An engine that generates meanwhile stops for it, keeps its requests, and goes
        on unless it was paused before: no token comes from half of an update.
        """
        ...

    async def close(self) -> None:
        """Release everything."""
        ...


@runtime_checkable
class Starts(Protocol):
    """What an engine adds to `Engine` that takes long to be ready."""

    async def started(self) -> None:
        """Return when it may be asked; raise if it will not be. Under a deadline of its own."""
        ...


@runtime_checkable
class Counts(Protocol):
    """What an engine adds to `Engine` that counts its own work."""

    async def counts(self, seconds: float) -> Mapping[str, Count]:
        """Since the call before, by names such as ``num_requests_running``.

        The run writes them as ``<engine>/train/<name>`` when a step has ended and as
        ``<engine>/eval/<name>`` when an evaluation has. What is not known, or not in time, is
        absent.

        Args:
            seconds: In which it was asked to generate: what throughputs are of. 0 when a run begins.
        """
        ...


@runtime_checkable
class Streams(Protocol):
    """What an engine adds to `Engine`, or a rollout's engine to `Generates`, that offers ``streams``."""

    def stream(self, request: GenerateRequest) -> AsyncGenerator[Piece, None]:
        """The completion as it is sampled, the same that `Generates.generate` would return.

        Closing the iterator ends the request: use `contextlib.aclosing`.
        """
        ...


@runtime_checkable
class Forgets(Protocol):
    """What an engine adds to `Engine` that offers the capability ``forgets_cache``."""

    async def forget_cache(self) -> None:
        """Drop all cached keys and values, those of running requests too.

        The requests go on: what they need is computed again with the weights that the
        engine holds now. Called after each weight sync, while the engine is paused, with
        ``trainer.fully_async.clear_kv_cache_on_weight_sync=true``.
        """
        ...


@runtime_checkable
class Sleeps(Protocol):
    """What an engine adds to `Engine` that offers ``sleeps``: it gives an accelerator back for a while.

    Called while no request runs. Between `sleep` and the second `wake` it generates
    nothing and scores nothing; a request is an error then, not a wait.
    """

    async def sleep(self, level: int) -> None:
        """Give back all memory that can be had again. Cached keys and values are gone.

        Args:
            level: 1 keeps a copy of the weights in the machine's memory; 2 keeps none, and an
                update brings them before the next request.
        """
        ...

    async def wake(self, what: Literal["weights", "kv_cache"]) -> None:
        """Take memory again: for the weights first, which is when an update may come; then for the cache."""
        ...


@runtime_checkable
class Served(Protocol):
    """What an engine adds to `Engine` that offers ``served``: other processes may bring its servers weights.

    With ``trainer.runtime=ray`` a process of the trainer makes an engine of its own with
    `make_engine`, where ``generator.inference_engine.external_server_urls`` has `addresses`, and
    calls the stage `sync_weights` with that; then `adopt` is called here.
    """

    addresses: Sequence[str]
    """Of every server, as other processes on its machine reach it."""

    async def adopt(self, version: int) -> None:
        """Go on with the weights of ``version``, which another process has brought.

        Raises a `WeightSyncError` if a server says that it has others.
        """
        ...


@runtime_checkable
class Trainer(Protocol):
    """Owns models by role (``policy``, ``reference``, …) and the optimizers of those it trains.

    The role ``value`` is a critic: a model with a head of one number in place of
    the vocabulary. Policy and critic are trained, all other roles are frozen.
    """

    def score(self, role: str, rows: Sequence[IntArray], *, temperature: float) -> list[FloatArray]:
        """[T] log-prob in nats of each row's tokens given those before; 0 at index 0.

        Of the role ``value``: what the critic expects before each token, that is at
        the token before it, in task units; ``temperature`` does not matter.
        """
        ...

    def update(
        self, batch: Sequence[TrainingSample], loss: "Loss", *, temperature: float
    ) -> UpdateResult:
        """One optimizer step of each trained role on one mini-batch.

        The critic takes part if ``loss`` has something for it. Micro-batches and
        ranks must not change the result. What `make_trainer` was told to be elsewhere
        is left out: that trainer's result has its metrics.
        """
        ...

    def weights(self, role: str = "policy") -> Iterator[tuple[str, "torch.Tensor"]]:
        """Every tensor by Hugging Face name, tied ones once."""
        ...

    def save(self, folder: Path) -> None:
        """Write all that `load` needs to continue bit for bit. No pickle."""
        ...

    def load(self, folder: Path) -> None:
        """Continue from what `save` wrote."""
        ...

    def export(self, folder: Path) -> None:
        """Write the policy as a Hugging Face directory, tokenizer included."""
        ...

    def offload(self) -> None:
        """Give the accelerator's memory back; a no-op without one.

        `save`, `load` and `export` work on what was moved away, and leave it there.
        """
        ...

    def onload(self) -> None:
        """Undo `offload`."""
        ...


@runtime_checkable
class LendsAdapter(Protocol):
    """What a trainer adds to `Trainer` that offers ``lends_adapter``: the part that LoRA trains."""

    def adapter(self) -> Iterator[tuple[str, "torch.Tensor"]]:
        """The policy's adapter by PEFT's names, ``base_model.model.PATH.lora_A.weight`` and ``…lora_B.weight``.

        A is [rank, in]; B is [out, rank] times alpha / rank: the layer adds B(Ax) to what it
        computes without. With several ranks as `Trainer.weights`.
        """
        ...


@runtime_checkable
class Ranked(Protocol):
    """What a trainer adds to `Trainer` where several processes make up one: offers ``several_ranks``.

    The runtime has set torchrun's environment variables (``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK``,
    ``LOCAL_WORLD_SIZE``, ``MASTER_ADDR``, ``MASTER_PORT``) before `make_trainer` is called in each
    process; the plugin makes its process group from them and ends it in `close`. Every method of
    `Trainer` is called on every rank, in the same order:

    - `score` with the rank's own rows, maybe none; ranks of equal `share` get the same.
    - `update` with the rank's own part of one mini-batch, maybe nothing, never part of an atom of
      the loss. Loss weights are of the whole mini-batch, so gradients add up over shares. The
      result is that of the whole mini-batch, equal on all ranks.
    - `weights`: iterated to its end on all ranks, in step; full tensors on each.
    - `save`, `load`, `export`: with one folder for all; they return when all ranks are done.

    What one rank finds wrong is raised on all, naming the rank, within a deadline.
    """

    share: int
    """Which part of the data this rank computes, from 0."""
    shares: int
    """Number of parts."""

    def close(self) -> None:
        """Leave the process group."""
        ...


class HostedEnv(Protocol):
    """An env as a `generate` stage sees it: async, under deadlines, its results checked.

    Every method but `discard` raises `TrajectoryError`, typed by what failed.
    """

    async def init(self) -> Sequence[Message]:
        """Make the env; returns the conversation to start from."""
        ...

    async def step(self, action: str) -> EnvStep:
        """Judge one completion."""
        ...

    async def finish(self) -> Mapping[str, float]:
        """Close the env; returns the episode's metrics."""
        ...

    async def discard(self) -> None:
        """Close the env after a failure, or do nothing if it is closed. Never raises."""
        ...


@quick
@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutContext:
    """Everything one rollout may use."""

    phase: Phase
    sample: int
    """Which of the prompt's trajectories this is, from 0."""
    seed: int
    """Seed of this trajectory alone."""
    sampling: Sampling
    engine: Generates
    tokenizer: Tokenizer
    host_env: Callable[[Prompt], HostedEnv]
    """A fresh env for the prompt, under deadlines and with typed errors."""
    max_prompt_tokens: int
    """The longest first prompt."""
    max_input_tokens: int
    """The longest row that may be continued."""
    max_turns: int | None
    """``generator.max_turns``: ends an episode that its env has not ended."""


class Generate(Protocol):
    """Stage 1: play one episode."""

    async def __call__(self, prompt: Prompt, context: RolloutContext) -> Trajectory:
        """Play it; raise to lose this trajectory."""
        ...


MeasureRow = Callable[[Prompt, Tokenizer], int]
"""How many tokens a row has before the first trained one; `ValueError` says what a row lacks. A row
without the column ``prompt`` comes as a `Prompt` without messages."""

RewardFn = Callable[[Sequence[Trajectory]], Sequence[Reward]]
"""Stage 2: judge the trajectories of one group; one reward each, in order."""

Select = Callable[[Sequence[Group], int, np.random.Generator], Selection]
"""Stage 3: (candidates, target, rng) → a verdict for each candidate. If fewer than
``target`` groups stay in, the loop generates more and asks again."""

SyncWeights = Callable[[Trainer, Engine, int], Awaitable[None]]
"""Stage 6: (trainer, engine, version) → the engine holds the policy's weights."""

ScoreName = Literal["old_logprobs", "ref_logprobs", "teacher_logprobs", "values"]

CreditedGroup = list[tuple[Scored, tuple[TokenAdvantages, ...]]]
"""The trajectories of one group, each with its scores and its segments' advantages."""


class Stateful(Protocol):
    """What a run must remember to go on as if it had not been interrupted."""

    def state_dict(self) -> dict[str, Any]:
        """JSON-able."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to where ``state_dict`` was taken."""
        ...


def _nothing_to_tell(groups: Sequence[CreditedGroup]) -> Mapping[str, float]:
    return {}


@dataclass(frozen=True, kw_only=True, slots=True)
class Advantage:
    """Stage 4: what each token is credited with. Groups in, one entry per segment out.

    ``fn`` takes [P] groups of [G] scored trajectories and returns, for each
    trajectory, its segments' `TokenAdvantages`.
    """

    fn: Callable[[Sequence[Sequence[Scored]]], list[list[tuple[TokenAdvantages, ...]]]]
    needs: frozenset[ScoreName] = frozenset()
    """Scores that must be there; the kernel computes no others."""
    needs_one_row: bool = False
    """True refuses trajectories of several token rows: credit flows from token to token along one."""
    measure: Callable[[Sequence[CreditedGroup]], Mapping[str, float]] = _nothing_to_tell
    """Metrics of a step, by full name, from what was credited; a wrapper adds its own."""
    state: Mapping[str, Stateful] = field(default_factory=dict)
    """What it remembers from step to step, by name: goes into checkpoints."""

    def __call__(
        self, groups: Sequence[Sequence[Scored]]
    ) -> list[list[tuple[TokenAdvantages, ...]]]:
        """Apply ``fn``."""
        return self.fn(groups)

    def state_dict(self) -> dict[str, Any]:
        """Of everything in ``state``."""
        return {name: one.state_dict() for name, one in self.state.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Bring everything in ``state`` back; what the checkpoint does not know begins anew."""
        for name, saved in state.items():
            if name in self.state:
                self.state[name].load_state_dict(saved)


@dataclass(frozen=True, kw_only=True, slots=True)
class Loss:
    """Stage 5: per-token terms; the objective is Σ coefficient × loss weight × term.

    ``fn`` and ``critic`` are pure: packed tensors in, `skyrl_kernel.torch.LossTerms` out.
    """

    fn: Callable[["LossInputs"], "LossTerms"]
    """Of the policy."""
    needs: frozenset[ScoreName] = frozenset()
    """Scores that must be there; the kernel computes no others."""
    needs_sampler_logprobs: bool = False
    """True refuses data that was not sampled."""
    atom: Literal["trajectory", "group"] = "trajectory"
    """What micro-batches never split."""
    coefficients: Mapping[str, float] = field(default_factory=lambda: {"policy": 1.0})
    """Factor of each term that ``fn`` and ``critic`` return."""
    prepare: Callable[["LossInputs"], Mapping[str, "torch.Tensor"]] | None = None
    """What ``fn`` must know of every token of the mini-batch beforehand: [N] columns of a
    micro-batch, computed in a pass of its own. ``fn`` finds them in ``inputs.minibatch``, those of
    all micro-batches and ranks joined."""
    critic: Callable[["ValueInputs"], "LossTerms"] | None = None
    """Of the critic, whose one term is ``value``; None trains none. It sees nothing of the policy,
    which may be in other processes."""

    def __call__(self, inputs: "LossInputs") -> "LossTerms":
        """Apply ``fn``."""
        return self.fn(inputs)


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluate:
    """Stage 7: the metrics of judged held-out trajectories, names as in ``eval/``."""

    fn: Callable[[Sequence[Scored]], Mapping[str, float]]
    needs: frozenset[ScoreName] = frozenset()
    """Scores under the weights that are evaluated; the kernel computes no others."""

    def __call__(self, trajectories: Sequence[Scored]) -> Mapping[str, float]:
        """Apply ``fn``."""
        return self.fn(trajectories)


class Reduction(Protocol):
    """Turns the masks of one mini-batch into per-token weights of the policy term."""

    def __call__(
        self, masks: Sequence[BoolArray], trajectories: Sequence[int], groups: Sequence[int]
    ) -> list[FloatArray]:
        """One [T] weight per row; ``trajectories`` and ``groups`` number each row's owners."""
        ...


class Runtime(Protocol):
    """Where trainer and engine run: in this process, or in others that it starts."""

    def start_engine(self, recipe: "EngineRecipe") -> Engine:
        """The engine, or an object that stands for it in another process."""
        ...

    def start_trainer(self, recipe: "TrainerRecipe") -> Trainer:
        """The trainer, or an object that stands for it in other processes."""
        ...

    def close(self) -> None:
        """End what was started."""
        ...


@runtime_checkable
class Carries(Protocol):
    """What a runtime adds to `Runtime` that offers ``separate_processes``.

    A stage `sync_weights` that needs more than an engine's own update then runs in the trainer's
    processes, each with an engine that is attached to servers; see `Served`.
    """

    def carry(self) -> SyncWeights:
        """What stands for that stage here. Called once, after trainer and engine were started."""
        ...


@runtime_checkable
class Measures(Protocol):
    """What a runtime adds to `Runtime` that measures its machines."""

    def measure(self) -> Mapping[str, float]:
        """Metrics since the call before, by their whole names, such as ``ray/gpu.util.avg``.

        Called when a step has ended. What is not known by then is left out, not waited for.
        """
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class DataRecipe:
    """How ``skyrl data NAME`` makes a data set."""

    options: type[BaseModel]
    """Fields are the command's options."""
    write: Callable[[Any, Path, Path | None], Mapping[str, Path]]
    """(options, output_dir, source) → split name → the file written."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunInfo:
    """What observers learn when a run starts."""

    name: str
    project: str
    folder: Path
    total_steps: int
    start_step: int
    config: Mapping[str, Any]
    """The resolved tree, secrets masked."""
    plugins: Sequence[str]
    """``name distribution version`` lines of the plugin lock."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepInfo:
    """What observers learn after a step."""

    step: int
    total_steps: int
    metrics: Mapping[str, float]
    """SkyRL's names: ``reward/…``, ``policy/…``, ``timing/…``."""
    trajectories: Sequence[Trajectory] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalInfo:
    """What observers learn after an evaluation."""

    step: int
    metrics: Mapping[str, float]
    """``eval/<source>/<name>``."""
    trajectories: Sequence[Trajectory] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class RunEnd:
    """What observers learn when a run ends, however it ends."""

    step: int
    status: Literal["finished", "stopped", "interrupted", "failed"]
    message: str
    warnings: Sequence[str] = ()
    """What the run said about itself: constant rewards, unchanged weights, …"""
