# SPDX-License-Identifier: MIT
"""One run of a comparison: a model, its optimizer, its batches, and what is measured."""

import gc
import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.utils.weak import WeakTensorKeyDictionary

from .comparison import Run
from .randomness import Randomness
from .trainer import Trainer


class Task:
    """What every run of a comparison has in common; the arguments are those of ``compare``.

    Args:
        window: over how many training losses a mean is taken where there is no ``evaluate``.
    """

    def __init__(
        self,
        make_model: Callable[[], nn.Module],
        make_batches: Callable[[int], Iterable[Any]],
        loss: Callable[[nn.Module, Any], torch.Tensor] | None,
        evaluate: Callable[[nn.Module], Any] | None,
        steps: int,
        evaluations: int,
        window: int,
    ) -> None:
        self._make_model, self._make_batches = make_model, make_batches
        self._loss, self._evaluate = loss, evaluate
        self._steps, self._window = steps, window
        parts = min(evaluations, steps)
        self._marks = {steps * part // parts for part in range(1, parts + 1)}
        # those of all runs that are still alive; nothing is kept alive for this
        self._trained = WeakTensorKeyDictionary()
        # what the first run of a seed began with, by what it is
        self._firsts: dict[str, tuple[int, list[torch.Tensor]]] = {}

    def rehearse(self, name: str, make: Callable[[nn.Module], Any], seed: int) -> None:
        """Make a model and its optimizer and let go of them, for the errors."""
        model = self._model(seed)
        Trainer(name, make(model), model)

    def run(self, name: str, make: Callable[[nn.Module], Any], seed: int) -> Run:
        """Train and measure; torch's generators are left somewhere."""
        model = self._model(seed)
        of_batches, of_optimizer = Randomness(), Randomness()
        with of_optimizer:
            trainer = Trainer(name, make(model), model)
        with of_batches:
            batches = iter(self._make_batches(seed))
        # what the model draws are other numbers than those of the batches
        torch.manual_seed(int(torch.randint(2**62, (), device="cpu")))
        steps, values, training = [], [], []
        if self._evaluate is not None:
            steps, values = [0], [self._measure(trainer, model, training)]
        for step in range(self._steps):
            if values and not math.isfinite(values[-1]):
                break
            with of_batches:
                batch = self._next(batches, seed, step)
            training.append(trainer.step(lambda batch=batch: self._loss_of(model, batch)))
            gone = not math.isfinite(training[-1])
            if gone or step + 1 in self._marks:
                steps.append(step + 1)
                values.append(math.nan if gone else self._measure(trainer, model, training))
        diverged = not math.isfinite(values[-1])
        if diverged:
            values[-1] = math.nan
        return Run(name, seed, tuple(steps), tuple(values), steps[-1] if diverged else None)

    def _model(self, seed: int) -> nn.Module:
        if len(self._trained):
            # what hooks and schedulers hold in a cycle: two models may be too many for a device
            gc.collect()
        torch.manual_seed(seed)
        model = self._make_model()
        if not isinstance(model, nn.Module):
            raise TypeError(f"make_model must return an nn.Module, got {type(model).__name__}")
        trained = {at: p for at, p in model.named_parameters() if p.requires_grad}
        if not trained:
            raise ValueError("make_model returned a model that has no parameter to be trained")
        for at, p in trained.items():
            if is_lazy(p):
                raise ValueError(
                    f"{at!r} of the model is not initialised yet: run one forward pass in "
                    "make_model"
                )
            if p in self._trained:
                raise ValueError(
                    f"make_model returned a model whose {at!r} is that of another run: make a new "
                    "model at each call (copy.deepcopy of one that is there)"
                )
        for p in trained.values():
            self._trained[p] = None
        self._check_first(
            seed,
            "make_model gave other first weights",
            [*trained.values()],
            "let them depend on torch's generators alone, which are seeded",
        )
        return model

    def _next(self, batches: Iterator[Any], seed: int, step: int) -> Any:
        try:
            batch = next(batches)
        except StopIteration:
            raise ValueError(
                f"make_batches({seed}) gave {step} batches for {self._steps} steps: let it go on, "
                "with itertools.cycle say"
            ) from None
        if step == 0:
            self._check_first(
                seed,
                f"make_batches({seed}) gave another first batch",
                _tensors(batch),
                "return a new iterable at each call, that depends on the seed alone",
            )
        return batch

    def _check_first(self, seed: int, what: str, found: list[torch.Tensor], fix: str) -> None:
        found = [t.detach().cpu() for t in found]
        known, first = self._firsts.get(what, (None, []))
        if known != seed:
            self._firsts[what] = seed, [t.clone() for t in found]
        elif len(found) != len(first) or not all(map(_same, found, first)):
            raise ValueError(f"{what} than for the run before of seed {seed}: {fix}")

    def _loss_of(self, model: nn.Module, batch: Any) -> torch.Tensor:
        value = (self._loss or _of_the_model)(model, batch)
        if isinstance(value, torch.Tensor) and value.numel() == 1 and value.requires_grad:
            return value
        shape = f" of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else ""
        who = "the model" if self._loss is None else "loss"
        fix = "pass loss=..., a function of model and batch" if self._loss is None else "return one"
        raise TypeError(
            f"{who} returned {type(value).__name__}{shape}, not a tensor of one element with a "
            f"gradient: {fix}"
        )

    def _measure(self, trainer: Trainer, model: nn.Module, training: list[float]) -> float:
        if self._evaluate is None:
            recent = training[-self._window :]
            return math.fsum(recent) / len(recent)
        with Randomness(), trainer.at_x():
            value = self._evaluate(model)
        try:
            return float(value)
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(
                f"evaluate must return a number, got {value!r} ({type(value).__name__})"
            ) from None


def _of_the_model(model: nn.Module, batch: Any) -> Any:
    """The loss by default: what the model returns."""
    names = batch if isinstance(batch, Mapping) else {}
    items = batch if isinstance(batch, (tuple, list)) else (batch,) * (not names)
    try:
        inspect.signature(model.forward).bind(*items, **names)
    except TypeError as error:
        raise TypeError(
            f"the model does not take a batch as it is ({error}): pass loss=..., a function of "
            "model and batch"
        ) from None
    return model(*items, **names)


def _tensors(value: Any) -> list[torch.Tensor]:
    """All tensors in lists, tuples and mappings."""
    if isinstance(value, torch.Tensor):
        return [value]
    inner = value.values() if isinstance(value, Mapping) else value
    return [t for each in inner for t in _tensors(each)] if _is_nest(value) else []


def _is_nest(value: Any) -> bool:
    return isinstance(value, (Mapping, tuple, list))


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors hold the same values; NaN equals NaN."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return bool(((a == b) | ((a != a) & (b != b))).all())
