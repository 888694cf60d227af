# SPDX-License-Identifier: MIT
"""What the tests of SOAP share: its groups of matrices, and runs beside the textbook."""

import torch

import helpers
import textbook_bases
from emanest import SOAP, backends

LR = 0.01
BACKENDS = [name for name in ("cpp", "eager") if backends.find(name, "cpu")[0]]
# square, tall, wide, a kernel, a vector, a scalar, a single row
SHAPES = [(6, 6), (9, 5), (5, 9), (4, 3, 2, 2), (7,), (), (1, 4)]
# name -> options and shapes of a group; once they were found, bases are defined while
# m <= n (precondition_frequency + 1)
GROUPS = {
    "published": ({}, SHAPES),
    "often": ({"precondition_frequency": 1}, [(6, 6), (8, 5)]),
    "options": (
        {"betas": (0.9, 0.99), "shampoo_beta": 0.8, "eps": 1e-4, "weight_decay": 0.3},
        [(5, 5), (7,)],
    ),
    "no correction": ({"correct_bias": False, "precondition_frequency": 3}, [(3, 6)]),
    "one side": ({"max_precond_dim": 8, "precondition_frequency": 3}, [(12, 3), (3, 12), (9, 9)]),
    # in bases of its own a first gradient is 0 off the diagonal: what is left is rounding over eps
    "basis before": (
        {"update_basis": "before", "precondition_frequency": 3, "eps": 1e-5},
        [(5, 5), (6, 4), (3,)],
    ),
    "decay before": ({"decay": "before", "weight_decay": 0.3}, [(4, 6), (3,)]),
    "both before": ({"update_basis": "before", "decay": "before", "eps": 1e-5}, [(4, 6)]),
    "ascent": ({"maximize": True}, [(4, 4), (3,)]),
    "split": ({"split": 3, "precondition_frequency": 3}, [(9, 3), (6, 5)]),
    "stack": ({"stack": True, "precondition_frequency": 3}, [(2, 6, 4), (2, 3, 2, 2), (5, 5)]),
    "split stack": ({"stack": True, "split": 2, "precondition_frequency": 3}, [(2, 6, 4)]),
}


def soap(shapes=((6, 4), (4, 6), (5,)), dtype=torch.float32, method="ema", **options):
    """One group."""
    params = helpers.parameters(dtype, shapes)
    return SOAP(params, LR, stack=False, lookahead=helpers.METHODS[method], **options)


def made(groups=GROUPS, lookahead=None, dtype=torch.float64, **options):
    """An optimizer with all those groups, and for each its textbook form."""
    rows, twins = [], []
    for own, shapes in groups.values():
        params = helpers.parameters(dtype, shapes)
        own = {"stack": False, **own}
        rows.append({"params": params, **own})
        base = textbook_bases.SOAP(**own)
        twins.append(helpers.published(lookahead, params, base))
    return SOAP(rows, lr=LR, lookahead=lookahead, **options), twins


def hand_over(optimizer, p, first, i):
    """Give the textbook the bases of a parameter's first step, where its gradient has not both.

    It has the rank of its smaller side: in a longer one, that of the null space of L is rounding.
    """
    bases = [optimizer.state[p][name].clone() for name in ("Q_L", "Q_R")]
    lengths = {basis.shape[-1] for basis in bases} - {0}
    first.setdefault(i, bases if len(lengths) > 1 else None)


def compare(optimizer, twins, steps, missing=lambda: False, tolerance=1e-10):
    """Run an optimizer beside its textbook forms."""
    for t in steps:
        taken = []
        for group, twin in zip(optimizer.param_groups, twins, strict=True):
            group["lr"] = LR * (1 - t / 100)
            grads = [None if missing() else g for g in helpers.gradients(twin.y, t)]
            for p, g in zip(group["params"], grads, strict=True):
                p.grad = None if g is None else g.clone()
            taken.append((group, twin, grads))
        optimizer.step()
        for i, (group, twin, grads) in enumerate(taken):
            for j, (p, g) in enumerate(zip(group["params"], grads, strict=True)):
                if g is not None:
                    hand_over(optimizer, p, twin.base.first, j)
            twin.step(grads, group["lr"])
            for p, y in zip(group["params"], twin.y, strict=True):
                error = (p.detach() - y).abs().max() / y.abs().max().clamp(min=1)
                assert error <= tolerance, f"group {i}, {tuple(p.shape)}: {error:.1e} at step {t}"
