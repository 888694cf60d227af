# SPDX-License-Identifier: MIT
"""A lookahead method as it is given: by users as a name or a mapping, by groups as entries."""

import functools
from collections.abc import Mapping
from dataclasses import MISSING, fields

from .method import NO_LOOKAHEAD, Method, MethodLike, named, needed


def as_method(given: MethodLike, what: str = "lookahead") -> Method:
    """The method that a user means.

    Args:
        given: a method; its name in ``METHODS``, for its defaults; a mapping of "name" and of
            settings; or None, for none.
        what: what messages call it.

    Raises:
        TypeError: something else, or a setting is unknown, missing or of the wrong kind.
        ValueError: no method has that name, or a setting is out of range.
    """
    if given is None:
        return NO_LOOKAHEAD
    if isinstance(given, Method):
        return given
    if isinstance(given, str):
        given = {"name": given}
    if isinstance(given, Mapping) and "name" in given:
        settings = {key: value for key, value in given.items() if key != "name"}
        return named(given["name"], what).with_settings(settings)
    raise TypeError(
        f"{what} must be a method such as emanest.EMANesterov(), the name of one, a mapping of its "
        f'"name" and settings, or None, got {_instead(given)}'
    )


def _instead(given):
    """What was given in place of a method, and what was meant by it."""
    if not (isinstance(given, type) and issubclass(given, Method)):
        return repr(given)
    package = "emanest." if given.__module__.startswith(__name__.partition(".")[0] + ".") else ""
    settings = ", ".join(f"{name}=..." for name in needed(given))
    return f"the class: write {package}{given.__qualname__}({settings})"


def group_entries(method, base=None):
    """The entries that a method puts into a parameter group.

    Args:
        method: as ``as_method`` takes it.
        base: the options of the base as it was made, where the group has one already.

    Raises:
        TypeError, ValueError: as in ``as_method``.
    """
    method = as_method(method)
    memory = zip(method.memory_entries, method.memory.values(), strict=True)
    notes = {} if base is None else method.note_base(base)
    return {"lookahead": method.name, **method.settings(), **dict(memory), **notes}


def method_of(group):
    """The method that a group's entries describe, validated."""
    name = group.get("lookahead")
    if name is None:
        return NO_LOOKAHEAD
    if isinstance(name, (Method, Mapping)):
        raise TypeError(
            f"lookahead of a group that is there is a name, with its settings beside it, got "
            f'{name!r}: group.update({{"lookahead": "snoo", "lookahead_every": 5}})'
        )
    cls = named(name)
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
