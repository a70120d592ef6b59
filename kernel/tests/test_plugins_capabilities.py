"""Who needs what of whom, and the explanation if nobody has it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyrl_kernel.errors import CapabilityError
from skyrl_kernel.plugins import Catalog, Manifest, PluginEntry, check_capabilities, discover
from skyrl_kernel.plugins.vocabulary import PROMISED_BY
from skyrl_kernel.slots import ALGORITHMS, BACKENDS, PLUGINS


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
    check_capabilities([GSPO, VLLM], CATALOG, {ENGINE[0]: VLLM})


def test_an_unmet_need_says_who_needs_it_who_lacks_it_and_who_has_it() -> None:
    with pytest.raises(CapabilityError) as caught:
        check_capabilities([GSPO, URL], CATALOG, {ENGINE[0]: URL})
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
        check_capabilities([needy, VLLM], CATALOG, {})


def test_needs_of_the_config_name_their_key() -> None:
    with pytest.raises(
        CapabilityError, match=r"^trainer\.fully_async\.enabled=true needs 'sampler_logprobs'"
    ):
        check_capabilities(
            [URL], CATALOG, {}, {"trainer.fully_async.enabled=true": ("sampler_logprobs",)}
        )


def test_every_unmet_need_has_its_line() -> None:
    needy = entry("needy", needs=("a", "b"))
    with pytest.raises(CapabilityError) as caught:
        check_capabilities([needy], CATALOG, {})
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
        check_capabilities(entries, catalog, {})
    else:
        with pytest.raises(CapabilityError):
            check_capabilities(entries, catalog, {})


TOKENIZER = "generator.tokenizer"
SYNC = "generator.inference_engine.weight_sync_backend"
PLAIN = entry("plain", slots=ENGINE)
SHARES = entry("shares", offers=("shares_module", "text"), slots=(*ENGINE, TOKENIZER))


def test_a_promise_of_an_engine_counts_only_of_the_plugin_in_its_slot() -> None:
    needs = {"a sync": ("shares_module",)}
    entries = [PLAIN, SHARES]
    catalog = Catalog(entries=tuple(entries), kernel_version="0.1.0")
    check_capabilities(entries, catalog, {ENGINE[0]: SHARES, TOKENIZER: PLAIN}, needs)
    with pytest.raises(CapabilityError) as caught:
        check_capabilities(entries, catalog, {ENGINE[0]: PLAIN, TOKENIZER: SHARES}, needs)
    assert str(caught.value) == (
        "a sync needs 'shares_module' of generator.inference_engine.backend=plain, which does not offer it. "
        "Selected backend 'shares' (skyrl-shares 1.0) offers it and is not used for it. To use one that "
        "offers it: generator.inference_engine.backend=shares."
    )


def test_another_word_counts_of_whoever_is_used() -> None:
    needs = {"somebody": ("text",)}
    catalog = Catalog(entries=(PLAIN, SHARES), kernel_version="0.1.0")
    check_capabilities([PLAIN, SHARES], catalog, {ENGINE[0]: PLAIN, TOKENIZER: SHARES}, needs)
    with pytest.raises(
        CapabilityError, match=r"^somebody needs 'text'\. Selected backend 'shares'"
    ):
        check_capabilities([PLAIN, SHARES], catalog, {ENGINE[0]: PLAIN, TOKENIZER: PLAIN}, needs)


def test_a_transport_without_a_receiver_is_refused_with_those_that_have_one() -> None:
    mail = entry("mail", PLUGINS, needs=("receives_weights", "mailbox"), slots=(SYNC,))
    push = entry("push", PLUGINS, needs=("receives_weights",), slots=(SYNC,))
    near = entry("near", PLUGINS, needs=("shares_module",), slots=(SYNC,))
    engine = entry("engine", offers=("receives_weights",), slots=ENGINE)
    catalog = Catalog(entries=(mail, push, near, engine), kernel_version="0.1.0")
    with pytest.raises(
        CapabilityError,
        match=rf"^plugin 'mail' .* needs 'mailbox'.* The engine 'engine' takes {SYNC}=push\.",
    ):
        check_capabilities([engine, mail], catalog, {ENGINE[0]: engine, SYNC: mail})


def test_every_capability_that_our_plugins_offer_is_known_to_the_kernel_or_to_its_own() -> None:
    ours = [one for one in discover() if one.distribution.startswith("skyrl-")]
    offered = {word for one in ours for word in one.manifest.offers}
    assert offered - {"vllm_weight_transfer"} <= set(PROMISED_BY)  # that one is vLLM's own
    for one in ours:
        for word in one.manifest.offers:
            if keys := PROMISED_BY.get(word):
                assert set(keys) & set(one.manifest.slots), f"{one} cannot keep {word}"
