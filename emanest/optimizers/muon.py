# SPDX-License-Identifier: MIT
"""Muon: its options, its numbers, its class, with AdamW in groups that ask for it."""

import functools
import math
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from torch.optim.optimizer import ParamsT

from ..backends import BackendName, shards
from ..matrix.coefficients import CoefficientsName, check_coefficients
from ..matrix.directions import Numbers
from ..matrix.forms import FORMS, FormName
from ..matrix.newton_schulz import DtypeName, check_dtype
from ..matrix.norms import NORMS, NormName
from ..matrix.polar import Polar
from ..matrix.shapes import SCALES, ScaleName, check_split, is_stack, rows
from ..matrix.sharded import alike, divided
from ..methods.method import MethodLike
from ..options import (
    AtLeastZero,
    Flag,
    LearningRate,
    Nonfinite,
    options_of,
    own_options,
    suggesting,
)
from ..rules import MOMENTA, ROWS, State
from ..values import by, choice, count, flag, optional
from .adamw import ADAMW
from .base import Base
from .optimizer import Optimizer

# options of Muon and its relatives
Coefficients = Annotated[
    CoefficientsName | Sequence[float] | Sequence[Sequence[float]], check_coefficients
]
Count = Annotated[int, count]
Split = Annotated[int | Sequence[int], check_split]
Scale = Annotated[ScaleName | None, by(choice, (None, *SCALES))]
Stack = Annotated[bool | None, by(optional, flag)]
Form = Annotated[FormName | None, by(choice, (None, *FORMS))]
Dtype = Annotated[DtypeName | torch.dtype | None, check_dtype]
Norm = Annotated[NormName, by(choice, (*NORMS,))]

ELSEWHERE = "emanest.split_params(model) sends what is no matrix to AdamW, in one optimizer"


def _check_options(group):
    if group["momentum"] >= 1:
        raise ValueError(
            "Muon averages gradients with weight 1 - momentum: momentum must be below 1"
        )
    if (group["ns_form"], group["ns_dtype"]) == ("gram", "bfloat16"):
        raise ValueError(
            "ns_form='gram' loses all digits in bfloat16: take ns_dtype='float16' or 'float32'"
        )


def check_matrix(name, p, group):
    """Raise ValueError unless it is clear, and possible, which matrices a parameter is."""
    shape = tuple(p.shape)
    if p.dim() < 2:
        if getattr(p, "_fsdp_flattened", False):
            raise ValueError(
                f"{name} was flattened to shape {shape} by FSDP1, and its matrices are lost: use "
                "fully_shard (FSDP2), which keeps them"
            )
        raise ValueError(
            f"{name} has shape {shape}: only real matrices, and kernels flattened to matrices, can "
            f'be orthogonalised; {ELSEWHERE} (groups with "base": "adamw")'
        )
    check_layout(name, p, group)
    mesh = shards.mesh_of(p)
    if mesh is not None and mesh.ndim != 1:
        raise ValueError(
            f"{name} is a DTensor on a mesh of {mesh.ndim} dimensions: a matrix is put together "
            "over 1-D meshes only (fully_shard(model) of FSDP2)"
        )


def check_layout(name, p, group):
    """Raise ValueError unless ``stack`` and ``split`` say which real matrices a parameter is."""
    shape = tuple(p.shape)
    if p.is_complex():
        raise ValueError(f"{name} has dtype {p.dtype}: only real matrices here; {ELSEWHERE}")
    stack, split = group["stack"], group["split"]
    if p.dim() == 3 and stack is None:
        flat = shape[0], math.prod(shape[1:])
        raise ValueError(
            f"{name} has shape {shape}, which does not tell what it is: set stack=True in its "
            f"group for {shape[0]} matrices {shape[1:]} (experts, say), or stack=False for one "
            f"matrix {flat} (a kernel); emanest.split_params(model) knows the modules, and sets it"
        )
    if p.dim() < 2:
        return
    count = shape[1 if is_stack(p, stack) else 0]
    if isinstance(split, int):
        if count % split:
            raise ValueError(f"split={split} does not divide the {count} rows of {name}, {shape}")
    elif count != sum(split):
        raise ValueError(
            f"split={split} has {sum(split)} rows, but {name}, {shape}, has {count}: give a number "
            "of rows for each block, or an integer for so many equal ones"
        )


def base_of(optimizer, *check_together, row_rule=None, row_numbers=lambda group: (), polar=Polar):
    """The base of an optimizer that steps along orthogonal directions.

    Args:
        optimizer: its class.
        check_together: as ``own_options`` takes them.
        row_rule: a row of ``rules.ROWS``, for a factor for each row; or None.
        row_numbers: group -> its numbers.
        polar: the class of the iteration, ``Polar`` or one derived from it.
    """

    def numbers(group, info):
        # weights are subtracted here, in double
        weight = 1 - group["momentum"]
        momentum = weight, weight if group["nesterov"] else 0.0
        step = info.lr, info.lr * group["weight_decay"]
        return Numbers(momentum, row_numbers(group), step).joined()

    row_state = ROWS[row_rule].state if row_rule else ()
    return Base(
        lambda group: "direction",
        numbers,
        *own_options(optimizer, _check_options, *check_together),
        # torch saves no `step` for Muon, whose steps are all alike
        uncounted=1.0,
        directions=functools.partial(divided, row_rule=row_rule, polar=polar),
        alike=functools.partial(alike, polar),
        state=(*MOMENTA["ema"].state, *(State(name, rows, ("stack",)) for name in row_state)),
        check=check_matrix,
    )


class Muon(Optimizer):
    """Muon, with any lookahead in its last pass, and AdamW in groups that ask for it.

        momentum_buffer = momentum * momentum_buffer + (1 - momentum) * g
        d = (1 - momentum) * g + momentum * momentum_buffer if nesterov else momentum_buffer
        u = -lr * scale(shape) * orthogonalize(d) - lr * weight_decay * y

    With ``lookahead=None`` a drop-in for ``torch.optim.Muon``: same options, defaults and state
    name. Differences: the iteration runs in a dtype with more digits than bfloat16 where that costs
    nothing (see ``ns_dtype``), and its norm is found in float64; convolution kernels are welcome.

    One optimizer for a whole model: ``Muon(emanest.split_params(model))``. A group with
    ``"base": "adamw"`` is stepped by AdamW, whose options it then takes, with AdamW's own defaults
    (``lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2, amsgrad=False``) and not with those
    given here; ``"normuon"``, ``"aurora"`` and ``"soap"`` are bases of groups likewise. Everything
    else is shared: clock, mode, schedulers, ``state_dict``, lookahead.

    Memory: state is float32 (float64 for float64 parameters), 1 value per parameter
    (``momentum_buffer``) plus those of the lookahead method; during a step up to 5 values (7 in the
    eager back end) for each entry of the matrices that are iterated together, at most 2**27 entries
    at a time, and one for each entry of the others.

    Args:
        params: matrices (rows, columns), or kernels (rows, ...), which are taken as matrices with
            everything but the first dimension flattened, or stacks of either (see ``stack``);
            (name, parameter) pairs; or groups. Rows are outputs.
        lr: step size, at least 0; a float or a 1-element tensor (copied for each group).
        weight_decay: decoupled decay per unit of lr, at least 0; not scaled by the shape. It acts
            at y (GPA: on z).
        momentum: weight of the past in the average of gradients, in [0, 1).
        nesterov: blend the newest gradient in once more. Not a lookahead: no gradient is taken
            elsewhere.
        ns_coefficients: (a, b, c); or a sequence of such triples, one for each step, of which the
            last is repeated; or a name in ``emanest.matrix.coefficients.COEFFICIENTS``.
        eps: norms (``ns_norm``) of d below it count as it, at least 0.
        ns_steps: Newton-Schulz steps, at least 1.
        adjust_lr_fn: scale by the shape: None or ``"original"`` sqrt(max(1, rows / columns)),
            ``"match_rms_adamw"`` 0.2 sqrt(max(rows, columns)), ``"spectral_norm"`` (torch 2.14
            calls it ``"spectral_unclamped"``, which is known too) sqrt(rows / columns),
            ``"unit_rms"`` sqrt(max(rows, columns)), ``"none"`` 1. Of these ``"original"`` and
            ``"spectral_norm"`` are not symmetric: of weights (inputs, outputs), as many experts
            have them, they take the inputs for rows.
        split: each parameter is so many matrices below each other, each orthogonalised and scaled
            by itself: 3 for a fused (3n, n) projection to queries, keys and values. A sequence
            gives each its rows, which add up to those of the parameter: ``(q, kv, kv)`` where keys
            and values have fewer heads. During a step these take one more value per entry.
        stack: what parameters of three and more dimensions are. True: a stack of matrices (E, rows,
            columns) or kernels (E, rows, ...), such as the weights of experts, each of which is
            updated as a parameter of its own would be. False: one kernel. None: a kernel of four
            and more dimensions, and an error for three, which are either; ``split_params`` sets it
            by the module. A 2-D parameter is one matrix whatever is said. With ``split`` each
            member of a stack is so many matrices.
        ns_form: ``"standard"`` or ``"gram"``; None takes the one with fewer operations.
        ns_dtype: dtype of the iteration, by name; None takes float64 for float64 parameters,
            float16 on a GPU, bfloat16 on a CPU with matrix units for it (AMX), else float32.
            Products of torch in float32 have as many digits as
            ``torch.set_float32_matmul_precision`` leaves them; those in Triton have all.
        ns_norm: what matrices are divided by at first, so that no singular value exceeds 1:
            ``"frobenius"``, or ``"schatten4"``, the root of the Frobenius norm of d d^T (on the
            smaller side), which is nearer to the largest singular value, so that small ones start
            up to n**0.25 times higher (n the smaller side) and come nearer to 1. It takes no
            further product.
        lookahead, backend, maximize, foreach, fused, capturable, differentiable, nonfinite: as in
            ``AdamW``. NALA's own steps follow the plain gradient.

    Raises:
        TypeError, ValueError, RuntimeError: as in ``AdamW``; a parameter without rows and columns,
            or of three dimensions and ``stack=None``.

    Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon; the scales are listed in
    Liu et al., arXiv:2502.16982 (``match_rms_adamw``), and Bernstein 2025 (``spectral_norm``).
    """

    @suggesting
    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-3,
        weight_decay: AtLeastZero = 0.1,
        momentum: AtLeastZero = 0.95,
        nesterov: Flag = True,
        ns_coefficients: Coefficients = (3.4445, -4.7750, 2.0315),
        eps: AtLeastZero = 1e-7,
        ns_steps: Count = 5,
        adjust_lr_fn: Scale = None,
        *,
        split: Split = 1,
        stack: Stack = None,
        ns_form: Form = None,
        ns_dtype: Dtype = None,
        ns_norm: Norm = "frobenius",
        lookahead: MethodLike = None,
        backend: BackendName | None = None,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: Literal[False] = False,
        nonfinite: Nonfinite = "propagate",
    ) -> None:
        """See the class."""
        super().__init__(params, options_of(locals()), lookahead)


Muon.bases = {"muon": base_of(Muon), "adamw": ADAMW}
