"""The reference back end: the rules on torch tensors, on any device.

Every back end is a module with these three functions. Tensors of one call share a device and a
dtype; ``dtype`` is the dtype of the arithmetic. State is one tuple of tensors per parameter.
"""

import torch

from .rules import BASES, LOOKAHEADS, POINTS, step


def step_(base, look, ys, gs, base_state, look_state, base_numbers, look_numbers, scale, dtype):
    """Advance parameters by one step, in place.

    Args:
        base, look: rows of ``rules.BASES`` and ``rules.LOOKAHEADS``.
        ys: parameters, each at its gradient point; any shape, any real floating dtype.
        gs: gradients, shaped as ``ys``; any real floating dtype.
        base_state, look_state: for each parameter, the tensors that the rule unpacks.
        base_numbers, look_numbers: the numbers that the rules unpack; floats or 0-d tensors.
        scale: factor of the gradients (-1 to maximize).
        dtype: float32 or float64.
    """
    base, look = BASES[base].function, LOOKAHEADS[look].function
    base_numbers, look_numbers = _scalars(base_numbers, dtype), _scalars(look_numbers, dtype)
    for y, g, old_base, old_look in zip(ys, gs, base_state, look_state, strict=True):
        g = g.to(dtype) * scale
        new_y, new_base, new_look = step(
            base, look, y.to(dtype), g, old_base, old_look, base_numbers, look_numbers
        )
        _write(y, new_y, (*old_base, *old_look), (*new_base, *new_look))


def follow_(look, ys, snapshots, look_state, look_numbers, dtype):
    """Apply a lookahead rule to what another optimizer did, in place.

    Args:
        look, look_state, look_numbers, dtype: as in ``step_``.
        ys: parameters as the other optimizer left them (w).
        snapshots: the same before its step (y), of the same dtype; receive the new y.
    """
    look = LOOKAHEADS[look].function
    look_numbers = _scalars(look_numbers, dtype)
    for y, snapshot, old in zip(ys, snapshots, look_state, strict=True):
        w = y.to(dtype)
        new_y, new = look(w, w - snapshot.to(dtype), old, look_numbers)
        _write(y, new_y, old, new)
        snapshot.copy_(y)


def move_(point, ys, state, numbers, dtype):
    """Move parameters between x and y, in place.

    Args:
        point: a row of ``rules.POINTS``.
        ys: parameters.
        state: for each parameter, the one tensor that the rule unpacks.
        numbers, dtype: as in ``step_``.
    """
    move = POINTS[point].function
    for y, tensors in zip(ys, state, strict=True):
        y.copy_(move(y.to(dtype), tensors, _scalars(numbers, dtype)))


def _scalars(numbers, dtype):
    # a 0-d tensor of another dtype would promote 0-d parameters
    return tuple(n.to(dtype) if isinstance(n, torch.Tensor) else n for n in numbers)


def _write(y, new_y, old_state, new_state):
    # state first: what a rule hands on as state may be the parameter itself
    for old, new in zip(old_state, new_state, strict=True):
        if new is not old:
            old.copy_(new)
    y.copy_(new_y)
