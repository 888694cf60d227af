# SPDX-License-Identifier: MIT
"""Between x and y: what ``eval``, ``train`` and edits from outside do to the parameters.

y is kept aside in ``state[p]["y"]`` while a parameter that is ahead holds x. From it and from state
x can be found again, which tells whether a parameter that was written holds other bits than before.
"""

import contextlib

import torch

from ..methods.method import NO_LOOKAHEAD
from ..rules import LOOKAHEAD_STATE
from .bucket import restored_by_errors
from .edits import restart_at, restart_edited, warn_once
from .joint import Joint

# unlike torch.compiler.disable this does not import dynamo
_eager = torch._disable_dynamo  # pyright: ignore[reportPrivateImportUsage]


@_eager
def to_x(optimizer):
    """Write x into every parameter that is ahead, keep its y, and enter eval mode."""
    parts = _under_lookahead(optimizer)
    restart_edited(optimizer, parts)
    moves = [
        (part, ahead)
        for part, ahead in by_ahead(parts)
        if ahead != 0
        or optimizer.buckets.owned
        # where y is x, state alone could not tell later that it was written
        or (part.method.positions and not part.method.x_is_state)
    ]
    with _undone_by_errors(optimizer, moves) as copies:
        for (part, _), ys in zip(moves, copies, strict=True):
            for i, y in zip(part.indices, ys, strict=True):
                part.bucket.keep_y(i, y)
        move(0, [(part, ahead) for part, ahead in moves if ahead != 0])
        _enter(optimizer, parts, train_mode=False)


@_eager
def to_y(optimizer):
    """Bring back every y that was kept, take edited parameters as new x, enter train mode."""
    parts = _under_lookahead(optimizer)
    moves, anchored, kept = [], [], []
    # all edits are looked up before the first write, which may touch shared version counters
    for part in parts:
        bucket, method, edited = part.bucket, part.method, set(_edited_at_x(part))
        for its, ahead in by_ahead([part]):
            unedited = [i for i in its.indices if i not in edited]
            lost = [i for i in unedited if ahead != 0 and bucket.kept_y(i) is None]
            kept += [(bucket, i) for i in unedited if bucket.kept_y(i) is not None]
            _warn_of_lost(optimizer, method, lost)
            found = [i for i in its.indices if i in edited]
            for written, anchors in ((found, method.positions), (lost, not method.points[1])):
                its = part._replace(indices=written)
                if anchors:
                    anchored.append(its)
                elif written and ahead != 0:
                    moves.append((its, ahead))
    with _undone_by_errors(optimizer, moves):
        move(1, moves)
        for part in anchored:
            restart_at(part)
        for bucket, i in kept:
            _write(bucket, i, bucket.kept_y(i))
        key = optimizer.buckets.key("y")
        for entries in _entries(optimizer, optimizer.param_groups):
            entries.pop(key, None)
        _enter(optimizer, parts, train_mode=True)


def by_ahead(parts):
    """Pairs of a part and how far its parameters are ahead, as the lookahead's plan said."""
    for part in parts:
        for ahead, same in part.bucket.scalars.ahead(part.indices).items():
            yield part._replace(indices=same), ahead


def _edited_at_x(part):
    """Those parameters that were written since ``eval`` and do not hold the x of then."""
    written = part._replace(indices=part.bucket.edits.written(part.indices))
    return part.bucket.differing(
        (i, _x_of_then(part, i, ahead)) for its, ahead in by_ahead([written]) for i in its.indices
    )


def _x_of_then(part, i, ahead):
    """What a parameter held after ``eval``; None where that cannot be told."""
    y = part.bucket.kept_y(i)
    if y is not None:
        return y if ahead == 0 else x_of(y, part, i, ahead)
    # found by a back end, which rounds NaN as the step did
    at_rest = ahead == 0 and part.method.x_is_state
    return x_of(part.bucket.tensors[i], part, i, ahead) if at_rest else None


@torch.no_grad()
def x_of(y, part, i, ahead):
    """The x that belongs to a parameter's y, a tensor of the same dtype."""
    x, point, state = _clone(y), part.method.points[:1], part.method.state[:1]
    one = Joint([part._replace(indices=[i])])
    one.apply_("move", point, (ahead,), state=state, ys=part.bucket.reals([x]))
    return x


@torch.no_grad()
def move(end, moves):
    """Take parameters to x or to y, those that go the same way in one call of a back end.

    Args:
        end: 0 for x, 1 for y; as ``Method.points`` has them.
        moves: pairs of a part and how far all its parameters are ahead.
    """
    together = {}
    for part, ahead in moves:
        way = part.method.points[end], part.method.state[:1]
        kind = way, part.bucket.format, part.group.get("backend")
        together.setdefault(kind, []).append((part, (ahead,)))
    for ((point, state), *_), pairs in together.items():
        parts, numbers = zip(*pairs, strict=True)
        joint = Joint(parts)
        joint.apply_("move", (point,), joint.per_part(numbers), state=state)


def copies_of(parts):
    """Copies of the parameters, for ``put_back``."""
    return [[_clone(part.bucket.tensors[i]) for i in part.indices] for part in parts]


def put_back(parts, copies):
    """Write copies of parameters into them."""
    for part, tensors in zip(parts, copies, strict=True):
        for i, tensor in zip(part.indices, tensors, strict=True):
            _write(part.bucket, i, tensor)


@contextlib.contextmanager
def _undone_by_errors(optimizer, moves):
    """Yield copies of the parameters that moves write; where the block raises, put them back.

    Then the mode and every y that was kept are as before, and what was ours counts as ours.
    """
    # all copies before the first move: running out of memory then changes nothing
    moving, groups = [part for part, _ in moves], optimizer.param_groups
    kept = copies_of(moving)
    with restored_by_errors([*groups, *_entries(optimizer, groups)]), optimizer.buckets.ours():
        try:
            yield kept
        except BaseException:
            put_back(moving, kept)
            raise


@contextlib.contextmanager
def part_of_step(optimizer):
    """What is written to parameters in a ``with`` block is no edit; see the optimizer's method."""
    before = optimizer.buckets.owned
    optimizer.buckets.own(True)
    try:
        yield
    finally:
        if not optimizer.training:
            # their bits will tell whether they were written since ``eval``
            mark_edited(optimizer)
        optimizer.buckets.own(before)


def restart_all_edited(optimizer):
    """Restart now, as the next step would, from all parameters that were edited."""
    parts = _under_lookahead(optimizer)
    restart_edited(optimizer, parts)
    for part in parts:
        part.bucket.edits.record(part.indices)


@contextlib.contextmanager
def unseen_by(optimizers):
    """What one optimizer writes to parameters in a ``with`` block is no edit for others."""
    with contextlib.ExitStack() as stack:
        for each in optimizers:
            stack.enter_context(each.buckets.ours())
        yield


@_eager
def mark_edited(optimizer):
    """Treat every parameter as edited."""
    for part in _under_lookahead(optimizer):
        part.bucket.edits.forget(part.indices)


def _under_lookahead(optimizer):
    """The parts that hold state under a lookahead.

    What methods kept that were switched off is forgotten: parameters are where they are.
    """
    keys = {optimizer.buckets.key(name) for name in LOOKAHEAD_STATE}

    def wanted(group, method):
        kept = (entries.keys() for entries in _entries(optimizer, [group]))
        return method is not NO_LOOKAHEAD or not all(map(keys.isdisjoint, kept))

    return [part for part in optimizer.with_state(wanted) if part.method is not NO_LOOKAHEAD]


def _entries(optimizer, groups):
    """The state of each parameter that has some."""
    return [optimizer.state[p] for g in groups for p in g["params"] if p in optimizer.state]


def _enter(optimizer, parts, train_mode):
    for group in optimizer.param_groups:
        group["train_mode"] = train_mode
    for part in parts:
        part.bucket.edits.record(part.indices)


def _clone(p):
    return p.detach().clone(memory_format=torch.preserve_format)


@torch.no_grad()
def _write(bucket, i, tensor):
    bucket.tensors[i].copy_(tensor)


def _warn_of_lost(optimizer, method, lost):
    """Parameters were loaded in eval mode without their y."""
    if lost:
        how = "lost: training goes on from x"
        if method.points[1]:
            how = "recomputed from x (within rounding)"
        warn_once(
            optimizer,
            ("lost", type(method).__name__),
            f"the state was loaded in eval mode without y; y is {how}. Save in train mode to "
            "resume bit for bit",
        )
