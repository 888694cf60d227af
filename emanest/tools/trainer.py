# SPDX-License-Identifier: MIT
"""What steps a model: optimizers of any kind, and their schedulers."""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from ..optimizers.inner import needs_closure
from .find import at_iterate, find_all


class Trainer:
    """What a function of ``optimizers`` has made for a model: optimizers and schedulers.

    Args:
        name: of the optimizer.
        made: what the function returned.
        model: what it was given.

    Raises:
        TypeError, ValueError: see ``compare``.
    """

    def __init__(self, name: str, made: Any, model: nn.Module) -> None:
        self._model = model
        parts = made if isinstance(made, (tuple, list)) else (made,)
        self.optimizers = [each for each in parts if isinstance(each, torch.optim.Optimizer)]
        self._schedulers = [each for each in parts if _is_scheduler(each)]
        if not self.optimizers or len(self.optimizers) + len(self._schedulers) < len(parts):
            kinds = ", ".join(type(each).__name__ for each in parts)
            raise TypeError(
                f"optimizers[{name!r}] must return a torch optimizer, or a tuple of optimizers and "
                f"LRSchedulers that need no metric, got {kinds or 'nothing'}"
            )
        self._closure = any(map(needs_closure, self.optimizers))
        if self._closure and len(self.optimizers) > 1:
            raise ValueError(
                f"optimizers[{name!r}] returned several, one of which evaluates the loss itself in "
                "its step: it can only be alone"
            )
        self._check_parameters(name)
        self._ours = _ours(self.optimizers)
        self._with_modes: list[Any] = [
            each
            for each in self.optimizers
            if each not in self._ours and hasattr(each, "train") and hasattr(each, "eval")
        ]
        for each in self._with_modes:
            each.train()

    def _check_parameters(self, name: str) -> None:
        groups = [group for each in self.optimizers for group in each.param_groups]
        stepped = [p for group in groups for p in group["params"]]
        names = {p: at for at, p in self._model.named_parameters()}
        where = f"optimizers[{name!r}]"
        if not names.keys() >= set(stepped):
            raise ValueError(
                f"{where} steps parameters of another model: take those of the model that it is "
                "given"
            )
        if len(stepped) != len(set(stepped)):
            raise ValueError(f"{where} steps some parameters twice: give each to one optimizer")
        left = [at for p, at in names.items() if p.requires_grad and p not in set(stepped)]
        if left:
            raise ValueError(
                f"{where} leaves out {left[0]!r} and {len(left) - 1} more that require a gradient: "
                "step them, or freeze them in make_model"
            )

    def step(self, loss: Callable[[], torch.Tensor]) -> float:
        """Take a step and return the loss before it; none is taken if that is not finite."""

        def closure() -> torch.Tensor:
            self._model.zero_grad()
            value = loss()
            value.backward()
            return value.detach()

        if self._closure:
            # pyright knows torch's signature, whose closure returns a float
            found = float(self.optimizers[0].step(closure))  # pyright: ignore
        else:
            found = float(closure())
            if math.isfinite(found):
                for each in self.optimizers:
                    each.step()
        if math.isfinite(found):
            for each in self._schedulers:
                each.step()
        return found

    @contextlib.contextmanager
    def at_x(self) -> Iterator[None]:
        """The model at the point that is evaluated, in eval mode and without autograd."""
        modes = [(module, module.training) for module in self._model.modules()]
        with contextlib.ExitStack() as stack:
            if self._ours:
                stack.enter_context(at_iterate(self._ours))
            for each in self._with_modes:
                stack.callback(each.train)
                each.eval()
            for module, mode in modes:
                stack.callback(setattr, module, "training", mode)
            self._model.eval()
            with torch.no_grad():
                yield


def _is_scheduler(made: Any) -> bool:
    return isinstance(made, LRScheduler) and not isinstance(made, ReduceLROnPlateau)


def _ours(optimizers: list[torch.optim.Optimizer]) -> list[Any]:
    try:
        return find_all(optimizers)
    except TypeError:
        return []
