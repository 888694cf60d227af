# SPDX-License-Identifier: MIT
"""An optimizer for a model from its name, as configuration files and command lines have it."""

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, Literal

from torch import Tensor, nn

from ..methods.given import as_method
from ..methods.method import Method
from ..optimizers import OPTIMIZERS, Optimizer
from ..values import choice
from .split import ADAMW, split_params
from .windows import length_of, warn_of_windows

_SETTING = "lookahead_"  # how options that are settings of a lookahead begin, as in groups


def create(
    model: nn.Module | Iterable[Any],
    name: str,
    *,
    lr: float | Tensor | None = None,
    total_steps: float | None = None,
    rules: Mapping[str, Any] | None = None,
    adamw: Mapping[str, Any] | None = None,
    vectors: Mapping[str, Any] | None = None,
    verbose: bool | Literal["all"] = True,
    **options: Any,
) -> Optimizer:
    """Make the optimizer of a name for a model: ``create(model, "muon+ema_nesterov", lr=2e-2)``.

    Optimizers of matrices (Muon, NorMuon, Aurora, SOAP) get the groups of ``split_params``, others
    all parameters that require a gradient; parameters keep their names. Memory: the optimizer's.

    Args:
        model: an ``nn.Module``, wrapped or not; or parameters or groups, which are taken as they
            are.
        name: one in ``emanest.OPTIMIZERS``, alone or with one in ``emanest.METHODS`` behind a plus.
        lr: learning rate, at least 0; by default the optimizer's own. Of an optimizer of matrices
            it is that of the matrices: the rest has that of ``adamw``.
        total_steps: steps of the whole run, at least 1. A method that is named gets windows that
            fit (``Method.for_run``), except where they are given; a warning says what of a method
            will never happen in so short a run. ``math.inf``, which frameworks give where they do
            not know it, is as None. It does not change the learning rate.
        rules, adamw, vectors: for ``split_params``, of a module and an optimizer of matrices:
            ``adamw={"lr": 3e-4}``.
        verbose: print the table of ``split_params``; ``"all"``: a line for each parameter.
        options: the optimizer's own, ``lookahead`` among them where ``name`` has none; and settings
            of the method that is named, as in ``lookahead_stepsize=0.3``.

    Raises:
        TypeError, ValueError: an argument is unknown, of the wrong kind or out of range; the
            message names it.
    """
    if isinstance(model, str):
        raise TypeError(f"the model comes first: create(model, {model!r})")
    optimizer, named = _parsed(name)
    choice("verbose", verbose, (True, False, "all"))
    steps = None if total_steps is None else length_of(total_steps)
    method = _method(name, named, options, steps)
    own = {k: v for k, v in options.items() if k != "lookahead" and not k.startswith(_SETTING)}
    if lr is not None:
        own["lr"] = lr
    _refuse_settings(own, optimizer, method)
    split = {"rules": rules, "adamw": adamw, "vectors": vectors}
    split = {k: v for k, v in split.items() if v is not None}
    made = optimizer(_params(optimizer, model, split, verbose), lookahead=method, **own)
    if steps is not None:
        warn_of_windows(made, steps)
    return made


def _parsed(name: str) -> tuple[Any, str | None]:
    """The optimizer's class, and the name of the lookahead or None."""
    example = "as in 'muon+ema_nesterov'"
    if not isinstance(name, str):
        raise TypeError(f"name must be a string, {example}, got {name!r} ({type(name).__name__})")
    parts = name.split("+")
    if len(parts) > 2 or not all(parts):
        raise ValueError(
            f"name must be an optimizer, or an optimizer, a plus and a lookahead, {example}, got "
            f"{name!r}"
        )
    optimizer = OPTIMIZERS[choice("the optimizer in name", parts[0], OPTIMIZERS)]
    ours = isinstance(optimizer, type) and issubclass(optimizer, Optimizer)
    # Wrap has no base of its own
    if not ours or not optimizer.bases:
        raise TypeError(
            f"OPTIMIZERS[{parts[0]!r}] must be a class derived from emanest.Optimizer, with "
            f"bases, got {optimizer!r}: put a lookahead around others with emanest.Wrap"
        )
    return optimizer, parts[1] if len(parts) == 2 else None


def _method(
    name: str, named: str | None, options: Mapping[str, Any], total_steps: int | None
) -> Method:
    """The lookahead: named behind the plus or among the options, with its settings from there."""
    settings = {k.removeprefix(_SETTING): v for k, v in options.items() if k.startswith(_SETTING)}
    if "name" in settings:
        raise TypeError(
            f"{_SETTING}name is no setting: name the lookahead behind a plus, as in 'adamw+nag'"
        )
    given, what = options.get("lookahead"), "lookahead"
    if named is not None:
        if "lookahead" in options:
            raise ValueError(
                f"name {name!r} has a lookahead already: leave lookahead={given!r} out, or name "
                "the optimizer alone"
            )
        given, what = named, "the lookahead in name"
    if isinstance(given, str):
        given = {"name": given}
    if isinstance(given, Mapping):
        given = {**given, **settings}
    elif settings:
        where = "and there is none" if given is None else f"not of {given!r}, which has its own"
        raise TypeError(
            f"{_SETTING}{next(iter(settings))} is a setting of a lookahead that is named, {where}: "
            f"name one, as in '{name}+ema_nesterov'"
        )
    method = as_method(given, what)
    if total_steps is None or not isinstance(given, Mapping):
        return method
    return method.fitted(total_steps, given)


def _refuse_settings(own: dict[str, Any], optimizer: type[Optimizer], method: Method) -> None:
    """Say how a setting of the lookahead is written, which was given as an option."""
    taken = inspect.signature(optimizer).parameters
    for key in own.keys() & {f.name for f in fields(method)} - taken.keys():
        raise TypeError(
            f"{key} is a setting of the lookahead {method.name!r}, not an option of "
            f"{optimizer.__name__}: write {_SETTING}{key}={own[key]!r}"
        )


def _params(
    optimizer: type[Optimizer], model: Any, split: dict[str, Any], verbose: bool | Literal["all"]
) -> Iterable[Any]:
    """What an optimizer is given of a model."""
    own, *others = optimizer.bases
    # the groups of split_params need AdamW as another base, for all that is no matrix
    if isinstance(model, nn.Module) and ADAMW in others:
        return split_params(model, **split, verbose=verbose)
    why = f"{own!r} steps no matrices" if isinstance(model, nn.Module) else "these are no module"
    for key in split:
        raise ValueError(f"{key} is for the groups of split_params, and {why}: leave it out")
    if not isinstance(model, nn.Module):
        return _given(model)
    named = [(at, p) for at, p in model.named_parameters() if p.requires_grad]
    if not named:
        raise ValueError("no parameter of the model requires a gradient")
    return named


def _given(params: Any) -> Iterable[Any]:
    if isinstance(params, Iterable) and not isinstance(params, (str, type)):
        return params
    raise TypeError(
        "model must be an nn.Module, or an iterable of parameters or of groups, got "
        f"{type(params).__name__}"
    )
