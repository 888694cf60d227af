"""Our optimizers inside the wrappers of frameworks."""

import contextlib

from .optimizer import Optimizer

# under which wrappers, schedulers and trainers keep optimizers
_ATTRIBUTES = ("optimizer", "_optimizer", "optim", "optimizers", "_optimizers")


def find(holder):
    """The optimizer of this library that something holds: a wrapper, a scheduler, a trainer.

    Follows ``.optimizer``, ``._optimizer``, ``.optim``, ``.optimizers`` and ``._optimizers``, lists
    and dicts, as deep as they go: Accelerate's, Lightning's and Fabric's optimizers, a
    ``ZeroRedundancyOptimizer``, DeepSpeed's engine, torch's schedulers, ``transformers.Trainer``,
    ``lightning.Trainer``. A ``Wrap`` is what is found, not what it wraps.

    Args:
        holder: an optimizer of this library, or what holds one.

    Raises:
        TypeError: there is none; the message says what was looked at.
        ValueError: there are several: ``find_all`` returns them.
    """
    found = find_all(holder)
    if len(found) > 1:
        names = ", ".join(type(each).__name__ for each in found)
        raise ValueError(
            f"{_type_name(holder)} holds {len(found)} optimizers of emanest ({names}); find_all "
            "returns them all"
        )
    return found[0]


def find_all(holder):
    """All optimizers of this library that something holds, each once, in order; see ``find``.

    Optimizers of other libraries beside them are passed over.

    Args:
        holder: as in ``find``.

    Raises:
        TypeError: there is none; the message says what was looked at.
    """
    seen, found, looked_at = {}, [], []
    _walk(holder, "", seen, found, looked_at)
    if not found:
        raise TypeError(
            f"no optimizer of emanest was found; looked at {', '.join(looked_at)}. Pass one, or "
            f"what holds it as .{', .'.join(_ATTRIBUTES)}, in a list or in a dict"
        )
    return found


@contextlib.contextmanager
def at_iterate(holder):
    """``Optimizer.at_iterate`` of all optimizers that something holds; see ``find``.

    Those in train mode come back to it, bit for bit, when the ``with`` block ends or raises. Not
    between a forward pass and its backward pass: the parameters that autograd saved are written.
    Memory: one value of the parameter's dtype for every parameter that is ahead.

    Args:
        holder: as in ``find``.

    Raises:
        TypeError: it holds no optimizer of this library.
    """
    with contextlib.ExitStack() as stack:
        for optimizer in find_all(holder):
            stack.enter_context(optimizer.at_iterate())
        yield holder


def _walk(holder, path, seen, found, looked_at):
    if id(holder) in seen:
        return
    # kept alive: the id of what has been freed may come back
    seen[id(holder)] = holder
    # Lightning's wrappers imitate the class of what they hold
    if isinstance(holder, Optimizer) and "_optimizer" not in vars(holder):
        found.append(holder)
        return
    looked_at.append(f"{_type_name(holder)} ({path})" if path else _type_name(holder))
    for step, inner in _inner(holder):
        _walk(inner, path + step, seen, found, looked_at)


def _inner(holder):
    if isinstance(holder, (list, tuple)):
        return [(f"[{i}]", inner) for i, inner in enumerate(holder)]
    if isinstance(holder, dict):
        return [(f"[{key!r}]", inner) for key, inner in holder.items()]
    return [(f".{name}", getattr(holder, name)) for name in _ATTRIBUTES if hasattr(holder, name)]


def _type_name(holder):
    kind = type(holder)
    module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
    return module + kind.__qualname__
