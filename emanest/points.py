"""Between x and y: what ``eval``, ``train`` and edits from outside do to the parameters.

y is kept aside in ``state[p]["y"]`` while a parameter that is ahead holds x. From it and from state
x can be found again, which tells whether a parameter that was written holds other bits than before.
"""

import contextlib

import torch

from . import backends, capture
from .lookahead import method_of
from .options import warn
from .rules import LOOKAHEAD_STATE, POSITIONS

# unlike torch.compiler.disable this does not import dynamo
_eager = torch._disable_dynamo  # pyright: ignore[reportPrivateImportUsage]


@_eager
def to_x(optimizer):
    """Write x into every parameter that is ahead, keep its y, and enter eval mode."""
    _leave(optimizer)
    stateful = list(_stateful(optimizer))
    _restart(optimizer, (each[1:] for each in stateful))
    moves = [
        (method.points[0], group, method, bucket, same, b)
        for group, method, bucket, indices in stateful
        for b, same in bucket.scalars.ahead(indices).items()
        if b != 0 or _keeps_x(method) or optimizer.buckets.owned
    ]
    with _all_or_nothing(optimizer, moves) as kept:
        for (*_, bucket, same, _), ys in zip(moves, kept, strict=True):
            for i, y in zip(same, ys, strict=True):
                bucket.set_aside(i, y)
        for move in moves:
            if move[-1] != 0:
                _move(*move)
        _enter(optimizer, train_mode=False)


@_eager
def to_y(optimizer):
    """Bring back every y that was kept, take edited parameters as new x, enter train mode."""
    _leave(optimizer)
    moves, anchors, kept = [], [], []
    # all edits are looked up before the first write, which may touch shared version counters
    for group, method, bucket, indices in _stateful(optimizer):
        edited = set(_edited_at_x(group, method, bucket, indices))
        for b, same in bucket.scalars.ahead(indices).items():
            unedited = [i for i in same if i not in edited]
            lost = [i for i in unedited if b != 0 and bucket.aside(i) is None]
            kept.append((bucket, [i for i in unedited if bucket.aside(i) is not None]))
            _warn_of_lost(optimizer, method, lost)
            found = [i for i in same if i in edited]
            for written, anchored in ((found, _positions(method)), (lost, _unknown_y(method))):
                if anchored:
                    anchors.append((method, bucket, written))
                elif written and b != 0:
                    moves.append((method.points[1], group, method, bucket, written, b))
    with _all_or_nothing(optimizer, moves):
        for move in moves:
            _move(*move)
        for anchor in anchors:
            _anchor(*anchor)
        for bucket, indices in kept:
            _restore(bucket, indices)
        for entries in _entries(optimizer, optimizer.param_groups):
            entries.pop(optimizer._key("y"), None)
        _enter(optimizer, train_mode=True)


def _edited_at_x(group, method, bucket, indices):
    """Those parameters that were written since ``eval`` and do not hold the x of then."""
    written = bucket.writes.written(indices)
    return bucket.differing(
        (i, _x_of_then(group, method, bucket, i, b))
        for b, same in bucket.scalars.ahead(written).items()
        for i in same
    )


def _x_of_then(group, method, bucket, i, b):
    """What a parameter held after ``eval``; None where that cannot be told."""
    y = bucket.aside(i)
    if y is not None:
        return y if b == 0 else x_of(y, group, method, bucket, i, b)
    # found by a back end, which rounds NaN as the step did
    at_rest = b == 0 and method.rests
    return x_of(bucket.tensors[i], group, method, bucket, i, b) if at_rest else None


def x_of(y, group, method, bucket, i, b):
    """The x that belongs to a parameter's y, a tensor of the same dtype."""
    x = _clone(y)
    backends.call(
        "move_",
        bucket.device.type,
        group.get("backend"),
        method.points[0],
        bucket.reals([x]),
        bucket.columns(method.state[:1], [i]),
        (b,),
        bucket.dtype,
    )
    return x


@contextlib.contextmanager
def _all_or_nothing(optimizer, moves):
    """Give copies of the parameters that moves write; where the block raises, put them back.

    Then the mode and every y that was kept are as before, and what was ours counts as ours.
    """
    stateful = [each[2:] for each in _stateful(optimizer)]
    # all copies before the first move: running out of memory then changes nothing
    kept = [[_clone(bucket.tensors[i]) for i in same] for *_, bucket, same, _ in moves]
    aside = [(bucket, i, bucket.aside(i)) for bucket, indices in stateful for i in indices]
    unedited = optimizer.buckets.unedited()
    training = optimizer._training
    try:
        yield kept
    except BaseException:
        for (*_, bucket, same, _), tensors in zip(moves, kept, strict=True):
            for i, tensor in zip(same, tensors, strict=True):
                _write(bucket, i, tensor)
        for bucket, i, y in aside:
            if y is None:
                bucket.take_back(i)
            else:
                bucket.set_aside(i, y)
        optimizer.buckets.record(unedited)
        for group in optimizer.param_groups:
            group["train_mode"] = training
        raise


def follow_edits(optimizer, chosen):
    """Before a step: methods that keep positions restart from parameters that were edited.

    For the others x and y have moved together and nothing is to be done.
    """
    _restart(
        optimizer,
        (
            (method, bucket, indices)
            for group, buckets in zip(optimizer.param_groups, chosen, strict=True)
            if (method := method_of(group)) is not None
            for bucket, indices in buckets.items()
        ),
    )


def _restart(optimizer, stateful):
    counts = {}
    for method, bucket, indices in stateful:
        edited = bucket.writes.edited(indices)
        if edited and _positions(method):
            capture.refuse(
                bucket.device.type,
                f"{len(edited)} parameters were written since the last step, and every replay "
                f"would restart {type(method).__name__} from where they are; write them inside "
                "`with opt.part_of_step():`, or before a step outside of the capture",
            )
            _anchor(method, bucket, edited)
            name = type(method).__name__
            counts[name] = counts.get(name, 0) + len(edited)
    for name, count in counts.items():
        _warn_once(
            optimizer,
            ("edited", name),
            f"{count} parameters were written since the last step; {name} restarts from their new "
            "values. What belongs to every step (clamping, SAM) is to be written inside `with "
            "opt.part_of_step():`, which keeps its state",
        )


@contextlib.contextmanager
def part_of_step(optimizer):
    """What is written to parameters in a ``with`` block is no edit; see the optimizer's method."""
    before = optimizer.buckets.owned
    optimizer.buckets.own(True)
    try:
        yield
    finally:
        if not optimizer._training:
            # their bits will tell whether they were written since ``eval``
            mark_edited(optimizer)
        optimizer.buckets.own(before)


def follow_all_edits(optimizer):
    """Have methods that keep positions restart now from parameters that were edited."""
    stateful = [each[1:] for each in _stateful(optimizer)]
    _restart(optimizer, stateful)
    for _, bucket, indices in stateful:
        bucket.writes.record(indices)


@contextlib.contextmanager
def unseen_by(optimizers):
    """What one optimizer writes to parameters in a ``with`` block is no edit for others."""
    known = [(each.buckets, each.buckets.unedited()) for each in optimizers]
    try:
        yield
    finally:
        for buckets, unedited in known:
            buckets.record(unedited)


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


def _entries(optimizer, groups):
    """The state of each parameter that has some."""
    return [optimizer.state[p] for g in groups for p in g["params"] if p in optimizer.state]


def _leave(optimizer):
    """Forget what methods kept that were switched off: parameters are where they are."""
    keys = {optimizer._key(name) for name in LOOKAHEAD_STATE}
    for group in optimizer.param_groups:
        if method_of(group) is None and any(
            not keys.isdisjoint(entries) for entries in _entries(optimizer, [group])
        ):
            optimizer.housed(group)


def _enter(optimizer, train_mode):
    for group in optimizer.param_groups:
        group["train_mode"] = train_mode
    for _, _, bucket, indices in _stateful(optimizer):
        bucket.writes.record(indices)


def _clone(p):
    return p.detach().clone(memory_format=torch.preserve_format)


@torch.no_grad()
def _write(bucket, i, tensor):
    bucket.tensors[i].copy_(tensor)


def _restore(bucket, indices):
    for i in indices:
        _write(bucket, i, bucket.aside(i))


def _unknown_y(method):
    return method.points[1] is None


def _warn_of_lost(optimizer, method, lost):
    """Parameters were loaded in eval mode without their y."""
    if lost:
        how = "lost: training goes on from x"
        if not _unknown_y(method):
            how = "recomputed from x (within rounding)"
        _warn_once(
            optimizer,
            ("lost", type(method).__name__),
            f"the state was loaded in eval mode without y; y is {how}. Save in train mode to "
            "resume bit for bit",
        )


def _keeps_x(method):
    """Whether a parameter at rest is kept, too: it has positions and is at none of them."""
    return bool(_positions(method)) and not method.rests


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
    backends.call(
        "move_",
        bucket.device.type,
        group.get("backend"),
        point,
        bucket.reals(bucket.members(indices)),
        bucket.columns(method.state[:1], indices),
        (b,),
        bucket.dtype,
        bucket.memo(indices),
    )


def _warn_once(optimizer, kind, message):
    told = vars(optimizer).setdefault("_told", set())
    if kind not in told:
        told.add(kind)
        warn(message)
