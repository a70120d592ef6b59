"""``skyrl data multiply``, from the words of the command to the prompts of a run."""

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from skyrl_kernel.cli.data import data
from skyrl_kernel.data import load_prompts
from skyrl_kernel.errors import PluginSelectionError, SkyrlError, UsageError
from skyrl_kernel.plugins import PluginManager, discover
from skyrl_multiply.config import MultiplyConfig


def run(*words: object) -> Result:
    return CliRunner().invoke(data, [str(word) for word in words])


def error_of(*words: object) -> SkyrlError:
    error = run(*words).exception
    assert isinstance(error, SkyrlError)
    return error


def test_it_writes_what_it_says_and_a_run_can_read_it(tmp_path: Path) -> None:
    result = run(
        "multiply", "--num-digits=1", "--train_size", 60, "--test-size", 5, "--output_dir", tmp_path
    )
    assert result.exit_code == 0
    # 56 pairs of digits are not held out; the other 4 rows repeat some.
    assert result.output == (
        f"{tmp_path}/train.parquet: 60 rows (56 distinct prompts)\n"
        f"{tmp_path}/validation.parquet: 5 rows\n"
    )
    train = load_prompts([str(tmp_path / "train.parquet")], default_env="gsm8k")
    assert len(train) == 60
    assert list(train.env_classes()) == ["multiply"]


def test_files_and_sources_of_equal_settings_hold_equal_rows(tmp_path: Path) -> None:
    run("multiply", "--train_size=50", "--test_size=9", "--seed=3", "--output_dir", tmp_path)
    catalog = discover()
    manager = PluginManager(catalog)
    manager.load([catalog.find("multiply")])
    settings = {MultiplyConfig: MultiplyConfig(train_size=50, test_size=9, seed=3)}

    def resolve(source: str) -> object:
        return manager.make("load_dataset", "multiply", source=source, settings=settings)

    for split in ("train", "validation"):
        file = load_prompts([str(tmp_path / f"{split}.parquet")], default_env="multiply")
        source = load_prompts([f"multiply:{split}"], default_env="multiply", resolve=resolve)
        assert file.prompts == source.prompts


def test_the_same_command_writes_the_same_bytes(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        run("multiply", "--output_dir", tmp_path / folder)
    for name in ("train.parquet", "validation.parquet"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_the_home_folder_is_the_default_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run("multiply", "--train_size", "5", "--test_size", "5").exit_code == 0
    assert (tmp_path / "data" / "multiply" / "train.parquet").is_file()


def test_skyrls_words_make_skyrls_data_without_what_surprises_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    words = shlex.split("--output_dir ~/data --num_digits 4 --train_size 10000 --test_size 200")
    assert run("multiply", *words).exit_code == 0
    first = (tmp_path / "data" / "train.parquet").read_bytes()
    dashed = [word.replace("_", "-") if word.startswith("--") else word for word in words]
    assert run("multiply", *dashed).exit_code == 0
    assert (tmp_path / "data" / "train.parquet").read_bytes() == first  # the seed is fixed

    def problems(split: str) -> list[frozenset[str]]:
        prompts = load_prompts(
            [str(tmp_path / "data" / f"{split}.parquet")], default_env="multiply"
        )
        return [frozenset(one.messages[-1]["content"].split(" * ")) for one in prompts.prompts]

    train, validation = problems("train"), problems("validation")
    assert (len(train), len(validation)) == (10000, 200)
    assert not set(train) & set(validation)  # nor with the factors swapped
    assert all(len(number) == 4 for pair in train for number in pair)


def test_without_a_name_the_data_sets_are_listed() -> None:
    result = run()
    assert result.exit_code == 0
    assert re.search(r"^  multiply +Multiplication problems", result.output, re.MULTILINE)


def test_help_lists_the_options_of_the_data_set() -> None:
    result = run("multiply", "--help")
    assert result.exit_code == 0
    for option in ("--num_digits", "--train_size", "--test_size", "--seed", "--output_dir"):
        assert option in result.output
    assert "[default: 10000]" in result.output
    assert "``" not in result.output


def test_an_unknown_name_gets_the_nearest_and_how_to_install() -> None:
    error = error_of("multipl")
    assert isinstance(error, PluginSelectionError)
    assert error.exit_code == 2
    assert "no data set named 'multipl'. Did you mean 'multiply'?" in str(error)
    assert "pip install skyrl-multipl" in str(error)


def test_a_plugin_that_makes_no_data_says_so() -> None:
    assert "makes no data set. Installed plugins make:" in str(error_of("plugin/accuracy"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--num_digits", "x"], "--num_digits=x: 'x' is not a number of digits"),
        (["--num_digit", "2"], "no option --num_digit. Did you mean '--num_digits'?"),
        (["--test_size", "0"], "--test_size=0: Input should be greater than or equal to 1"),
        (["--test_size", "5000"], "with num_digits=2 there are 1605"),
        (["--source", "."], "is made from a seed and reads nothing; leave out --source ."),
        (["--source", "nowhere"], "--source nowhere: no such folder"),
    ],
)
def test_what_it_cannot_do_ends_with_one_line_and_writes_nothing(
    tmp_path: Path, words: list[str], message: str
) -> None:
    error = error_of("multiply", *words, "--output_dir", tmp_path / "out")
    assert isinstance(error, UsageError)
    assert message in str(error)
    assert "\n" not in str(error)
    assert list(tmp_path.iterdir()) == []
