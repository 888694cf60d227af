# SPDX-License-Identifier: MIT
"""The reference back end: the rules on torch tensors, on any device.

Every back end is a module with these functions. Tensors of one call share a device, and
parameters a dtype; ``dtype`` is the dtype of the arithmetic. State comes as columns: for each name
that the rule unpacks, a list with one tensor per parameter.
"""

import functools
import itertools
import types

import torch

from ..rules import FORMULAS, NORMS, PASSES, ROWS, evened
from .layout import by_row
from .per_tensor import each
from .products import PRODUCTS
from .program import evaluate


def apply_(
    name, rules, ys, inputs, state, numbers, dtype, skip=None, scales=(), squares=None, memo=None
):
    """Do a pass over parameters, in place.

    Args:
        name: a row of ``rules.PASSES``: "step", "follow" (the lookahead after a step that another
            optimizer took), "move" (between x and y) or "momentum" (gradients to momenta).
        rules: names of its rules.
        ys: parameters; any shape, any real floating dtype. For "step" and "move" each at its
            gradient point y, or at x; for "follow" as the other optimizer left them; for "momentum"
            tensors that receive the updates.
        inputs: gradients, shaped as ``ys``, of any real floating dtype; for "follow" the parameters
            before the step, of the same dtype, which receive the new y, too; for "move" nothing.
        state: columns of tensors, those of each rule in turn, as the rules unpack them; of any real
            floating dtype, rounded as it is written.
        numbers: for "step" and "momentum" a factor of the gradients (-1 to maximize), then those of
            each rule in turn: floats, or one vector on the device; or a ``PerTensor`` of either
            where tensors have numbers of their own, with the bits of a call for each.
        dtype: float32 or float64.
        skip: a 1-element float32 tensor on the device, nothing changes unless it holds 0; or None.
        scales: of "step": for each parameter a vector of ``dtype`` with further factors of its
            gradient, one in all or one for each row (all that shares the first index, or the first
            few); or nothing.
        squares: of "momentum": a float64 vector on the device; receives for each update the sum of
            its squares, added up in float64 before the update is rounded to the dtype of ``ys``.
            None: they are not found.
        memo: a dict that the caller keeps with these tensors, for what a back end derives from
            them; None: nothing is kept.
    """
    pass_ = PASSES[name]
    rows = pass_.rows(rules)
    function = functools.partial(pass_.function, *(_rounded(row.function) for row in rows))
    columns = {"y": ys, "input": inputs}
    read, written = (
        zip(*(columns[name] for name in names), strict=True)
        for names in (pass_.reads, pass_.writes)
    )
    factors = map(by_row, scales, ys) if scales else [1.0] * len(ys)
    every = zip(read, written, factors, _rows(state, ys), _given(numbers, ys, dtype), strict=True)
    for i, (given, to, factor, old, own) in enumerate(every):
        values, own = [t.to(dtype) for t in given], iter(own)
        states = iter([t.to(dtype) for t in old])
        if pass_.factor:
            values[-1] = values[-1] * next(own) * factor
        numbers = [tuple(itertools.islice(own, len(row.numbers))) for row in rows]
        states = [tuple(itertools.islice(states, len(row.state))) for row in rows]
        value, *new = function(*values, *states, *numbers)
        # state before parameters: what a rule hands on as state may be the parameter itself
        pairs = [*zip(old, itertools.chain(*new), strict=True), *((t, value) for t in to)]
        if squares is not None:
            pairs.append((squares[i], value.double().square().sum()))
        _write(pairs, skip)


def rows_(name, os, state, scales, factors, numbers, dtype, skip=None, memo=None):
    """Find for each row of a matrix a factor that evens rows out and keeps the matrix's norm.

    Args:
        name: a row of ``rules.ROWS``.
        os: matrices, of one real floating dtype, each contiguous; only read.
        state: columns of tensors of ``dtype`` with one element for each row.
        scales: for each matrix a 1-element vector of ``dtype``, which multiplies its factors.
        factors: for each matrix a vector of ``dtype``; receives a factor for each row.
        numbers: the rule's, as in ``apply_``; the last of them are its norm rule's, too.
        dtype, skip, memo: as in ``apply_``.
    """
    row = ROWS[name]
    norm, rule = NORMS[row.norm], _rounded(row.function)
    every = zip(os, _rows(state, os), scales, factors, _given(numbers, os, dtype), strict=True)
    for o, old, scale, factor, own in every:
        squares = o.double().square().sum(1)
        mean_square = (squares / max(o.shape[1], 1)).to(dtype)
        wide = tuple([t.to(dtype) for t in old])
        value, new = rule(mean_square.view_as(old[0]), wide, own)
        evening = value.double().flatten()
        # with roots as torch has them: of sums, whose last bits depend on the back end anyway
        norms = squares.sum(), evened(evening, squares).sum()
        kept = norm.function(*norms, own[len(own) - len(norm.numbers) :])
        new = *new, (evening * kept).to(dtype) * scale
        _write(zip((*old, factor), new, strict=True), skip)


def nonfinite(gs, memo=None):
    """Whether any value is NaN or infinite: 1 or 0, as a 1-element float32 tensor on the device."""
    bad = torch.zeros(1, dtype=torch.float32, device=gs[0].device)
    for g in gs:
        bad += ~torch.isfinite(g).all()
    return bad.clamp_(max=1)


def plan_(program, inputs, constants, out, skip=None):
    """Evaluate a program; unless it is skipped, move those inputs on that have a next value.

    Args:
        program, constants: from ``program.record``.
        inputs: values of ``program.inputs``: numbers, or 1-element tensors on one device.
        out: a vector of float64 there; receives the numbers, then what was moved on as it was.
        skip: as in ``apply_``.
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


def products(device_type):
    """The namespace of matrix products that Newton-Schulz is written against."""
    return PRODUCTS


# where torch's roots are MKL's, about one of 150 is a neighbour of the nearest number. A root in
# float64 is near enough to be rounded to float32; that of a complex number is the C library's
_ROOTS = {
    torch.float32: lambda a: a.double().sqrt().float(),
    torch.float64: lambda a: torch.complex(a, torch.zeros_like(a)).sqrt().real,
}


def _root(a):
    """The nearest numbers to square roots."""
    by_mkl = a.device.type == "cpu" and torch.backends.mkl.is_available()
    return _ROOTS[a.dtype](a) if by_mkl else a.sqrt()


@functools.cache
def _rounded(rule):
    """A rule's function in which roots, and those of what it calls, are rounded correctly."""
    called = {f.__name__: f for f in FORMULAS if f.__name__ in rule.__code__.co_names}
    scope = {**rule.__globals__, "root": _root, **{n: _rounded(f) for n, f in called.items()}}
    return types.FunctionType(rule.__code__, scope, rule.__name__)


def _double(value):
    return value.double() if isinstance(value, torch.Tensor) else float(value)


def _rows(columns, like) -> list[tuple]:
    """For each parameter the tuple of its state."""
    return list(zip(*columns, strict=True)) if columns else [()] * len(like)


def _given(numbers, tensors, dtype):
    """For each tensor its numbers, as scalars."""
    values, of = each(numbers, tensors)
    # a 0-d tensor of another dtype would promote 0-d parameters
    values = [v.to(dtype).unbind() if isinstance(v, torch.Tensor) else v for v in values]
    return [values[i] for i in of]


def _write(pairs, skip):
    for to, value in pairs:
        if value is not to:
            to.copy_(value if skip is None else torch.where(skip.view(()) != 0, to, value))
