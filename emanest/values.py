# SPDX-License-Identifier: MIT
"""Checks of what a user passes in, one function for each kind of value."""

import contextlib
import difflib
import math
import numbers
import os
import sys
import warnings
from collections.abc import Mapping, Set
from typing import Any

import torch
from torch.nn.parameter import is_lazy

from .backends import shards, storage

# where code lies that is not the user's: ours, torch's, what enters and leaves ``with`` blocks
_LIBRARIES = (
    *(os.path.dirname(path) + os.sep for path in (__file__, torch.__file__)),
    contextlib.__file__,
)


def warn(message):
    """Warn at the line of the user's that has led here."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_LIBRARIES):
        frame, level = frame.f_back, level + 1
    warnings.warn(f"emanest: {message}", stacklevel=level)


def real(name, value, low=-math.inf, high=math.inf, bounds="[]"):
    """Return ``value`` as a float inside the given range.

    Args:
        name: what the message calls it.
        value: a real number of any kind (Python, numpy, Decimal, Fraction), not a bool.
        low, high: the range; infinite values are always refused.
        bounds: which ends belong to the range, as in ``"[)"``.

    Raises:
        TypeError: not a real number.
        ValueError: NaN, infinite or out of range.
    """
    number = _number(name, value, "a number")
    above = number >= low if bounds[0] == "[" else number > low
    below = number <= high if bounds[1] == "]" else number < high
    if not (above and below and math.isfinite(number)):
        raise ValueError(f"{name} must be {_range(low, high, bounds)}, got {number}")
    return number


def _number(name, value, kind):
    # Decimal registers as a Number but not as a Real; tensors as neither
    complex_ = isinstance(value, numbers.Complex) and not isinstance(value, numbers.Real)
    if isinstance(value, bool) or not isinstance(value, numbers.Number) or complex_:
        raise TypeError(f"{name} must be {kind}, got {value!r} ({type(value).__name__})")
    try:
        return float(value)  # pyright: ignore[reportArgumentType]
    except OverflowError:
        # an integer of more than 308 digits
        return math.inf


def _range(low, high, bounds):
    if math.isinf(low) and math.isinf(high):
        return "finite"
    if math.isinf(high):
        return f"a finite number {'at least' if bounds[0] == '[' else 'above'} {low:g}"
    return f"in {bounds[0]}{low:g}, {high:g}{bounds[1]}"


def count(name, value, low=1):
    """Return ``value`` as an int of at least ``low``; TypeError or ValueError otherwise."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an integer, got {value!r} ({type(value).__name__})")
    if value < low:
        raise ValueError(f"{name} must be at least {low}, got {value}")
    return int(value)


def flag(name, value):
    """Return a bool, also for 0, 1 and NumPy's bools; TypeError for anything else."""
    of_numpy = getattr(value, "dtype", None) == "bool" and not value.ndim
    if not (isinstance(value, numbers.Integral) or of_numpy) or value not in (0, 1):
        raise TypeError(f"{name} must be True or False, got {value!r} ({type(value).__name__})")
    return bool(value)


def optional(name, value, check, *arguments):
    """Return None, or what a check returns for any other value."""
    return value if value is None else check(name, value, *arguments)


def by(check, *arguments):
    """A check with arguments of its own, as a function of a name and a value."""
    return lambda name, value: check(name, value, *arguments)


def choice(name, value, choices):
    """Return ``value`` if it is one of ``choices``; ValueError that lists them otherwise."""
    # no look-up: what cannot be hashed is none of them
    if value not in (choices := list(choices)):
        raise ValueError(f"{name} must be one of {choices}, got {value!r}{meant(value, choices)}")
    return value


def meant(value, choices):
    """A question for the choice that a string may stand for; empty where there is none.

    That is one that is spelled with other capitals or marks, one that begins so, or a near one.
    """
    if not isinstance(value, str):
        return ""
    text, known = _letters(value), {_letters(c): c for c in choices if isinstance(c, str)}
    longer = [each for each in known if text and each.startswith(text)]
    near = longer or difflib.get_close_matches(text, known, n=1)
    return f"; did you mean {known[near[0]]!r}?" if near else ""


def _letters(text):
    return "".join(filter(str.isalnum, text.casefold()))


def learning_rate(name, value):
    """Return the learning rate as a float, or as the 1-element tensor that it is.

    Raises:
        TypeError: neither a number nor a tensor, or one whose values are not in its storage.
        ValueError: negative, NaN, infinite, or a tensor with several elements.
    """
    if isinstance(value, torch.Tensor):
        if value.numel() != 1:
            raise ValueError(f"Tensor {name} must be 1-element, got shape {tuple(value.shape)}")
        if not value.is_floating_point():
            # a scheduler would round it
            raise TypeError(f"Tensor {name} must hold a floating-point number, got {value.dtype}")
        value = storage.waited(value)
        shards.check_class(name, value)
        # a value on a device is not read here: that would wait for the device; a fake has none
        if value.device.type == "cpu" and not storage.is_fake(shards.local(value)):
            learning_rate(name, value.item())
        return value
    number = _number(name, value, "a float or 1-element tensor")
    if not 0.0 <= number < math.inf:
        raise ValueError(f"Invalid learning rate: {number} ({name} must be finite and at least 0)")
    return number


def items(value):
    """The items of a sequence of any kind (a list, an array) as a tuple; None if it is none."""
    # the numbers of a tensor may be on a device
    others = isinstance(value, (str, bytes, Mapping, Set, torch.Tensor))
    if others or not hasattr(value, "__len__"):
        return None
    try:
        return tuple(value)
    except TypeError:
        # an array without dimensions has a length that raises
        return None


def betas(name, value):
    """Return Adam's two coefficients as floats in [0, 1); any sequence holds them."""
    given = items(value)
    if given is None or len(given) != 2:
        raise ValueError(f"{name} must be two numbers in [0, 1), got {value!r}")
    checked = []
    for i, beta in enumerate(given):
        try:
            checked.append(real(f"{name}[{i}]", beta, 0, 1, "[)"))
        except ValueError as error:
            raise ValueError(f"Invalid beta parameter at index {i}: {beta} ({error})") from None
    return tuple(checked)


def check_params(params: Any) -> Any:
    """Return ``params`` as a list or a set, refusing what is not an iterable of tensors or groups.

    Raises:
        TypeError: None, a module, a dict.
        ValueError: empty.
    """
    if params is None:
        raise TypeError("params must be an iterable of tensors or of groups (dicts), got None")
    if isinstance(params, torch.nn.Module):
        raise TypeError(
            "params must be an iterable of tensors: pass model.parameters(), not the module"
        )
    if isinstance(params, dict) and "params" not in params:
        raise TypeError(
            "params must be an iterable of tensors or of groups: pass model.parameters(), or "
            "model.named_parameters() for their names"
        )
    if isinstance(params, dict):
        raise TypeError("params must be an iterable of groups: wrap the group (a dict) in a list")
    if isinstance(params, torch.Tensor):
        # torch says what is wrong with it
        return params
    # of a set, whose order is another one in every run, torch warns from 2.15 on
    params = params if isinstance(params, set) else list(params)
    if not params:
        raise ValueError(
            "optimizer got an empty parameter list (did you already consume model.parameters()?)"
        )
    return params


def check_parameter(name, p):
    """Refuse a tensor that cannot be a parameter, by the name that it goes by.

    Raises:
        TypeError: an integer tensor.
        ValueError: a tensor that overlaps itself (an expanded one), or a conjugate view.
    """
    if not (p.is_floating_point() or p.is_complex()):
        raise TypeError(
            f"{name} has dtype {p.dtype}: only floating and complex parameters can be optimized; "
            "leave frozen quantised weights out"
        )
    if is_lazy(p):
        # it has no shape yet
        return
    if p.is_conj() or p.is_neg():
        raise ValueError(
            f"{name} is a view that conjugates or negates: its memory holds other values; clone() "
            "it first"
        )
    # a stride of 0 over more than one element: several elements share one address
    sizes = zip(p.shape, p.stride(), strict=True)
    if p.numel() and any(stride == 0 and size > 1 for size, stride in sizes):
        raise ValueError(f"{name} overlaps itself in memory (an expanded tensor): clone it first")
