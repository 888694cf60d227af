# SPDX-License-Identifier: MIT
"""The extension, loaded: ``from .extension.loaded import _C``.

It is the installed one, or else the one in the cache, if built from these sources for this torch,
and ``emanest._C`` from then on. ImportError says in one line why there is none and what builds it.
"""

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from . import places, sources

COMMAND = "python -m emanest.build"
_PACKAGE = __name__.rpartition(".extension.")[0]  # emanest, or where another package keeps it
_NAME = f"{_PACKAGE}._C"


def _load():
    version = str(torch.__version__)
    # None where there are no sources to compare with: then the installed one is taken as it is
    fitting = sources.wanted(version)
    if _NAME in sys.modules:
        # by an ``import emanest._C``, which asks nothing
        loaded = importlib.import_module(_NAME)
        if misfit := _misfit(Path(str(loaded.__file__)), fitting, version):
            raise ImportError(misfit)
        return loaded
    paths = [places.installed()]
    if fitting is not None and (cached := places.cached(fitting)):
        paths.append(cached)
    reasons = []
    for path in paths:
        try:
            misfit = _misfit(path, fitting, version)
            if path.exists() and misfit is None:
                return _import(path)
        except (ImportError, OSError) as error:
            misfit = f"the extension in {path.parent} cannot be loaded ({error})"
        failure = places.failure(path)
        reasons += [misfit] if misfit else []
        reasons += [f"the extension could not be built ({failure})"] if failure else []
    raise ImportError("; ".join(reasons) or f"the extension is not built for torch {version}")


def _misfit(path, fitting, version):
    """Why a file that is there is not to be loaded; None if it is."""
    its_hash, its_torch = sources.marked(path) if path.exists() else (fitting, version)
    if fitting in (None, its_hash):
        return None
    if its_torch not in (None, version):
        return f"the extension in {path.parent} is for torch {its_torch}, and this is {version}"
    return f"the extension in {path.parent} is built from other sources than these"


def _import(path):
    spec = importlib.util.spec_from_file_location(_NAME, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[_NAME] = module
    vars(sys.modules[_PACKAGE])["_C"] = module
    return module


if TYPE_CHECKING:
    from .. import _C
else:
    try:
        _C = _load()
    except ImportError as error:
        reason = " ".join(str(error).split())
        raise ImportError(f"{reason}: run `{COMMAND}`") from error
