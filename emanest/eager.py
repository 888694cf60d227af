"""The reference back end: the rules on torch tensors, on any device.

Every back end is a module with these five functions. Tensors of one call share a device, and
parameters a dtype; ``dtype`` is the dtype of the arithmetic. State comes as columns: for each name
that the rule unpacks, a list with one tensor per parameter.
"""

import torch

from .rules import BASES, LOOKAHEADS, POINTS, step
from .tape import evaluate


def step_(base, look, ys, gs, base_state, look_state, numbers, dtype, skip=None, memo=None):
    """Advance parameters by one step, in place.

    Args:
        base, look: rows of ``rules.BASES`` and ``rules.LOOKAHEADS``.
        ys: parameters, each at its gradient point; any shape, any real floating dtype.
        gs: gradients, shaped as ``ys``; any real floating dtype.
        base_state, look_state: columns of tensors, in the order in which the rules unpack them.
        numbers: a factor of the gradients (-1 to maximize), then the base's numbers, then the
            lookahead's: floats, or one vector on the device.
        dtype: float32 or float64.
        skip: a 1-element float32 tensor on the device, nothing changes unless it holds 0; or None.
        memo: a dict that the caller keeps with these tensors, for what a back end derives from
            them; None: nothing is kept.
    """
    base, look = BASES[base], LOOKAHEADS[look]
    scale, *numbers = _scalars(numbers, dtype)
    base_numbers, look_numbers = numbers[: len(base.numbers)], numbers[len(base.numbers) :]
    states = zip(_rows(base_state, ys), _rows(look_state, ys), strict=True)
    for y, g, (old_base, old_look) in zip(ys, gs, states, strict=True):
        g = g.to(dtype) * scale
        new_y, new_base, new_look = step(
            *(base.function, look.function, y.to(dtype), g, old_base, old_look),
            *(base_numbers, look_numbers),
        )
        _write((*old_base, *old_look, y), (*new_base, *new_look, new_y), skip)


def follow_(look, ys, snapshots, look_state, numbers, dtype, skip=None, memo=None):
    """Apply a lookahead rule to what another optimizer did, in place.

    Args:
        look, look_state, dtype, skip, memo: as in ``step_``.
        ys: parameters as the other optimizer left them (w).
        snapshots: the same before its step (y), of the same dtype; receive the new y.
        numbers: those of the lookahead.
    """
    look, numbers = LOOKAHEADS[look].function, _scalars(numbers, dtype)
    for y, snapshot, old in zip(ys, snapshots, _rows(look_state, ys), strict=True):
        w = y.to(dtype)
        new_y, new = look(w, w - snapshot.to(dtype), old, numbers)
        _write((*old, y, snapshot), (*new, new_y, new_y), skip)


def move_(point, ys, state, numbers, dtype, memo=None):
    """Move parameters between x and y, in place.

    Args:
        point: a row of ``rules.POINTS``.
        ys: parameters.
        state: the columns that the rule unpacks.
        numbers, dtype, memo: as in ``step_``.
    """
    move, numbers = POINTS[point].function, _scalars(numbers, dtype)
    for y, tensors in zip(ys, _rows(state, ys), strict=True):
        y.copy_(move(y.to(dtype), tensors, numbers))


def nonfinite(gs, memo=None):
    """Whether any value is NaN or infinite: 1 or 0, as a 1-element float32 tensor on the device."""
    bad = torch.zeros(1, dtype=torch.float32, device=gs[0].device)
    for g in gs:
        bad += ~torch.isfinite(g).all()
    return bad.clamp_(max=1)


def plan_(program, inputs, constants, out, skip=None):
    """Evaluate a program; unless it is skipped, move those inputs on that have a next value.

    Args:
        program, constants: from ``tape.Tape.finish``.
        inputs: values of ``program.inputs``: numbers, or 1-element tensors on one device.
        out: a vector of float64 there; receives the numbers, then what was moved on as it was.
        skip: as in ``step_``.
    """
    values = [_double(v.reshape(())) if isinstance(v, torch.Tensor) else v for v in inputs]
    numbers, new = evaluate(program, values, constants, _double)
    old = [values[i] for i, _ in program.after]
    # copies, made before the first write: a value may be an input itself
    every = torch.stack(
        [v if isinstance(v, torch.Tensor) else out.new_full((), v) for v in (*numbers, *old, *new)]
    )
    out.copy_(every[: len(out)])
    now, then = every[len(numbers) : len(out)], every[len(out) :]
    kept = then if skip is None else torch.where(skip != 0, now, then)
    for (i, _), value in zip(program.after, kept, strict=True):
        inputs[i].copy_(value)


def _double(value):
    return value.double() if isinstance(value, torch.Tensor) else float(value)


def _rows(columns, like):
    """For each parameter the tuple of its state."""
    return list(zip(*columns, strict=True)) if columns else [()] * len(like)


def _scalars(numbers, dtype):
    # a 0-d tensor of another dtype would promote 0-d parameters
    return numbers.to(dtype).unbind() if isinstance(numbers, torch.Tensor) else numbers


def _write(old, new, skip):
    # state before parameters: what a rule hands on as state may be the parameter itself
    for to, value in zip(old, new, strict=True):
        if value is not to:
            to.copy_(value if skip is None else torch.where(skip.view(()) != 0, to, value))
