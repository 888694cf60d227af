# SPDX-License-Identifier: MIT
"""Data of the lab by name: ``load({"name": "python"})`` gives a ``Text`` or ``Images``."""

import inspect

from . import brown, cifar, corpora, image_sets, stream, tokens
from .errors import DataError
from .images import Images
from .text import Text

__all__ = ["DATA", "DataError", "Images", "Text", "load"]

# name -> what loads it, given the other settings as options
DATA = {
    "python": corpora.python,
    "installed_python": corpora.installed_python,
    "folder": corpora.folder,
    "brown": brown.brown,
    "linux_docs": corpora.linux_docs,
    "shards": tokens.shards,
    "prepared": stream.prepared,
    "fineweb": stream.fineweb,
    "c4": stream.c4,
    "fashion_mnist": image_sets.fashion_mnist,
    "idx": image_sets.idx,
    "digits": image_sets.digits,
    "cifar10": cifar.cifar10,
    "cifar100": cifar.cifar100,
}


def load(settings):
    """The data that settings name: ``{"name": one of DATA, **options}``."""
    options = dict(settings)
    name = options.pop("name", None)
    if name not in DATA:
        raise DataError(f"data {name!r} is not known; choose from {', '.join(DATA)}")
    try:
        inspect.signature(DATA[name]).bind(**options)
    except TypeError as error:
        known = inspect.signature(DATA[name]).parameters.values()
        words = [f"{p.name} (required)" if p.default is p.empty else p.name for p in known]
        raise DataError(
            f"data {name!r}: {error}; its options are: {', '.join(words) or 'none'}"
        ) from None
    return DATA[name](**options)
