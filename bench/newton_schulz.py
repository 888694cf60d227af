# SPDX-License-Identifier: MIT
"""Newton-Schulz and Muon in torch operations: what we compare with, in float64 too.

Matrices come in batches, (batch, rows, columns). Formulas as in Jordan et al. 2024, "Muon: An
optimizer for hidden layers in neural networks", and in Dao-AILab, "Gram Newton-Schulz".
"""

import functools

import torch

from .reference import MUON_LR, MUON_MOMENTUM, MUON_WEIGHT_DECAY, NS_COEFFICIENTS, NS_STEPS
from .variants import Stepper

A, B, C = NS_COEFFICIENTS


def gram(x):
    """R = X X^T."""
    return x @ x.mT


def polynomial(r):
    """B R + C R^2."""
    return torch.baddbmm(r, r, r, beta=B, alpha=C)


def plain(g, dtype, gram=gram, polynomial=polynomial):
    """The usual form in the dtype; the two functions may be replaced by those of others."""
    x = _normalized(g, dtype)
    for _ in range(NS_STEPS):
        x = torch.baddbmm(x, polynomial(gram(x)), x, beta=A)
    return _like(g, x)


def in_gram_form(g, dtype, restarts):
    """The same with one polynomial Q of R for all steps from one of ``restarts`` to the next."""
    x, q, r = _normalized(g, dtype), None, None
    for step in range(NS_STEPS):
        if step in restarts:
            x, q = q @ x, None
        r = gram(x) if q is None else r
        z = polynomial(r)
        if q is None:
            q = z + A * torch.eye(z.shape[-1], dtype=dtype, device=z.device)
        else:
            q = torch.baddbmm(q, q, z, beta=A)
        if step + 1 < NS_STEPS and step + 1 not in restarts:
            half = torch.baddbmm(r, r, z, beta=A)
            r = torch.baddbmm(half, z, half, beta=A)
    return _like(g, q @ x)


def _normalized(g, dtype):
    """G over its norm, wide rather than tall."""
    x = (g / torch.linalg.vector_norm(g, dim=(-2, -1), keepdim=True)).to(dtype)
    return x.mT if _tall(g) else x


def _like(g, x):
    return (x.mT if _tall(g) else x).to(g.dtype)


def _tall(g):
    return g.shape[-2] > g.shape[-1]


class Muon:
    """Muon as torch has it: EMA form, scale "original"; but in the parameters' dtype throughout."""

    def __init__(self, params):
        self.params = list(params)
        self.buffers = [torch.zeros_like(p, requires_grad=False) for p in self.params]

    @torch.no_grad()
    def step(self):
        """As the class says."""
        for p, buffer in zip(self.params, self.buffers, strict=True):
            buffer.lerp_(p.grad, 1 - MUON_MOMENTUM)
            u = p.grad.lerp(buffer, MUON_MOMENTUM)
            o = plain(u[None], p.dtype)[0]
            scale = max(1, p.shape[0] / p.shape[1]) ** 0.5
            p.mul_(1 - MUON_LR * MUON_WEIGHT_DECAY).add_(o, alpha=-MUON_LR * scale)


class Alone:
    """Newton-Schulz and nothing else: a step orthogonalises the gradients, held in one batch."""

    def __init__(self, params, function):
        self.params, self.function = params, function
        self.batch = torch.stack([p.grad for p in params])
        self.found = torch.zeros_like(self.batch)

    @torch.no_grad()
    def step(self):
        """One batch."""
        self.found = self.function(self.batch)

    def take_gradients(self):
        """Copy the gradients again, to where a graph reads them."""
        torch.stack([p.grad for p in self.params], out=self.batch)

    def iterate(self):
        """The results, in the parameters' place."""
        return list(self.found)


def alone(function, *args, **options):
    """How to make a variant of a function of a batch."""

    def make(params, capturable):
        stepper = Alone(params, functools.partial(function, *args, **options))
        return Stepper(stepper.step, stepper.iterate, take_gradients=stepper.take_gradients)

    return make


class Several:
    """Optimizers that share the parameters of a model among them."""

    def __init__(self, optimizers):
        self.optimizers = optimizers

    def step(self):
        """All of them."""
        for optimizer in self.optimizers:
            optimizer.step()
