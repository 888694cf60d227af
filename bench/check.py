"""Correctness before speed: nothing is timed that computes something else."""

from typing import NamedTuple

import torch

from . import variants
from .devices import capture, side_stream
from .models import distinct, shrunk
from .table import ORACLES, VARIANTS

# relative to how far the parameters moved; a wrong formula is off by 1e-2 and more, and one of
# Newton-Schulz by 1e-1
TOLERANCES = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}
# both end at a sync of Lookahead, where x is everyone's
CHECKED_STEPS, WARM_UP = 10, 5
# tensors of the full-size model that are compared
SPOTS = 5


class Skipped(NamedTuple):
    """A variant that cannot run here."""

    reason: str


class Disagreement(AssertionError):
    """A variant computes something else."""


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

    On a small model of the same kind; then, where the case says so, the error is that of one step
    from tensors of full size. A variant that others wrote and that does not run here is
    ``Skipped``.

    Args:
        case: which variants.
        shapes: of the model at full size.

    Raises:
        Disagreement: a variant computes something else.
    """
    found = _errors(case, case.variants, shrunk(shapes), CHECKED_STEPS)
    if case.full_size:
        left = [name for name, error in found.items() if not isinstance(error, Skipped)]
        found.update(_errors(case, left, distinct(shapes), 1))
    return found


def _errors(case, names, shapes, steps):
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
            exact[family] = stepped(ORACLES[family], [v.double() for v in start], wide, False)
        reason = variants.missing(variant)
        if reason is None:
            try:
                values = [v.clone() for v in start]
                x = stepped(variant.make, values, gradients, case.captured)
            except Exception as error:
                if name == case.ours:
                    raise
                reason = f"{type(error).__name__}: {(str(error) or '-').splitlines()[0]}"
        if reason is not None:
            found[name] = Skipped(reason)
            continue
        moved = distance(exact[family], [v.double() for v in start])
        found[name] = distance(x, exact[family]) / moved
        bound = tolerance(case, name)
        if not found[name] <= bound:
            raise Disagreement(f"{case.name}: {name}: error {found[name]:.1e}, allowed {bound:.0e}")
    return found


def check_spots(case, steppers, shapes):
    """Compare some tensors of the full-size models after the warm-up, within each family.

    Args:
        case: their case.
        steppers: name -> stepper, all stepped equally often.
        shapes: of their model.

    Raises:
        Disagreement: two of a family differ.
    """
    spots = sorted({i * (len(shapes) - 1) // (SPOTS - 1) for i in range(SPOTS)})
    start = drawn(shapes, case.device, case.dtype, 0, case.sigma, spots)
    first = {}
    for name, stepper in steppers.items():
        variant, x = VARIANTS[name], stepper.read(spots)
        whose, other = first.setdefault(variant.family, (name, x))
        bound = tolerance(case, name) + tolerance(case, whose)
        moved = distance(other, [value.double() for value in start])
        if not distance(x, other) <= bound * moved:
            raise Disagreement(f"{case.name}: {name} computes something else at full size")
