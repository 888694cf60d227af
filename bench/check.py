# SPDX-License-Identifier: MIT
"""Correctness before speed: nothing is timed that computes something else."""

import gc
from typing import NamedTuple

import torch

from . import variants
from .case import WARM_UP, label
from .devices import capture, side_stream
from .models import distinct, shrunk
from .table import ORACLES, VARIANTS

# relative to how far the parameters moved; a wrong formula is off by 1e-2 and more, and one of
# Newton-Schulz by 1e-1
TOLERANCES = {
    **{torch.float64: 1e-9, torch.float32: 1e-4},
    **{torch.float16: 2e-2, torch.bfloat16: 5e-2},
}
# as WARM_UP, it ends at a sync of Lookahead, where x is everyone's
CHECKED_STEPS = 10
# tensors of the full-size model that are compared
SPOTS = 5


class Skipped(NamedTuple):
    """A variant that others wrote, or a way to time one, that is not to be had here."""

    reason: str


class Disagreement(AssertionError):
    """A variant computes something else."""


def tried(work, *args, own):
    """What ``work`` returns; where it raises and is not our own, ``Skipped`` with the error."""
    try:
        return work(*args)
    except Exception as error:
        if own:
            raise
        reason = f"{type(error).__name__}: {(str(error) or '-').splitlines()[0]}"
    # with what the attempt allocated
    gc.collect()
    return Skipped(reason)


def drawn(shapes, device, dtype, seed, sigma=1.0, indices=None, spread=1.0):
    """Random tensors, the same for the same seed.

    Args:
        shapes, device, dtype, seed: of the tensors.
        sigma: standard deviation of their first columns.
        indices: picks some of them.
        spread: that of their last columns, relative to it; in between it decays exponentially.
    """
    generator, made = torch.Generator(device), []
    for i in range(len(shapes)) if indices is None else indices:
        generator.manual_seed(seed * 2**20 + i)
        values = torch.randn(shapes[i], generator=generator, device=device)
        columns = spread ** torch.linspace(0, 1, shapes[i][-1], device=device)
        made.append((sigma * values.mul_(columns)).to(dtype))
    return made


def leaves(values, gradients):
    """Parameters whose gradients may be shared with other variants, which only read them."""
    params = [value.requires_grad_() for value in values]
    for p, g in zip(params, gradients, strict=True):
        p.grad = g
    return params


def distance(a, b):
    """Euclidean, over all tensors."""
    return sum(float((x - y).square().sum()) for x, y in zip(a, b, strict=True)) ** 0.5


def stepped(make, values, gradients, captured):
    """x after one step from each list of gradients."""
    params = leaves(values, [g.clone() for g in gradients[0]])
    stepper = variants.build(make, params, captured)
    step = stepper.step
    for t, new in enumerate(gradients):
        for p, g in zip(params, new, strict=True):
            p.grad.copy_(g)
        stepper.take_gradients()
        if captured and t < WARM_UP:
            with side_stream():
                step()
            continue
        if captured and t == WARM_UP:
            step = capture(stepper.step)
        step()
    return stepper.read(range(len(params)))


def tolerance(case, name):
    """The error that a variant may have."""
    variant = VARIANTS[name]
    return TOLERANCES[variant.arithmetic(case.device, case.dtype)] * variant.slack


def errors(case, shapes):
    """Distance of each variant from a float64 run, relative to how far that run moved.

    On a small model of the same kind, where replays are timed once more from a graph; then, where
    the case says so, the error is that of one step from tensors of full size. A variant that others
    wrote and that does not run here or computes something else is ``Skipped``, and so is the graph
    of one that cannot be captured.

    Args:
        case: which variants.
        shapes: of the model at full size.

    Returns:
        Name of a variant, or ``label`` of its replay, -> number or Skipped.

    Raises:
        Disagreement: a variant of ours computes something else.
    """
    tiny = [shape for shape in shrunk(shapes) if case.defined is None or case.defined(shape)]
    if case.defined is not None:
        case = case._replace(dtype=torch.float64)
    found = _errors(case, case.variants, tiny, CHECKED_STEPS, False)
    if "replayed" in case.timings:
        replays = _errors(case, _left(found), tiny, CHECKED_STEPS, True)
        found.update({label(name, "replayed"): each for name, each in replays.items()})
    if case.full_size:
        names = [name for name in _left(found) if name in case.variants]
        found.update(_errors(case, names, distinct(shapes), 1, False))
    return found


def _left(found):
    return [name for name, each in found.items() if not isinstance(each, Skipped)]


def _errors(case, names, shapes, steps, captured):
    start = drawn(shapes, case.device, case.dtype, 0, case.sigma)
    gradients = [
        drawn(shapes, case.device, case.dtype, 1 + t, spread=case.spread) for t in range(steps)
    ]
    wide = [[g.double() for g in each] for each in gradients]
    found, exact = {}, {}
    for name in names:
        variant = VARIANTS[name]
        family = variant.family
        if family not in exact:
            copies = [v.to(torch.float64, copy=True) for v in start]
            exact[family] = stepped(ORACLES[family], copies, wide, False)
        reason = variants.missing(variant)
        if reason is not None:
            found[name] = Skipped(reason)
            continue
        values = [v.clone() for v in start]
        # that a graph of ours cannot be captured is no wrong result
        own = variant.own and not captured
        x = tried(stepped, variant.make, values, gradients, captured, own=own)
        if isinstance(x, Skipped):
            found[name] = x
            continue
        moved = distance(exact[family], [v.double() for v in start])
        error = distance(x, exact[family]) / moved
        where = ", replayed" if captured else ""
        found[name] = _judged(case, name, error, error, tolerance(case, name), where)
    return found


def _judged(case, name, value, error, bound, where):
    """The value, if the error is within the bound; else Skipped, or raised where it is ours."""
    if error <= bound:
        return value
    reason = f"error {error:.1e}{where}, allowed {bound:.0e}"
    if VARIANTS[name].own:
        raise Disagreement(f"{case.name}: {name}: {reason}")
    return Skipped(f"computes something else: {reason}")


def check_spots(case, steppers, shapes):
    """Compare some tensors of the full-size models after the warm-up, within each family.

    Args:
        case: their case.
        steppers: name -> steppers, all stepped equally often; what is ours comes first.
        shapes: of their model.

    Returns:
        The names of those that others wrote and that differ from the first of their family ->
        Skipped.

    Raises:
        Disagreement: one of ours does.
    """
    if case.defined is not None:
        return {}
    spots = sorted({i * (len(shapes) - 1) // (SPOTS - 1) for i in range(SPOTS)})
    start = [v.double() for v in drawn(shapes, case.device, case.dtype, 0, case.sigma, spots)]
    first, found = {}, {}
    for name, several in steppers.items():
        for x in (stepper.read(spots) for stepper in several):
            whose, other = first.setdefault(VARIANTS[name].family, (name, x))
            bound = tolerance(case, name) + tolerance(case, whose)
            error = distance(x, other) / distance(other, start)
            judged = _judged(case, name, None, error, bound, f" at full size beside {whose}")
            if judged is not None:
                found[name] = judged
    return found
