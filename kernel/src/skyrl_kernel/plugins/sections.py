"""Merging the config sections of plugins, and holding each to its ``plugin.toml``."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from skyrl_kernel.errors import HookError
from skyrl_kernel.plugins.catalog import Catalog, PluginEntry
from skyrl_kernel.plugins.wording import listed

if TYPE_CHECKING:
    from pydantic import BaseModel


def merged_sections(
    answers: "Iterable[tuple[PluginEntry, object]]", catalog: Catalog
) -> "dict[str, type[BaseModel]]":
    """Dotted path → model, of all answers to ``config_sections``.

    Args:
        answers: One per loaded module: a plugin of it, and what it returned.
        catalog: Tells which paths each ``plugin.toml`` declares.

    Raises:
        HookError: An answer is no mapping of models, differs from the declaration, or
            clashes with another plugin's.
    """
    merged: dict[str, type[BaseModel]] = {}
    owners: dict[str, PluginEntry] = {}
    for owner, answer in answers:
        sections = _checked(owner, answer)
        _compare_with_manifest(owner, sections, catalog)
        for path, model in sections.items():
            for other, rival in owners.items():
                if _overlap(path, other) and rival.value != owner.value:
                    raise HookError(
                        f"config '{path}' of {owner} and config '{other}' of {rival} overlap: "
                        "a key has one owner. Select only one of them."
                    )
            merged[path] = model
            owners[path] = owner
    return merged


def _checked(owner: PluginEntry, answer: object) -> "Mapping[str, type[BaseModel]]":
    from pydantic import BaseModel

    if not isinstance(answer, Mapping):
        raise HookError(
            f"{owner}: its hook 'config_sections' returned a {type(answer).__name__}; "
            "needed: a mapping from dotted path to pydantic model."
        )
    for path, model in answer.items():
        if (
            not isinstance(path, str)
            or not isinstance(model, type)
            or not issubclass(model, BaseModel)
        ):
            raise HookError(
                f"{owner}: its config section {path!r} is {model!r}; "
                "needed: a dotted path and a pydantic model class."
            )
    return answer


def _compare_with_manifest(owner: PluginEntry, sections: Iterable[str], catalog: Catalog) -> None:
    sharing = catalog.sharing_module(owner.value) or [owner]
    declared = {path for entry in sharing for path in entry.manifest.config}
    if declared != set(sections):
        raise HookError(
            f"{owner}: its plugin.toml declares the config sections {listed(sorted(declared))}, "
            f"but its hook 'config_sections' returns {listed(sorted(sections))}. "
            "Make 'config' in plugin.toml equal to what the hook returns."
        )


def _overlap(one: str, other: str) -> bool:
    return one == other or one.startswith(f"{other}.") or other.startswith(f"{one}.")
