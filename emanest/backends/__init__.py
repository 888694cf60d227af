# SPDX-License-Identifier: MIT
"""The table of back ends and the choice among them."""

import importlib
import operator
import os
import threading
import warnings
from types import ModuleType
from typing import Any, Literal, NamedTuple

import torch

from . import capture
from .storage import NotInStorage


class Backend(NamedTuple):
    """A module that moves memory; ``emanest.backends.eager`` documents the functions that it has.

    A module that can be built in several ways says in its ``DEVICES`` which device types it serves;
    without that it serves all of its row.
    """

    module: str
    devices: tuple[str, ...]  # device types served; empty is any
    # (device type, environment variable): served by explicit choice only, where the variable is 1
    asked: tuple[tuple[str, str], ...] = ()


# the rows of the table below, for annotations
BackendName = Literal["triton", "cpp", "eager"]

VARIABLE = "EMANEST_BACKEND"

# in order of preference; torch calls hip devices "cuda" too
BACKENDS = {
    "triton": Backend("emanest.kernels.backend", ("cuda",), (("cpu", "TRITON_INTERPRET"),)),
    "cpp": Backend("emanest.backends.cpp", ("cpu", "cuda")),
    "eager": Backend("emanest.backends.eager", ()),
}

# no fault of a back end: another one would need more memory still, or read none
_NOT_FAILURES = (MemoryError, torch.OutOfMemoryError, NotInStorage)

# (device type, name or None for automatic choice) -> the back end in use
_picked: dict[tuple[str, str | None], ModuleType] = {}
# for every choice but that of a back end in use: threads that step at once choose, and warn, once
_choosing = threading.RLock()


def pick(device_type, choice=None):
    """The back end module for a device type ("cpu", "cuda", ...).

    Args:
        device_type: ``tensor.device.type``.
        choice: a name in ``BACKENDS``; None takes the first back end that serves the device and
            loads, with one warning if a preferred one does not load. The environment variable
            ``EMANEST_BACKEND`` overrides it.

    Raises:
        ValueError: the named back end does not exist.
        RuntimeError: the named back end does not serve the device or does not load.
    """
    key = device_type, requested(choice)
    if key not in _picked:
        with _choosing:
            if key not in _picked:
                _picked[key] = _automatic(device_type) if key[1] is None else _named(*key)
    return _picked[key]


def call(function, device_type, choice, *args, **options) -> Any:
    """Call a function of the back end that ``pick`` returns, by its name; see ``run``.

    ``emanest.backends.eager`` documents the functions and their arguments.
    None can be differentiated: call them under ``torch.no_grad()``.
    """
    return run(operator.methodcaller(function, *args, **options), device_type, choice)


def run(work, device_type, choice) -> Any:
    """Work with the back end that ``pick`` returns.

    Under automatic choice, when the work raises, the next back end takes over for this call and, if
    it succeeds, from then on; one warning gives the reason. This relies on work that raises to have
    changed nothing. Memory that runs out is not taken for a failure of the back end, nor is what
    goes wrong while a CUDA graph is captured, where much is forbidden that works elsewhere.

    Args:
        work: a function of a back end's module.
        device_type, choice: as in ``pick``.

    Returns:
        What ``work`` returns.
    """
    backend = pick(device_type, choice)
    try:
        return work(backend)
    except _NOT_FAILURES:
        raise
    except Exception as error:
        if requested(choice) or capture.capturing(device_type):
            raise
        with _choosing:
            if _picked[device_type, None] is backend:
                return _taken_over(work, device_type, backend, error)
        # another thread has met a failure of it meanwhile
        return run(work, device_type, None)


def _taken_over(work, device_type, backend, error):
    """Work with the back end that follows one that failed, which raises if there is none."""
    names = automatic(device_type)
    here = [BACKENDS[name].module for name in names].index(backend.__name__)
    news = [f"back end {names[here]!r} failed: {explain(error)}"]
    following = _first(names[here + 1 :], device_type, news)
    if following is None:
        raise error
    _picked[device_type, None] = following
    try:
        return run(work, device_type, None)
    except BaseException:
        # the input may be at fault, not the back end
        _picked[device_type, None] = backend
        raise


def requested(choice=None):
    """The name of the back end that is asked for explicitly, or None."""
    return os.environ.get(VARIABLE) or choice


def require(device_type, choice=None):
    """Raise what ``pick`` raises if a back end is asked for explicitly; else load nothing.

    A name that does not exist is an error even where the environment overrides it.
    """
    check(choice)
    if requested(choice) is not None:
        pick(device_type, choice)


def automatic(device_type):
    """The names among which automatic choice looks, in order of preference."""
    return [n for n, row in BACKENDS.items() if not row.devices or device_type in row.devices]


def find(name, device_type):
    """A back end's module and "", or None and the reason why it cannot serve a device type."""
    row = BACKENDS[name]
    variable = dict(row.asked).get(device_type)
    if variable is not None and os.environ.get(variable) != "1":
        return None, f"serves {device_type!r} tensors only where {variable}=1"
    if variable is None and name not in automatic(device_type):
        return None, f"does not serve {device_type!r} tensors"
    try:
        module = importlib.import_module(row.module)
    except _NOT_FAILURES:
        raise
    except Exception as error:
        return None, f"cannot be loaded: {explain(error)}"
    devices = getattr(module, "DEVICES", (device_type,))
    if device_type not in devices:
        return None, f"serves only {', '.join(map(repr, devices))} tensors as it is here"
    return module, ""


def explain(error):
    """An exception in words."""
    if isinstance(error, ModuleNotFoundError) and (error.name or "").startswith("emanest."):
        # of a source tree, where kernels/ lies beside the package
        return f"{error}; emanest is not installed: run `pip install -e .` in its source tree"
    return str(error) if isinstance(error, ImportError) else f"{type(error).__name__}: {error}"


def check(choice):
    """Raise ValueError unless ``choice`` is None or names a back end; return it."""
    # a list: what cannot be hashed is none of them
    if choice is not None and choice not in list(BACKENDS):
        raise ValueError(f"backend must be None or one of {list(BACKENDS)}, got {choice!r}")
    return choice


def _named(device_type, name):
    variable = os.environ.get(VARIABLE)
    if variable and variable not in BACKENDS:
        raise ValueError(f"{VARIABLE} must be one of {list(BACKENDS)}, got {variable!r}")
    module, reason = find(check(name), device_type)
    if module is None and variable:
        raise RuntimeError(f"{VARIABLE}={name} {reason}; without {VARIABLE} one is chosen")
    if module is None:
        raise RuntimeError(f"backend={name!r} {reason}; backend=None chooses one")
    return module


def _automatic(device_type):
    found = _first(automatic(device_type), device_type, [])
    if found is None:
        raise RuntimeError(f"no back end serves {device_type!r} tensors")
    return found


def _first(names, device_type, news):
    """The first that loads, or None; one warning tells ``news`` and what does not load."""
    for name in names:
        module, reason = find(name, device_type)
        if module is not None:
            if news:
                message = f"{'; '.join(news)}; {device_type!r} tensors use {name!r}"
                warnings.warn(f"emanest: {message}", stacklevel=3)
            return module
        news = [*news, f"back end {name!r} {reason}"]
    return None
