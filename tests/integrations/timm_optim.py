# SPDX-License-Identifier: MIT
"""timm.optim, imported without the rest of timm.

timm needs torchvision to be imported whole, of which there is no build for this torch here. What
runs is timm's own ``timm.optim``, all of it, beside two functions that it needs of its other
packages, which are not imported whole.
"""

import contextlib
import importlib
import importlib.util
import sys
import types
from pathlib import Path


@contextlib.contextmanager
def imported():
    """The module; neither ``timm`` nor what needs it is left half imported."""
    (root,) = importlib.util.find_spec("timm").submodule_search_locations
    before = set(sys.modules)
    for name in ("timm", "timm.layers", "timm.models"):
        module = sys.modules[name] = types.ModuleType(name)
        module.__path__ = [str(Path(root, *name.split(".")[1:]))]
    layers, models = sys.modules["timm.layers"], sys.modules["timm.models"]
    layers.use_reentrant_ckpt = importlib.import_module("timm.layers.config").use_reentrant_ckpt
    manipulate = importlib.import_module("timm.models._manipulate")
    models.group_parameters = manipulate.group_parameters
    try:
        yield importlib.import_module("timm.optim")
    finally:
        for name in set(sys.modules) - before:
            if name.partition(".")[0] == "timm" or name == "emanest.integrations.timm":
                del sys.modules[name]
