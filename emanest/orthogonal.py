"""The base optimizers that step along an orthogonalised momentum: Muon and NorMuon."""

import functools

from . import shards
from .bases import Base
from .rules import MOMENTA, ROWS
from .search import OPTIONS, Directions, EvenRows, Numbers
from .shapes import check_matrices
from .spread import SpreadDirections, SpreadEvenRows, divided


def _check_matrix(name, p, group):
    shape = tuple(p.shape)
    elsewhere = "emanest.split_params(model) sends what is no matrix to AdamW, in one optimizer"
    if p.dim() < 2:
        if getattr(p, "_fsdp_flattened", False):
            raise ValueError(
                f"{name} was flattened to shape {shape} by FSDP1, and its matrices are lost: use "
                "fully_shard (FSDP2), which keeps them"
            )
        raise ValueError(
            f"{name} has shape {shape}: only matrices, and kernels flattened to matrices, can be "
            f'orthogonalised; {elsewhere} (groups with "base": "adamw")'
        )
    if p.is_complex():
        raise ValueError(f"{name} has dtype {p.dtype}: only real matrices here; {elsewhere}")
    mesh = shards.mesh_of(p)
    if mesh is not None and mesh.ndim != 1:
        raise ValueError(
            f"{name} is a DTensor on a mesh of {mesh.ndim} dimensions: a matrix is put together "
            "over 1-D meshes only (fully_shard(model) of FSDP2)"
        )
    check_matrices(name, p, group["stack"], group["split"])


def _rule(group):
    return "direction"


def _muon_numbers(group, lr, step):
    return _numbers(group, lr, ())


def _normuon_numbers(group, lr, step):
    return _numbers(group, lr, (1 - group["beta2"], group["eps"]))


def _numbers(group, lr, rows):
    # weights are subtracted here, in double
    weight = 1 - group["momentum"]
    momentum = weight, weight if group["nesterov"] else 0.0
    return Numbers(momentum, rows, (lr, lr * group["weight_decay"])).joined()


MUON = Base(
    _rule,
    _muon_numbers,
    OPTIONS,
    # torch saves no `step` for Muon, whose steps are all alike
    uncounted=1.0,
    directions=functools.partial(divided, Directions, SpreadDirections),
    state=MOMENTA["ema"].state,
    check=_check_matrix,
)
NORMUON = Base(
    _rule,
    _normuon_numbers,
    {**OPTIONS, "eps": 1e-10, "beta2": 0.95},
    uncounted=1.0,
    directions=functools.partial(divided, EvenRows, SpreadEvenRows),
    state=(*MOMENTA["ema"].state, *ROWS["normuon"].state),
    check=_check_matrix,
)
