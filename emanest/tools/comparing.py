# SPDX-License-Identifier: MIT
"""Training one model with several optimizers, over the same first weights and batches."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from ..values import choice, count, flag
from .comparison import Comparison, Run
from .randomness import Randomness
from .trial import Task


def compare(
    make_model: Callable[[], nn.Module],
    make_batches: Callable[[int], Iterable[Any]],
    optimizers: Mapping[str, Callable[[nn.Module], Any]],
    seeds: Iterable[int],
    steps: int,
    *,
    loss: Callable[[nn.Module, Any], torch.Tensor] | None = None,
    evaluate: Callable[[nn.Module], Any] | None = None,
    evaluations: int = 16,
    baseline: str | None = None,
    higher_is_better: bool = False,
    progress: Callable[[str], Any] | None = None,
) -> Comparison:
    """Train a model with several optimizers from the same weights on the same batches, and compare.

    For each seed, and within it for each optimizer: ``torch.manual_seed(seed)``, the model, its
    batches, then ``steps`` steps. What the model draws from torch's generators while it trains
    (dropout) is the same for all optimizers of a seed, whatever optimizers, batches and evaluations
    draw. A run whose loss is not finite stops there and is marked as diverged.

    Afterwards, or after an error, torch's generators are as they were. Memory: one model with its
    optimizer at a time, and on the CPU a copy of the first weights and of the first batch.

    Args:
        make_model: returns a new model, on its device and in its mode. Its weights depend on
            torch's generators alone, and no other run's model shares those that are trained.
        make_batches: called with the seed; returns an iterable of at least ``steps`` batches, a new
            one at each call, that depends on the seed and on torch's generators alone.
        optimizers: name -> function that takes the model and returns what trains it: a
            ``torch.optim.Optimizer`` of this library or any other, or a tuple of optimizers and of
            schedulers (``LRScheduler``), all of which are stepped once per step, optimizers first.
            Together they step every parameter that requires a gradient, and no other. An optimizer
            whose ``step`` cannot do without a closure (LBFGS) is given one; one that has ``train``
            and ``eval`` modes of its own is put into them.
        seeds: different integers from 0 on; 5 or more for a verdict, see ``Difference``.
        steps: of each run, at least 1.
        loss: ``loss(model, batch)`` returns the loss, a tensor of one element. By default the
            model returns it: ``model(*batch)`` for a tuple or a list, ``model(**batch)`` for a
            mapping, ``model(batch)`` for anything else.
        evaluate: ``evaluate(model)`` returns the number to be compared, a validation loss as a
            rule. It is called at x (``at_iterate``), in eval mode and without autograd; parameters
            and modes come back bit for bit. By default the mean of the last training losses is
            compared, over the last tenth of the steps: at y, for a method that looks ahead.
        evaluations: how many there are on the way, at least 1, evenly spaced, the last at the end;
            with ``evaluate`` one more before the first step.
        baseline: the name of the optimizer that the others are compared with; the first by default.
        higher_is_better: what ``evaluate`` returns is an accuracy, not a loss.
        progress: called with a line of text after each run: ``print``, say.

    Returns:
        A ``Comparison``: print it for the table.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind, or what it makes does not do: a
            model that shares weights with another or begins with others, batches that run out or
            that differ, a loss that is no scalar, an optimizer of other parameters. All that can be
            seen without training is seen before the first step.
    """
    _check_functions(
        {"make_model": make_model, "make_batches": make_batches},
        {"loss": loss, "evaluate": evaluate, "progress": progress},
    )
    numbers, makers = _checked_seeds(seeds), _checked_optimizers(optimizers)
    steps, evaluations = count("steps", steps), count("evaluations", evaluations)
    baseline = next(iter(makers)) if baseline is None else choice("baseline", baseline, makers)
    if flag("higher_is_better", higher_is_better) and evaluate is None:
        raise ValueError("higher_is_better needs evaluate: without it losses are compared")
    window = max(1, steps // 10)
    runs: list[Run] = []
    # the caller's modes may be those of an evaluation
    with Randomness(), torch.inference_mode(False), torch.enable_grad():
        task = Task(make_model, make_batches, loss, evaluate, steps, evaluations, window)
        for name, make in makers.items():
            task.rehearse(name, make, numbers[0])
        for seed in numbers:
            for name, make in makers.items():
                runs.append(task.run(name, make, seed))
                if progress is not None:
                    of = f"run {len(runs)} of {len(numbers) * len(makers)}"
                    progress(f"{of}: {name}, seed {seed}: {runs[-1].final:.5g}")
    training = f"training loss at y, last {window} steps"
    measure = training if evaluate is None else "evaluate(model) at x"
    return Comparison(tuple(runs), baseline, measure, bool(higher_is_better))


def _check_functions(needed: dict[str, Any], optional: dict[str, Any]) -> None:
    given = {name: value for name, value in optional.items() if value is not None}
    for name, value in (needed | given).items():
        if not callable(value):
            raise TypeError(f"{name} must be a function, got {value!r} ({type(value).__name__})")


def _checked_seeds(seeds: Iterable[int]) -> list[int]:
    if isinstance(seeds, (str, bytes)) or not isinstance(seeds, Iterable):
        raise TypeError(f"seeds must be integers, such as range(5), got {seeds!r}")
    found = [count(f"seeds[{i}]", seed, 0) for i, seed in enumerate(seeds)]
    if not found:
        raise ValueError("seeds is empty: pass range(5), say")
    if len(found) != len(set(found)):
        raise ValueError(f"seeds must differ, got {found}")
    return found


def _checked_optimizers(optimizers: Any) -> dict[str, Callable[[nn.Module], Any]]:
    if not isinstance(optimizers, Mapping):
        raise TypeError(
            "optimizers must be a dict, name -> function of the model, got "
            f"{type(optimizers).__name__}"
        )
    if not optimizers:
        raise ValueError("optimizers is empty: name at least one")
    for name, make in optimizers.items():
        if not isinstance(name, str):
            raise TypeError(f"names of optimizers must be strings, got {name!r}")
        if not callable(make) or isinstance(make, torch.optim.Optimizer):
            raise TypeError(
                f"optimizers[{name!r}] must be a function of the model, such as lambda model: "
                f"torch.optim.AdamW(model.parameters()), got {type(make).__name__}"
            )
    return dict(optimizers)
