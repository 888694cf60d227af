"""Correctness before speed: nothing is timed that computes something else."""

from typing import NamedTuple

import torch

from . import peers
from .devices import capture, side_stream
from .models import shrunk
from .peers import ORACLES, VARIANTS

# relative to how far the parameters moved; a wrong formula is off by 1e-2 and more
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
# both end at a sync of Lookahead, where x is everyone's
CHECKED_STEPS, WARM_UP = 10, 5
# tensors of the full-size model that are compared
SPOTS = 5
# of the parameters; gradients have 1
SIGMA = 0.02


class Skipped(NamedTuple):
    """A variant that cannot run here."""

    reason: str


class Disagreement(AssertionError):
    """A variant computes something else."""


def drawn(shapes, device, dtype, seed, sigma=1.0, indices=None):
    """Random tensors, the same for the same seed; ``indices`` picks some of them."""
    generator, made = torch.Generator(device), []
    for i in range(len(shapes)) if indices is None else indices:
        generator.manual_seed(seed * 2**20 + i)
        made.append((sigma * torch.randn(shapes[i], generator=generator, device=device)).to(dtype))
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
    stepper = peers.build(make, params, captured)
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


def errors(case):
    """Distance of each variant from a float64 run, relative to how far that run moved.

    On a small model of the same kind. A variant that others wrote and that does not run here is
    ``Skipped``.

    Raises:
        Disagreement: a variant computes something else.
    """
    shapes = shrunk(case.shapes)
    start = drawn(shapes, case.device, case.dtype, 0, SIGMA)
    gradients = [drawn(shapes, case.device, case.dtype, 1 + t) for t in range(CHECKED_STEPS)]
    wide = [[g.double() for g in each] for each in gradients]
    found, exact = {}, {}
    for name in case.variants:
        variant = VARIANTS[name]
        family = variant.family
        if family not in exact:
            exact[family] = stepped(ORACLES[family], [v.double() for v in start], wide, False)
        reason = peers.missing(variant)
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
        bound = TOLERANCES[case.dtype] * variant.slack
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
    start = drawn(shapes, case.device, case.dtype, 0, SIGMA, spots)
    first = {}
    for name, stepper in steppers.items():
        variant, x = VARIANTS[name], stepper.read(spots)
        other = first.setdefault(variant.family, x)
        bound = 2 * TOLERANCES[case.dtype] * variant.slack
        moved = distance(other, [value.double() for value in start])
        if not distance(x, other) <= bound * moved:
            raise Disagreement(f"{case.name}: {name} computes something else at full size")
