"""The lookahead methods, and how a parameter group holds one.

A method is a small frozen dataclass. A group holds its name (``lookahead``) and its settings
(``lookahead_stepsize``, ``lookahead_decay``, ...), where they can be overridden per group and where
``state_dict`` saves them; the dataclass is their template and their validator.
"""

import functools
from dataclasses import MISSING, fields

from ..options import choice
from .along import NAG, EMANesterov
from .between import GPA, ScheduleFree
from .method import At, Method, Plan
from .slow import NALA, SNOO, LongHorizon, Lookahead

__all__ = [
    "GPA",
    "METHODS",
    "NAG",
    "NALA",
    "SNOO",
    "At",
    "EMANesterov",
    "LongHorizon",
    "Lookahead",
    "Method",
    "Plan",
    "ScheduleFree",
    "group_entries",
    "method_of",
]

METHODS = {
    method.name: method
    for method in (EMANesterov, NAG, Lookahead, LongHorizon, SNOO, GPA, ScheduleFree, NALA)
}


def group_entries(method, base=None):
    """The entries that a method (or None) puts into a parameter group.

    Args:
        method: the method, or None.
        base: the options of the base as it was made, where the group has one already.

    Raises:
        TypeError: neither a method nor None.
    """
    if method is None:
        return {"lookahead": None}
    if not isinstance(method, Method):
        names = ", ".join(m.__name__ for m in METHODS.values())
        raise TypeError(f"lookahead must be None or one of {names}, got {method!r}")
    kept = {**method.memory, **({} if base is None else method.note_base(base))}
    kept = {f"lookahead_{name}": value for name, value in kept.items()}
    return {"lookahead": method.name, **method.settings(), **kept}


def method_of(group):
    """The method that a group's entries describe, validated; None without one."""
    name = group.get("lookahead")
    if name is None:
        return None
    cls = METHODS[choice("lookahead", name, METHODS)]
    settings = [group.get(f"lookahead_{f.name}", f.default) for f in fields(cls)]
    # a function may not be hashable, and would be kept alive
    return (_build if any(map(callable, settings)) else _cached)(cls, *settings)


def _build(cls, *settings):
    for field, value in zip(fields(cls), settings, strict=True):
        if value is MISSING:
            raise ValueError(f"lookahead={cls.name!r} needs the entry 'lookahead_{field.name}'")
    return cls(*settings)


# typed: 1, 1.0 and True are equal but not equally valid
_cached = functools.lru_cache(maxsize=1024, typed=True)(_build)
