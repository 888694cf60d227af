# SPDX-License-Identifier: MIT
"""The error of data that cannot be had or used, and what says where it was looked for."""

import pathlib


class DataError(ValueError):
    """Data that cannot be used; the message names the place or the option, and the way out."""


def whole(name, value, least=1):
    """Raise ``DataError`` unless the option is a whole number of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise DataError(f"{name} is {value!r}; give a whole number of at least {least}")


def choice(name, value, known):
    """Raise ``DataError`` unless the option is one of those known."""
    if value not in known:
        raise DataError(f"{name} is {value!r}; choose from {', '.join(map(repr, known))}")


def existing(path, places, what, remedy, kind=pathlib.Path.is_dir):
    """The first place that is there: the path given, or else the first of those known.

    Args:
        path: what the user named; None: look in ``places``.
        what: is sought, for the message.
        remedy: how to get it.
        kind: what it must be: ``Path.is_dir`` or ``Path.is_file``.
    """
    looked = [pathlib.Path(path).expanduser()] if path is not None else [*places]
    for place in looked:
        if kind(place):
            return place
    raise DataError(f"{what} is not at {' or '.join(map(str, looked))}; {remedy}")
