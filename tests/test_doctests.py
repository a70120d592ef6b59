"""The examples in docstrings do what they show."""

import doctest
import importlib
from collections.abc import Iterator

import pytest
from workspace import package_folders

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def modules_with_examples() -> Iterator[str]:
    """Dotted names, found by reading."""
    for folder in package_folders():
        source = folder / "src"
        for file in sorted(source.rglob("*.py")):
            if ">>> " in file.read_text(encoding="utf-8"):
                parts = file.relative_to(source).with_suffix("").parts
                yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = list(modules_with_examples())


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_hold(name: str) -> None:
    module = importlib.import_module(name)
    tests = doctest.DocTestFinder(exclude_empty=True).find(module, name)
    assert tests, f"{name} shows examples where no docstring is: nobody runs them"
    runner = doctest.DocTestRunner(optionflags=FLAGS, verbose=False)
    report: list[str] = []
    for test in tests:
        runner.run(test, out=report.append)
    assert not runner.summarize(verbose=False).failed, "".join(report)


def test_every_package_of_the_kernel_is_looked_at() -> None:
    """So that a moved folder does not silence this file."""
    assert {"skyrl_kernel.records", "skyrl_kernel.admission", "skyrl_grpo.advantage"} <= {*MODULES}
