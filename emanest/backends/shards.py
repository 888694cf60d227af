# SPDX-License-Identifier: MIT
"""Parameters that are sharded over processes (``DTensor``): the part of them that lies here.

Element-wise rules work on it as on any tensor, with state of its shape, and nothing is communicated
but flags. State is visible as ``DTensor`` with the placements of its parameter, so that whatever
gathers, saves and reshards parameters does the same with state.
"""

import torch

from . import storage


def mesh_of(tensor):
    """The devices over which a tensor is sharded; None for one that lies here as a whole."""
    return getattr(tensor, "device_mesh", None)


def local(tensor):
    """The part of a tensor that lies here: itself, or the shard that it shares memory with."""
    # to_local() wraps a shard into another object each time; the optimizer watches this one
    return tensor if mesh_of(tensor) is None else storage.waited(tensor._local_tensor)


def locals_of(tensors):
    """The parts that lie here; the list itself if none is sharded."""
    if all(mesh_of(t) is None for t in tensors):
        return tensors
    return [local(t) for t in tensors]


def whole(name, tensor):
    """A tensor that lies here as a whole: itself, or what is gathered of one that is sharded.

    Raises:
        TypeError: its values are not in its storage; ``name`` is what the message calls it.
    """
    found = storage.waited(tensor if mesh_of(tensor) is None else tensor.full_tensor())
    storage.check(name, found)
    return found


def check_class(name, tensor):
    """``storage.check_class`` of the part that lies here."""
    storage.check_class(*_named(name, tensor))


def check_storage(name, tensor):
    """``storage.check`` of the part that lies here."""
    storage.check(*_named(name, tensor))


def _named(name, tensor):
    return name if mesh_of(tensor) is None else f"the local part of {name}", local(tensor)


def placements(p, dims):
    """How state is sharded that has the first ``dims`` dimensions of a parameter and no others."""
    from torch.distributed.tensor import Replicate

    return tuple(
        Replicate() if each.is_shard() and each.dim >= dims else each for each in p.placements
    )


def placed(tensor, p, dims=None):
    """The part that belongs beside the local part of a parameter.

    Args:
        tensor: of the parameter's shape, or that of its first dimensions; sharded or not.
        p: the parameter.
        dims: how many of its dimensions count; None is all.

    Returns:
        A tensor that shares memory with ``tensor`` where that lies as the parameter does; else a
        copy, for which the processes may have to communicate.
    """
    mesh = mesh_of(p)
    if mesh is None:
        return tensor if mesh_of(tensor) is None else tensor.full_tensor()
    wanted = p.placements if dims is None else placements(p, dims)
    if mesh_of(tensor) is None:
        from torch.distributed.tensor import distribute_tensor

        # every process holds the whole: nothing is sent
        tensor = distribute_tensor(tensor.detach(), mesh, wanted, src_data_rank=None)
    elif tensor.device_mesh != mesh or tensor.placements != wanted:
        tensor = tensor.redistribute(mesh, wanted)
    return local(tensor)


def as_dtensor(part, p, shape, stride, dims=None):
    """A part as the ``DTensor`` that it belongs to; as it is beside a parameter that is not.

    Args:
        part: what lies here.
        p: the parameter.
        shape, stride: of the whole.
        dims: as in ``placed``.
    """
    mesh = mesh_of(p)
    if mesh is None:
        return part
    from torch.distributed.tensor import DTensor

    wanted = p.placements if dims is None else placements(p, dims)
    return DTensor.from_local(part, mesh, wanted, run_check=False, shape=shape, stride=stride)


def agree(flag, mesh):
    """Make a flag that is set in one process set in all over which parameters are sharded."""
    if mesh is not None:
        for dim in range(mesh.ndim):
            torch.distributed.all_reduce(
                flag, torch.distributed.ReduceOp.MAX, group=mesh.get_group(dim)
            )
    return flag


def total(sums, params):
    """Sums over all parameters, of what each process found in the parts that lie there.

    Args:
        sums: one row for each parameter.
        params: the parameters, all on one mesh.
    """
    mesh = mesh_of(params[0]) if params else None
    if mesh is None:
        return sums.sum(0)
    for dim, here in enumerate(mesh.get_coordinate()):
        if here != 0:
            # what is whole everywhere counts once
            again = [i for i, p in enumerate(params) if p.placements[dim].is_replicate()]
            sums[again] = 0
    found = sums.sum(0)
    for dim in range(mesh.ndim):
        torch.distributed.all_reduce(found, group=mesh.get_group(dim))
    return found


def check_placements(p, name):
    """Raise RuntimeError for a parameter whose parts are summands of it."""
    if mesh_of(p) is not None and any(each.is_partial() for each in p.placements):
        raise RuntimeError(
            f"{name} is a DTensor with placements {p.placements}: a partial sum cannot be stepped; "
            "redistribute() it first"
        )
