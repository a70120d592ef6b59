"""Who needs what of whom, and the explanation if nobody has it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyrl_kernel.errors import CapabilityError
from skyrl_kernel.plugins import Catalog, Manifest, PluginEntry, check_capabilities
from skyrl_kernel.slots import ALGORITHMS, BACKENDS


def entry(
    name: str,
    group: str = BACKENDS,
    *,
    needs: tuple[str, ...] = (),
    offers: tuple[str, ...] = (),
    slots: tuple[str, ...] = (),
) -> PluginEntry:
    return PluginEntry(
        name=name,
        group=group,
        value=f"skyrl_{name}",
        distribution=f"skyrl-{name}",
        version="1.0",
        manifest=Manifest(needs=needs, offers=offers, slots=slots),
    )


ENGINE = ("generator.inference_engine.backend",)
GSPO = entry("gspo", ALGORITHMS, needs=("sampler_logprobs",))
URL = entry("url", offers=("text",), slots=ENGINE)
VLLM = entry("vllm", offers=("text", "sampler_logprobs"), slots=ENGINE)
CATALOG = Catalog(entries=(GSPO, URL, VLLM), kernel_version="0.1.0")


def test_a_need_that_a_selected_plugin_offers_is_met() -> None:
    check_capabilities([GSPO, VLLM], CATALOG)


def test_an_unmet_need_says_who_needs_it_who_lacks_it_and_who_has_it() -> None:
    with pytest.raises(CapabilityError) as caught:
        check_capabilities([GSPO, URL], CATALOG)
    assert str(caught.value) == (
        "algorithm 'gspo' (skyrl-gspo 1.0) needs 'sampler_logprobs', which no selected plugin "
        "offers. Selected backend 'url' (skyrl-url 1.0) offers only text. Installed with it: "
        "backend 'vllm' (skyrl-vllm 1.0), selected by --plugin backend/vllm or "
        "generator.inference_engine.backend=vllm."
    )


def test_a_need_that_nothing_installed_offers_names_the_nearest_capability() -> None:
    needy = entry("needy", needs=("sampler_logprob",))
    with pytest.raises(
        CapabilityError,
        match=r"No installed plugin offers it either\. Did you mean 'sampler_logprobs'\?",
    ):
        check_capabilities([needy, VLLM], CATALOG)


def test_needs_of_the_config_name_their_key() -> None:
    with pytest.raises(
        CapabilityError, match=r"^trainer\.fully_async\.enabled=true needs 'sampler_logprobs'"
    ):
        check_capabilities(
            [URL], CATALOG, {"trainer.fully_async.enabled=true": ("sampler_logprobs",)}
        )


def test_every_unmet_need_has_its_line() -> None:
    needy = entry("needy", needs=("a", "b"))
    with pytest.raises(CapabilityError) as caught:
        check_capabilities([needy], CATALOG)
    assert len(str(caught.value).splitlines()) == 2


CAPABILITIES = st.sets(st.sampled_from("abcd"))


@given(st.lists(st.tuples(CAPABILITIES, CAPABILITIES), min_size=1, max_size=4))
def test_plugins_fit_exactly_if_all_needs_are_among_all_offers(
    plugins: list[tuple[set[str], set[str]]],
) -> None:
    entries = [
        entry(f"p{number}", needs=tuple(needs), offers=tuple(offers))
        for number, (needs, offers) in enumerate(plugins)
    ]
    catalog = Catalog(entries=tuple(entries), kernel_version="0.1.0")
    needed = set().union(*(needs for needs, _ in plugins))
    offered = set().union(*(offers for _, offers in plugins))
    if needed <= offered:
        check_capabilities(entries, catalog)
    else:
        with pytest.raises(CapabilityError):
            check_capabilities(entries, catalog)
