"""Records are made by the hundred in every step; here is how that is quick though they are frozen."""

from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Any, TypeVar

C = TypeVar("C", bound=type)


def quick(cls: C) -> C:
    """Have a frozen keyword-only dataclass with slots fill its slots in two thirds of the time.

    The ``__init__`` that `dataclasses.dataclass` writes calls ``object.__setattr__``, which looks
    every slot up by its name. This one calls the slots' own setters, and is the same otherwise:
    same arguments, defaults and ``__post_init__``.

    Example:
        >>> from dataclasses import dataclass
        >>> @quick
        ... @dataclass(frozen=True, kw_only=True, slots=True)
        ... class Point:
        ...     x: int
        ...     y: int = 0
        >>> Point(x=3)
        Point(x=3, y=0)
    """
    original: Callable[..., None] = cls.__init__  # type: ignore[misc]
    defaults = original.__kwdefaults__ or {}
    known: dict[str, Any] = {}
    lines = []
    for one in fields(cls):
        value = one.name
        known[f"set_{one.name}"] = getattr(cls, one.name).__set__
        if one.default_factory is not MISSING:
            known[f"make_{one.name}"], known["ABSENT"] = one.default_factory, defaults[one.name]
            value = f"make_{one.name}() if {one.name} is ABSENT else {one.name}"
        lines.append(f"    set_{one.name}(self, {value})")
    if hasattr(cls, "__post_init__"):
        lines.append("    self.__post_init__()")
    names = ", ".join(one.name for one in fields(cls))
    exec("\n".join([f"def __init__(self, *, {names}):", *lines]), known)
    init = known["__init__"]
    init.__kwdefaults__, init.__annotations__ = defaults, original.__annotations__
    init.__qualname__, init.__module__ = original.__qualname__, cls.__module__
    cls.__init__ = init  # type: ignore[misc]
    return cls
