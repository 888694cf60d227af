# SPDX-License-Identifier: MIT
"""Our optimizers inside the wrappers of frameworks."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from ..optimizers import Optimizer
from ..state.modes import restart_all_edited, unseen_by

Holder = TypeVar("Holder")

# under which wrappers, schedulers and trainers keep optimizers
_ATTRIBUTES = ("optimizer", "_optimizer", "optim", "optimizers", "_optimizers")


def find(holder: object) -> Optimizer:
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


def find_all(holder: object) -> list[Optimizer]:
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
def at_iterate(holder: Holder) -> Iterator[Holder]:
    """``Optimizer.at_iterate`` of all optimizers that something holds; see ``find``.

    Those in train mode come back to it, bit for bit, when the ``with`` block ends or raises. Not
    between a forward pass and its backward pass: the parameters that autograd saved are written.
    Memory: as ``Optimizer.eval``.

    Optimizers may share parameters: what one of them writes here is no edit for the others, and
    they come back in reverse order. Inside the block a shared parameter is x of the last of them.

    Args:
        holder: as in ``find``.

    Raises:
        TypeError: it holds no optimizer of this library.
    """
    optimizers = find_all(holder)
    were_training = [each for each in optimizers if each.training]
    try:
        eval_all(optimizers)
        yield holder
    finally:
        train_all(were_training)


def eval_all(optimizers: Iterable[Optimizer]) -> None:
    """``eval()`` of optimizers that may share parameters."""
    to_eval = [each for each in optimizers if each.training]
    if len(to_eval) > 1:
        # before the first of them writes, which would hide other writes
        for each in to_eval:
            restart_all_edited(each)
    for each in to_eval:
        with unseen_by(other for other in to_eval if other is not each):
            each.eval()


def train_all(optimizers: Sequence[Optimizer]) -> None:
    """``train()`` of optimizers that may share parameters, in the order opposite to ``eval_all``.

    An error of one does not keep the others from coming back.
    """
    with contextlib.ExitStack() as stack:
        for each in optimizers:
            stack.callback(_train, each, optimizers)


def _train(optimizer, optimizers):
    with unseen_by(other for other in optimizers if other is not optimizer):
        optimizer.train()


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
