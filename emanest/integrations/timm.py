# SPDX-License-Identifier: MIT
"""timm: the optimizers of this library under names of timm's registry."""

import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor

from ..methods.method import METHODS
from ..optimizers import OPTIMIZERS, AdamW, Optimizer
from ..tools.create import create

try:
    # timm.optim exports what reads the registry, but not the registry itself
    from timm.optim._optim_factory import (  # pyright: ignore[reportMissingImports]
        OptimInfo,
        default_registry,
    )
except ImportError as error:
    raise ImportError(
        "emanest.integrations.timm needs timm 1.0.12 or later, and torchvision: "
        "pip install 'emanest[timm]'"
    ) from error

_ADAMW = next(iter(AdamW.bases))


def register() -> list[str]:
    """Make the optimizers of this library known to timm: ``create_optimizer_v2(model, name)``.

        emanest.integrations.timm.register()
        create_optimizer_v2(model, "emanest-muon+ema-nesterov", lr=1e-3, weight_decay=0.05)

    The names are those of ``emanest.create`` behind ``emanest-``, with hyphens, as timm cuts names
    at underscores: it would take ``muon+ema_nesterov`` for ``nesterov``, its SGD. Options that timm
    passes on (``--opt-kwargs``) are those of ``emanest.create``: ``lookahead_stepsize=0.3``.

    Optimizers of matrices get what ``param_group_fn=emanest.split_params`` finds in the model; or,
    of the groups that timm makes, which do not say what a parameter belongs to, matrices and
    kernels by their shape, and AdamW steps the rest and what timm's ``fallback_list`` names. The
    learning rate and the weight decay are for both, so ``adjust_lr_fn`` is ``"match_rms_adamw"``
    unless it is given; ``adamw={"lr": 3e-4}`` sets entries of AdamW's groups.

    It may be called again, after others were added to ``emanest.OPTIMIZERS`` or ``METHODS``.

    Returns:
        The names.
    """
    names = [
        "+".join(filter(None, (optimizer, method)))
        for optimizer in OPTIMIZERS
        for method in (None, *filter(None, METHODS))
    ]
    registered = {f"emanest-{name.replace('_', '-')}": name for name in names}
    known = default_registry.list_optimizers("emanest-*")
    for ours in registered.keys() - {*known}:
        default_registry.register(_info(ours, registered[ours]))
    return list(registered)


def _info(ours: str, name: str) -> OptimInfo:
    optimizer = OPTIMIZERS[name.partition("+")[0]]
    options = inspect.signature(optimizer).parameters
    return OptimInfo(
        name=ours,
        opt_class=_maker(name, optimizer),
        description=f'emanest.create(model, "{name}")',
        has_eps="eps" in options,
        has_momentum="momentum" in options,
        has_betas="betas" in options,
        defaults={"adjust_lr_fn": "match_rms_adamw"} if "adjust_lr_fn" in options else None,
    )


def _maker(name: str, optimizer: type[Optimizer]) -> Any:
    """What timm calls with parameters, or groups, and options."""

    def make(params: Iterable[Any], **options: Any) -> Optimizer:
        return create(params, name, **options)

    def make_of_matrices(
        params: Iterable[Any], adamw: Mapping[str, Any] | None = None, **options: Any
    ) -> Optimizer:
        shared = {k: options[k] for k in ("lr", "weight_decay") if k in options}
        groups = list(_divided(_groups(params), {**shared, **(adamw or {})}))
        return create(groups, name, **options)

    return make_of_matrices if _ADAMW in list(optimizer.bases)[1:] else make


def _groups(params: Iterable[Any]) -> list[dict[str, Any]]:
    params = list(params)
    return params if all(isinstance(each, dict) for each in params) else [{"params": params}]


def _divided(groups: list[dict[str, Any]], adamw: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Groups of matrices, and of what AdamW steps."""
    for group in groups:
        # those of split_params say where they go
        if "base" in group or "stack" in group:
            yield {**adamw, **group} if group.get("base") == _ADAMW else group
            continue
        entries = {k: v for k, v in group.items() if k not in ("params", "param_names")}
        params = list(group["params"])
        if "param_names" in group:
            params = list(zip(group["param_names"], params, strict=True))
        fallback = group.get("use_fallback", False)
        of_matrices = [not fallback and _is_matrix(each) for each in params]
        for matrices, own in ((True, {}), (False, {**adamw, "base": _ADAMW})):
            chosen = [
                p for p, is_one in zip(params, of_matrices, strict=True) if is_one == matrices
            ]
            if chosen:
                yield {**own, **entries, "params": chosen}


def _is_matrix(given: Tensor | tuple[str, Tensor]) -> bool:
    """Whether a parameter is a matrix or a kernel by its shape; depthwise kernels are vectors."""
    p = given[1] if isinstance(given, tuple) else given
    if p.is_complex() or p.dim() < 2 or p.dim() == 3:
        return False
    return p.shape[0] > 1 and p.shape[1] > 1
