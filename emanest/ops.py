"""What optimizers call: the functions of the back ends, as operators where a graph is traced.

``step_``, ``follow_``, ``move_``, ``momentum_``, ``rows_`` and ``nonfinite`` have the signatures of
``emanest.eager`` and one more argument, ``backend``: the choice of the group. They call the back
end without passing through torch's dispatcher. While ``torch.compile`` or ``torch.export`` traces,
they put the operators ``torch.ops.emanest.*`` into the graph instead, one node each. Numbers that
are given as a vector are an input of the graph, so that others need no new graph.

Nothing here can be differentiated: call it under ``torch.no_grad()``.
"""

import torch

from . import backends

# arguments as in emanest.eager, but columns of state are one list, and numbers always a vector
ARGUMENTS = {
    "step_": (
        "str base, str look, Tensor(a!)[] ys, Tensor[] gs, Tensor(b!)[] base_state, "
        "Tensor(c!)[] look_state, Tensor numbers, ScalarType dtype, Tensor? skip, Tensor[] scales, "
        "str? backend"
    ),
    "follow_": (
        "str look, Tensor(a!)[] ys, Tensor(b!)[] snapshots, Tensor(c!)[] look_state, "
        "Tensor numbers, ScalarType dtype, Tensor? skip, str? backend"
    ),
    "move_": (
        "str point, Tensor(a!)[] ys, Tensor[] state, Tensor numbers, ScalarType dtype, str? backend"
    ),
    "momentum_": (
        "str name, Tensor(a!)[] us, Tensor[] gs, Tensor(b!)[] state, Tensor(c!) squares, "
        "Tensor numbers, ScalarType dtype, Tensor? skip, str? backend"
    ),
    "rows_": (
        "str name, Tensor[] os, Tensor(a!)[] state, Tensor[] scales, Tensor(b!)[] factors, "
        "Tensor numbers, ScalarType dtype, Tensor? skip, str? backend"
    ),
    "nonfinite": "Tensor[] gs, str? backend",
}
RETURNS = {"nonfinite": "Tensor"}


def step_(
    base,
    look,
    ys,
    gs,
    base_state,
    look_state,
    numbers,
    dtype,
    skip=None,
    scales=(),
    memo=None,
    backend=None,
):
    """As ``eager.step_``."""
    args = (base, look, ys, gs, base_state, look_state, numbers, dtype, skip, scales)
    _call("step_", ys, args, memo, backend)


def follow_(look, ys, snapshots, look_state, numbers, dtype, skip=None, memo=None, backend=None):
    """As ``eager.follow_``."""
    _call("follow_", ys, (look, ys, snapshots, look_state, numbers, dtype, skip), memo, backend)


def move_(point, ys, state, numbers, dtype, memo=None, backend=None):
    """As ``eager.move_``."""
    _call("move_", ys, (point, ys, state, numbers, dtype), memo, backend)


def momentum_(name, us, gs, state, squares, numbers, dtype, skip=None, memo=None, backend=None):
    """As ``eager.momentum_``."""
    _call("momentum_", us, (name, us, gs, state, squares, numbers, dtype, skip), memo, backend)


def rows_(name, os, state, scales, factors, numbers, dtype, skip=None, memo=None, backend=None):
    """As ``eager.rows_``."""
    args = (name, os, state, scales, factors, numbers, dtype, skip)
    _call("rows_", os, args, memo, backend)


def nonfinite(gs, memo=None, backend=None):
    """As ``eager.nonfinite``."""
    return _call("nonfinite", gs, (gs,), memo, backend)


def _call(name, tensors, args, memo, backend):
    if torch.compiler.is_compiling():
        packed = [_pack(*each) for each in zip(_NAMES[name], args, strict=False)]
        return getattr(torch.ops.emanest, name)(*packed, backend)
    if torch.is_grad_enabled():
        _refuse_gradients(name, args)
    return backends.call(name, tensors[0].device.type, backend, *args, memo)


# ---- the operators ------------------------------------------------------------------------------

_NAMES = {
    name: [argument.split()[-1] for argument in arguments.split(", ")]
    for name, arguments in ARGUMENTS.items()
}
_COLUMNS = frozenset({"base_state", "look_state", "state"})


def _pack(name, value):
    """An argument of a back end as the operator takes it."""
    if name in _COLUMNS:
        return [tensor for column in value for tensor in column]
    if name == "numbers" and not isinstance(value, torch.Tensor):
        return torch.tensor(value, dtype=torch.float64, device="cpu")
    return value


def _unpack(name, value, count):
    """An argument of the operator as a back end takes it."""
    if name in _COLUMNS:
        return [value[i : i + count] for i in range(0, len(value), count)]
    if name == "numbers" and value.device.type == "cpu":
        # numbers of the host, which are not rounded to float32 before they are used
        return tuple(value.tolist())
    return value


def _kernel(name):
    """The operator on tensors: it unpacks and calls."""

    def kernel(*args):
        *args, backend = args
        tensors = next(arg for arg in args if isinstance(arg, list))
        each = zip(_NAMES[name], args, strict=False)
        unpacked = [_unpack(n, arg, len(tensors)) for n, arg in each]
        return backends.call(name, tensors[0].device.type, backend, *unpacked, None)

    return kernel


def _autograd(name):
    """The operator on tensors that may require a gradient: it refuses."""

    def autograd(*args):
        if torch.is_grad_enabled():
            _refuse_gradients(name, args)
        with torch._C._AutoDispatchBelowAutograd():
            return getattr(torch.ops.emanest, name)(*args)

    return autograd


def _refuse_gradients(name, args):
    if any(tensor.requires_grad for tensor in _tensors(args)):
        raise RuntimeError(
            f"emanest {name} cannot be differentiated, but one of its tensors requires a gradient; "
            "call it under torch.no_grad()"
        )


def _tensors(value):
    """All tensors in nested lists."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _tensors(each)


def _fake(*args):
    """An operator on tensors without values: all but ``nonfinite`` return nothing."""


def _fake_nonfinite(gs, backend):
    return gs[0].new_empty(1, dtype=torch.float32)


def _register():
    """Register the operators; those of an earlier import of this module are taken down."""
    namespace = vars(torch.ops.emanest)
    if "_library" in namespace:
        namespace["_library"]._destroy()
    library = torch.library.Library("emanest", "FRAGMENT")
    for name, arguments in ARGUMENTS.items():
        library.define(f"{name}({arguments}) -> {RETURNS.get(name, '()')}")
        library.impl(name, _kernel(name), "CompositeExplicitAutograd")
        library.impl(name, _autograd(name), "Autograd")
        fake = _fake_nonfinite if name in RETURNS else _fake
        torch.library.register_fake(f"emanest::{name}", fake, lib=library)
    namespace["_library"] = library


_register()
