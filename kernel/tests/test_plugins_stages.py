"""Resolving a stage: provider, wrappers, and what is refused."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from skyrl_kernel.errors import HookError, PluginError
from skyrl_kernel.plugins import PluginManager, Resolved, discover
from skyrl_kernel.slots import PLUGINS
from skyrl_kernel.testing.distributions import make_distribution, on_path

IMPORTS = "from skyrl_kernel.hookspecs import hookimpl\n"

BASE = """
@hookimpl
def reward(name):
    return (lambda trajectories: {"n": len(trajectories)}) if name == "base" else None
"""

TIMES_TEN = """
@hookimpl(wrapper=True)
def reward(name):
    inner = yield
    return lambda trajectories: {"n": inner(trajectories)["n"] * 10}
"""

PLUS_ONE = """
@hookimpl(wrapper=True)
def reward(name):
    inner = yield
    return lambda trajectories: {"n": inner(trajectories)["n"] + 1}
"""

SILENT = """
@hookimpl(wrapper=True)
def reward(name):
    return (yield)
"""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Path]:
    with on_path(tmp_path / "site") as folder:
        yield folder


def resolve(site: Path, hook: str, order: tuple[str, ...] = (), /, **sources: str) -> Resolved:
    """Install one plugin per source, load all, and ask for ``base``."""
    for name, source in sources.items():
        make_distribution(
            site,
            f"skyrl-{name}",
            modules={f"skyrl_{name}": IMPORTS + source},
            entry_points={PLUGINS: {name: f"skyrl_{name}"}},
        )
    catalog = discover(refresh=True)
    manager = PluginManager(catalog)
    manager.load([catalog.find(name) for name in sources], order=order)
    return manager.resolve(hook, "base", name="base", settings=None)


def test_a_stage_without_wrappers_is_the_providers_own_callable(site: Path) -> None:
    resolved = resolve(site, "reward", base=BASE)
    assert resolved.value([1, 2]) == {"n": 2}
    assert (resolved.provider.name, resolved.wrappers) == ("base", ())


def test_the_wrapper_called_first_is_the_outermost(site: Path) -> None:
    sources = {"base": BASE, "ten": TIMES_TEN, "one": PLUS_ONE}
    # ten around one: (2 + 1) × 10
    assert resolve(site, "reward", ("ten", "one"), **sources).value([1, 2]) == {"n": 30}
    # one around ten: 2 × 10 + 1
    resolved = resolve(site, "reward", ("one", "ten"), **sources)
    assert resolved.value([1, 2]) == {"n": 21}
    assert [entry.name for entry in resolved.wrappers] == ["ten", "one"]  # innermost first


def test_a_wrapper_that_changes_nothing_is_not_listed(site: Path) -> None:
    resolved = resolve(site, "reward", base=BASE, silent=SILENT, ten=TIMES_TEN)
    assert [entry.name for entry in resolved.wrappers] == ["ten"]


def test_an_async_stage_can_be_wrapped_to_retry(site: Path) -> None:
    resolved = resolve(
        site,
        "generate",
        base="""
@hookimpl
def generate(name):
    if name != "base": return None
    tries = []
    async def play(prompt, context):
        tries.append(prompt)
        if len(tries) < 3: raise OSError("engine away")
        return len(tries)
    return play
""",
        retry="""
@hookimpl(wrapper=True)
def generate(name):
    inner = yield
    async def patient(prompt, context):
        for _ in range(5):
            try: return await inner(prompt, context)
            except OSError: pass
    return patient
""",
    )
    assert asyncio.run(resolved.value("prompt", None)) == 3


def test_the_kernels_kl_loss_wraps_a_loss_only_where_it_is_switched_on(site: Path) -> None:
    from skyrl_kernel.config.algorithm import AlgorithmConfig

    make_distribution(
        site,
        "skyrl-base",
        modules={
            "skyrl_base": IMPORTS
            + "from skyrl_kernel.protocols import Loss\n"
            + "@hookimpl\ndef loss(name):\n"
            + "    return Loss(fn=lambda inputs: None) if name == 'base' else None\n"
        },
        entry_points={PLUGINS: {"base": "skyrl_base"}},
    )
    catalog = discover(refresh=True)
    manager = PluginManager(catalog)
    manager.load([catalog.find("base"), catalog.find("kl_loss")])
    for use, wrappers in ((True, ["kl_loss"]), (False, [])):
        settings = {AlgorithmConfig: AlgorithmConfig(use_kl_loss=use)}
        resolved = manager.resolve("loss", "base", name="base", settings=settings)
        assert [entry.name for entry in resolved.wrappers] == wrappers


def plain(hook: str, expression: str) -> str:
    return f"""
def plain(*arguments): ...
async def coloured(*arguments): ...
class Coloured:
    async def __call__(self, *arguments): ...
@hookimpl
def {hook}(name):
    return {expression} if name == "base" else None
"""


@pytest.mark.parametrize("expression", ["plain", "lambda prompt, context: None"])
def test_sync_where_async_is_due_is_refused(site: Path, expression: str) -> None:
    with pytest.raises(
        HookError,
        match=r"plugin 'base' \(skyrl-base 0\.1\.0\): its hook 'generate' returned .*, which is not "
        r"async; needed: an 'async def', because 'generate' is awaited",
    ):
        resolve(site, "generate", base=plain("generate", expression))


@pytest.mark.parametrize("expression", ["coloured", "Coloured()"])
def test_async_where_sync_is_due_is_refused(site: Path, expression: str) -> None:
    with pytest.raises(HookError, match="which is async; needed: a plain 'def'"):
        resolve(site, "reward", base=plain("reward", expression))


def test_an_object_with_an_async_call_is_async(site: Path) -> None:
    assert resolve(site, "sync_weights", base=plain("sync_weights", "Coloured()")).wrappers == ()


def test_an_answer_that_cannot_be_called_is_refused(site: Path) -> None:
    with pytest.raises(HookError, match="returned a dict; needed: a callable"):
        resolve(site, "select", base=plain("select", "{}"))


def test_a_callable_with_too_few_arguments_is_refused_showing_both_sides(site: Path) -> None:
    with pytest.raises(
        HookError,
        match=r"takes \(candidates\); needed: a callable that takes \(candidates, target, rng\)",
    ):
        resolve(site, "select", base=plain("select", "lambda candidates: None"))


@pytest.mark.parametrize(("hook", "kind"), [("advantage", "Advantage"), ("loss", "Loss")])
def test_a_bare_function_where_a_record_is_due_is_refused(site: Path, hook: str, kind: str) -> None:
    with pytest.raises(
        HookError, match=rf"returned 'plain'; needed: skyrl_kernel\.protocols\.{kind}\(fn=…\)"
    ):
        resolve(site, hook, base=plain(hook, "plain"))


def test_an_async_function_inside_a_loss_is_refused(site: Path) -> None:
    with pytest.raises(HookError, match="'coloured', which is async"):
        resolve(
            site,
            "loss",
            base="from skyrl_kernel.protocols import Loss\n" + plain("loss", "Loss(fn=coloured)"),
        )


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("inner = yield", "returned None. Return the inner callable"),
        ("inner = yield\n    yield inner", "has a second 'yield'"),
        ("return\n    yield", "ended before its 'yield'"),
        ("inner = yield\n    return {}", "its wrapper of hook 'reward' returned a dict"),
    ],
)
def test_a_wrapper_that_breaks_its_contract_is_named(site: Path, body: str, message: str) -> None:
    wrapper = f"@hookimpl(wrapper=True)\ndef reward(name):\n    {body}\n"
    with pytest.raises(HookError) as caught:
        resolve(site, "reward", base=BASE, bad=wrapper)
    assert str(caught.value).startswith("plugin 'bad' (skyrl-bad 0.1.0): its wrapper")
    assert message in str(caught.value)


def test_a_wrapper_that_raises_is_named(site: Path) -> None:
    wrapper = "@hookimpl(wrapper=True)\ndef reward(name):\n    yield\n    raise OSError('no')\n"
    with pytest.raises(
        PluginError, match=r"plugin 'bad' .* in hook 'reward', start-up.*OSError: no"
    ):
        resolve(site, "reward", base=BASE, bad=wrapper)


@pytest.mark.parametrize("hook", ["advantage", "loss", "evaluate"])
@pytest.mark.parametrize(
    ("needs", "told"),
    [
        (
            'frozenset({"ref_logprob"})',
            r"the score 'ref_logprob', which there is not\. Did you mean 'ref_logprobs'\? "
            r"Scores: old_logprobs, ref_logprobs, teacher_logprobs, values\.",
        ),
        ('"values"', r"'values'; needed: a frozenset of names"),
    ],
)
def test_a_score_that_there_is_not_is_refused(site: Path, hook: str, needs: str, told: str) -> None:
    made = f"protocols.{hook.capitalize()}"
    source = f"""
from skyrl_kernel import protocols
@hookimpl
def {hook}(name):
    return {made}(fn=lambda inputs: None, needs={needs}) if name == "base" else None
"""
    with pytest.raises(HookError, match=rf"its hook '{hook}' needs {told}"):
        resolve(site, hook, base=source)
