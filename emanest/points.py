"""Between x and y: what ``eval``, ``train`` and edits from outside do to the parameters.

y is kept aside in ``state[p]["y"]`` while a parameter that is ahead holds x.
"""

import warnings

import torch

from . import ops
from .lookahead import method_of
from .rules import POSITIONS

# unlike torch.compiler.disable this does not import dynamo
_eager = torch._disable_dynamo  # pyright: ignore[reportPrivateImportUsage]


@_eager
def to_x(optimizer):
    """Write x into every parameter that is ahead, keep its y, and enter eval mode."""
    for _, method, bucket, indices in _stateful(optimizer):
        _restart(optimizer, method, bucket, indices)
    ahead = [
        (group, method, bucket, same, b)
        for group, method, bucket, indices in _stateful(optimizer)
        for b, same in bucket.scalars.ahead(indices).items()
        if b != 0
    ]
    # all copies before the first move: running out of memory then changes nothing
    kept = [[_clone(bucket.tensors[i]) for i in same] for _, _, bucket, same, _ in ahead]
    for (group, method, bucket, same, b), ys in zip(ahead, kept, strict=True):
        for i, y in zip(same, ys, strict=True):
            bucket.set_aside(i, y)
        _move(method.points[0], group, method, bucket, same, b)
    _enter(optimizer, train_mode=False)


@_eager
def to_y(optimizer):
    """Bring back every y that was kept, take edited parameters as new x, enter train mode."""
    # all edits are looked up before the first write, which may touch shared version counters
    found = [(*each, set(each[2].writes.edited(each[3]))) for each in _stateful(optimizer)]
    for group, method, bucket, indices, edited in found:
        for b, same in bucket.scalars.ahead(indices).items():
            ours = [i for i in same if i not in edited]
            lost = [i for i in ours if not _restore(bucket, i)] if b != 0 else []
            _recompute(optimizer, group, method, bucket, lost, b)
            _take_as_x(group, method, bucket, [i for i in same if i in edited], b)
        for i in indices:
            bucket.take_back(i)
    _enter(optimizer, train_mode=True)


def follow_edits(optimizer, chosen):
    """Before a step: methods that keep positions restart from parameters that were edited.

    For the others x and y have moved together and nothing is to be done.
    """
    for group, buckets in zip(optimizer.param_groups, chosen, strict=True):
        method = method_of(group)
        for bucket, indices in buckets.items():
            if method is not None:
                _restart(optimizer, method, bucket, indices)


def _restart(optimizer, method, bucket, indices):
    edited = bucket.writes.edited(indices)
    if edited and _positions(method):
        _anchor(method, bucket, edited)
        _warn_once(
            optimizer,
            f"{len(edited)} parameters were written since the last step; "
            f"{type(method).__name__} restarts from their new values",
        )


@_eager
def mark_edited(optimizer):
    """Treat every parameter as edited."""
    for _, _, bucket, indices in _stateful(optimizer):
        bucket.writes.forget(indices)


def _stateful(optimizer):
    """(group, method, bucket, indices) of all parameters with state under a lookahead."""
    for group in optimizer.param_groups:
        method = method_of(group)
        if method is not None:
            for bucket, indices in optimizer.housed(group).items():
                yield group, method, bucket, indices


def _enter(optimizer, train_mode):
    for group in optimizer.param_groups:
        group["train_mode"] = train_mode
    for _, _, bucket, indices in _stateful(optimizer):
        bucket.writes.record(indices)


def _clone(p):
    return p.detach().clone(memory_format=torch.preserve_format)


@torch.no_grad()
def _restore(bucket, i):
    y = bucket.aside(i)
    if y is not None:
        bucket.tensors[i].copy_(y)
    return y is not None


def _recompute(optimizer, group, method, bucket, indices, b):
    """Find y again from x for parameters that were loaded in eval mode without their y."""
    if not indices:
        return
    if method.points[1] is not None:
        _move(method.points[1], group, method, bucket, indices, b)
        how = "recomputed from x (within rounding)"
    else:
        _anchor(method, bucket, indices)
        how = "lost: training goes on from x"
    _warn_once(
        optimizer,
        f"the state was loaded in eval mode without y; y is {how}. Save in train mode to resume "
        "bit for bit",
    )


def _take_as_x(group, method, bucket, indices, b):
    if _positions(method):
        _anchor(method, bucket, indices)
    elif b != 0 and indices:
        _move(method.points[1], group, method, bucket, indices, b)


def _positions(method):
    return [name for name in method.state if name in POSITIONS]


@torch.no_grad()
def _anchor(method, bucket, indices):
    """Put all positions of a parameter where the parameter is: x = y = z."""
    for i in indices:
        for name in _positions(method):
            bucket.views[name][i].copy_(bucket.tensors[i])
        bucket.scalars.arrive(i)


@torch.no_grad()
def _move(point, group, method, bucket, indices, b):
    ops.move_(
        point,
        bucket.reals(bucket.members(indices)),
        bucket.columns(method.state[:1], indices),
        (b,),
        bucket.dtype,
        bucket.memo(indices),
        group.get("backend"),
    )


def _warn_once(optimizer, message):
    if not vars(optimizer).setdefault("_warned", False):
        optimizer._warned = True
        warnings.warn(f"emanest: {message}", stacklevel=3)
