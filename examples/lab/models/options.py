# SPDX-License-Identifier: MIT
"""Checks of the options that models take, with errors of one line."""


class ModelError(ValueError):
    """A model that cannot be made; the message names the option, the value and the way out."""


def check_counts(**counts):
    """Raise unless each is a whole number of at least 1."""
    for name, value in counts.items():
        if type(value) is not int or value < 1:
            raise ModelError(f"{name} must be a whole number of at least 1, got {value!r}")


def check_multiple(name, value, of, number):
    """Raise unless ``value`` is a multiple of ``number``, which is called ``of``."""
    if value % number:
        raise ModelError(f"{name} must be a multiple of {of}={number}, got {value!r}")


def check_std(std):
    """Raise unless ``std`` is a positive number."""
    if type(std) not in (int, float) or not 0 < std < float("inf"):
        raise ModelError(f"std must be a positive number, got {std!r}")


def check_sizes(name, sizes, count=None):
    """Raise unless ``sizes`` is a list of sizes, ``count`` of them, or any number but none."""
    if not isinstance(sizes, list | tuple) or not sizes or len(sizes) != (count or len(sizes)):
        raise ModelError(f"{name} must be a list of {count or 'one or more'} sizes, got {sizes!r}")
    check_counts(**{f"{name}[{i}]": size for i, size in enumerate(sizes)})


def chosen(name, value, table):
    """The entry of ``table`` that is called ``value``."""
    if not isinstance(value, str) or value not in table:
        raise ModelError(f"{name} must be one of {', '.join(table)}, got {value!r}")
    return table[value]


def shape_of_images(shape):
    """The shape as a tuple (channels, height, width); JSON has lists."""
    check_sizes("shape", shape, 3)
    return tuple(shape)
