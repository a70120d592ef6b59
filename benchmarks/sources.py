"""What a plugin computes, as a digest: its code without comments and docstrings."""

import ast
import hashlib
import importlib.util
from pathlib import Path


def source_digest(module: str) -> str:
    """Of a module and of all that it imports from its own top-level package.

    Nothing is run but the ``__init__`` of the packages around it. Other words in a
    docstring, a comment or the layout change nothing.
    """
    package = module.partition(".")[0]
    found: dict[str, str] = {}
    todo = [module]
    while todo:
        name = todo.pop()
        if name in found:
            continue
        tree = _parse(name)
        if tree is not None:
            found[name] = ast.unparse(_without_docstrings(tree))
            todo += [one for one in _imported(tree) if one.partition(".")[0] == package]
    text = "\0".join(f"{name}\0{code}" for name, code in sorted(found.items()))
    return hashlib.sha256(text.encode()).hexdigest()


def _parse(name: str) -> ast.Module | None:
    """The module's tree, or None if the name is no module (a function, perhaps)."""
    try:
        spec = importlib.util.find_spec(name)
    except ModuleNotFoundError:  # its parent is no package
        return None
    if spec is None or spec.origin is None:
        return None
    return ast.parse(Path(spec.origin).read_text())


def _imported(tree: ast.Module) -> list[str]:
    """Names that may be modules: of ``from a import b`` both ``a`` and ``a.b``."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return names


def _without_docstrings(tree: ast.Module) -> ast.Module:
    """Also without strings under fields: an expression that is only a string does nothing."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            kept = [one for one in body if not _is_string(one)]
            node.body = kept or [ast.Pass()]  # type: ignore[attr-defined]
    return tree


def _is_string(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )
