"""The table of back ends and the choice among them."""

import functools
import importlib
import os
import warnings
from typing import NamedTuple


class Backend(NamedTuple):
    """A module that moves memory; ``emanest.eager`` documents the functions that it has."""

    module: str
    devices: tuple[str, ...]  # device types served; empty is any


# in order of preference
BACKENDS = {
    "eager": Backend("emanest.eager", ()),
}


def pick(device_type, choice=None):
    """The back end module for a device type ("cpu", "cuda", ...).

    Args:
        device_type: ``tensor.device.type``.
        choice: a name in ``BACKENDS``; None takes the first back end that serves the device and
            loads, with one warning for each that does not load. The environment variable
            ``EMANEST_BACKEND`` overrides it.

    Raises:
        ValueError: the named back end does not exist.
        RuntimeError: the named back end does not serve the device or does not load.
    """
    choice = os.environ.get("EMANEST_BACKEND") or choice
    if choice is None:
        return _automatic(device_type)
    check(choice)
    if not _serves(BACKENDS[choice], device_type):
        raise RuntimeError(
            f"backend={choice!r} does not serve {device_type!r} tensors; backend=None chooses one"
        )
    try:
        return importlib.import_module(BACKENDS[choice].module)
    except ImportError as error:
        raise RuntimeError(
            f"backend={choice!r} cannot be loaded: {error}; backend=None chooses another"
        ) from error


def check(choice):
    """Raise ValueError unless ``choice`` is None or names a back end; return it."""
    if choice is not None and choice not in BACKENDS:
        raise ValueError(f"backend must be None or one of {list(BACKENDS)}, got {choice!r}")
    return choice


def _serves(backend, device_type):
    return not backend.devices or device_type in backend.devices


@functools.cache
def _automatic(device_type):
    for name, backend in BACKENDS.items():
        if not _serves(backend, device_type):
            continue
        try:
            return importlib.import_module(backend.module)
        except ImportError as error:
            warnings.warn(
                f"emanest: back end {name!r} cannot be loaded ({error}); trying the next",
                stacklevel=2,
            )
    raise RuntimeError(f"no back end serves {device_type!r} tensors")
