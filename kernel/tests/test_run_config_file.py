from pathlib import Path

import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from skyrl_kernel.config.tree import Config
from skyrl_kernel.run.config_file import config_text

LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False)
    | st.text(max_size=20) | st.lists(st.text(max_size=5) | st.integers(), max_size=3)
)  # fmt: skip
TREES = st.recursive(
    st.dictionaries(st.text("abcd_", min_size=1), LEAVES, max_size=4),
    lambda inner: st.dictionaries(st.text("abcd_", min_size=1), inner | LEAVES, max_size=3),
    max_leaves=10,
)


@settings(max_examples=50, deadline=None)
@example(tree={"_": "\xa0"}, origin="")
@example(tree={"_": ["\x85"]}, origin="")
@example(tree={"_": "\u2028 and \u2029"}, origin="")
@example(tree={"_": "\r"}, origin="")
@given(TREES, st.text(max_size=20))
def test_the_file_reads_back_as_the_tree_whatever_the_values(tree, origin):
    origins = {key: origin for key, value in tree.items() if not isinstance(value, dict)}
    text = config_text(tree, origins)
    assert (yaml.safe_load(text) or {}) == tree


def test_every_leaf_carries_its_origin():
    tree = {"trainer": {"seed": 7, "logger": ["console"]}, "data": {}}
    text = config_text(tree, {"trainer.seed": "command line", "trainer.logger": "default"})
    assert text == (
        "trainer:\n  seed: 7  # command line\n  logger: [console]  # default\ndata: {}\n"
    )


def test_a_mapping_with_an_origin_of_its_own_stands_on_one_line():
    tree = {"generator": {"chat_template_kwargs": {"enable_thinking": False}}}
    text = config_text(tree, {"generator.chat_template_kwargs": "run.yaml"})
    assert "  chat_template_kwargs: {enable_thinking: false}  # run.yaml\n" in text


def test_secrets_are_not_written():
    text = config_text({"wandb": {"api_key": "0123456789"}}, {"wandb.api_key": "command line"})
    assert "0123456789" not in text
    assert yaml.safe_load(text) == {"wandb": {"api_key": "***"}}


def test_tuples_and_paths_are_written_as_lists_and_text():
    text = config_text({"betas": (0.9, 0.999), "path": Path("a/b")}, {})
    assert text == "betas: [0.9, 0.999]\npath: a/b\n"


def test_the_kernels_config_survives():
    tree = Config().model_dump(mode="json")
    assert Config.model_validate(yaml.safe_load(config_text(tree, {}))) == Config()
