"""Textbook forms of the base optimizers, as ``torch.optim`` defines them, for real numbers.

``base.update(i, p, g, lr)`` returns the new parameter i from p, the point it is handed, and the
gradient g taken there. State, with its count of updates, belongs to the index i.
"""

from typing import ClassVar

import torch


class SGD:
    """``torch.optim.SGD``: L2 decay, momentum whose first buffer is the first gradient."""

    def __init__(
        self, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False, maximize=False
    ):
        self.momentum, self.dampening, self.nesterov = momentum, dampening, nesterov
        self.weight_decay, self.maximize = weight_decay, maximize
        self.buffers = {}

    def update(self, i, p, g, lr, weight_decay=None):
        """Return parameter i after one step from p; ``weight_decay`` replaces the base's own."""
        weight_decay = self.weight_decay if weight_decay is None else weight_decay
        g = (-g if self.maximize else g) + weight_decay * p
        if self.momentum == 0:
            return p - lr * g
        if i in self.buffers:
            self.buffers[i] = self.momentum * self.buffers[i] + (1 - self.dampening) * g
        else:
            self.buffers[i] = g
        return p - lr * (g + self.momentum * self.buffers[i] if self.nesterov else self.buffers[i])


class AdamW:
    """``torch.optim.AdamW``: decoupled decay first, epsilon outside the corrected square root."""

    def __init__(
        self, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2, amsgrad=False, maximize=False
    ):
        self.betas, self.eps, self.amsgrad = betas, eps, amsgrad
        self.weight_decay, self.maximize = weight_decay, maximize
        self.state = {}

    def update(self, i, p, g, lr, weight_decay=None):
        """Return parameter i after one step from p; ``weight_decay`` replaces the base's own."""
        weight_decay = self.weight_decay if weight_decay is None else weight_decay
        g = -g if self.maximize else g
        beta1, beta2 = self.betas
        zero = torch.zeros_like(p)
        k, first, second, largest = self.state.get(i, (0, zero, zero, zero))
        k = k + 1
        first = beta1 * first + (1 - beta1) * g
        second = beta2 * second + (1 - beta2) * g * g
        largest = torch.maximum(largest, second)
        self.state[i] = (k, first, second, largest)
        first_hat = first / (1 - beta1**k)
        second_hat = (largest if self.amsgrad else second) / (1 - beta2**k)
        return p - lr * weight_decay * p - lr * first_hat / (second_hat.sqrt() + self.eps)


class Muon:
    """Muon in float64: an average of gradients, five Newton-Schulz steps, a scale by the shape."""

    scales: ClassVar = {
        None: lambda a, b: max(1.0, a / b) ** 0.5,
        "original": lambda a, b: max(1.0, a / b) ** 0.5,
        "match_rms_adamw": lambda a, b: 0.2 * max(a, b) ** 0.5,
        "spectral_norm": lambda a, b: (a / b) ** 0.5,
        "spectral_unclamped": lambda a, b: (a / b) ** 0.5,
        "unit_rms": lambda a, b: max(a, b) ** 0.5,
        "none": lambda a, b: 1.0,
    }

    def __init__(
        self, momentum=0.95, nesterov=True, weight_decay=0.1, adjust_lr_fn=None, stack=False
    ):
        self.momentum, self.nesterov, self.stack = momentum, nesterov, stack
        self.weight_decay, self.scale = weight_decay, self.scales[adjust_lr_fn]
        self.buffers = {}

    def direction(self, i, g):
        """The orthogonalised update of parameter i, as a matrix."""
        g = g.reshape(len(g), -1)
        old = self.buffers.get(i, torch.zeros_like(g))
        new = self.buffers[i] = self.momentum * old + (1 - self.momentum) * g
        update = (1 - self.momentum) * g + self.momentum * new if self.nesterov else new
        return self.polar(update)

    def polar(self, u):
        """A matrix near the orthogonal factor of u."""
        return newton_schulz(u)

    def update(self, i, p, g, lr, weight_decay=None):
        """Return parameter i after one step from p; ``weight_decay`` replaces the base's own."""
        weight_decay = self.weight_decay if weight_decay is None else weight_decay
        if self.stack and p.dim() > 2:
            each = enumerate(zip(p, g, strict=True))
            return torch.stack([self.updated((i, k), *pg, lr, weight_decay) for k, pg in each])
        return self.updated(i, p, g, lr, weight_decay)

    def updated(self, i, p, g, lr, weight_decay):
        """One matrix after one step."""
        o = self.direction(i, g)
        return p - lr * weight_decay * p - lr * self.scale(*o.shape) * o.view(p.shape)


class NorMuon(Muon):
    """NorMuon: rows divided by the root of the average of their mean squares, the norm kept."""

    def __init__(self, beta2=0.95, **options):
        super().__init__(**options)
        self.beta2, self.averages = beta2, {}

    def direction(self, i, g):
        """As ``Muon.direction``."""
        o = super().direction(i, g)
        old = self.averages.get(i, torch.zeros_like(o[:, :1]))
        v = self.beta2 * old + (1 - self.beta2) * o.square().mean(1, keepdim=True)
        self.averages[i] = v
        p = o / (v.sqrt() + 1e-10)
        return p * o.norm() / (p.norm() + 1e-10)


class Aurora(Muon):
    """Aurora: rows scaled, in turn with the iteration, until the polar factor has equal ones."""

    def __init__(
        self, pp_iterations=2, pp_beta=0.5, weight_decay=0.025, ns_norm="frobenius", **options
    ):
        super().__init__(weight_decay=weight_decay, **options)
        self.iterations, self.beta, self.norm = pp_iterations, pp_beta, NORMS[ns_norm]

    def polar(self, u):
        """As ``Muon.polar``."""
        (m, n), simple = u.shape, (12, 2.0, -1.5, 0.5, self.norm)
        if m == n:
            return newton_schulz(u, *simple)
        if m < n:
            return self.polar(u.mT).mT
        d = 1 / u.norm(dim=1, keepdim=True).clamp(min=1e-7)
        for _ in range(self.iterations - 1):
            squares = newton_schulz(d * u, *simple).square().sum(1, keepdim=True)
            d = d * (n / m / squares.clamp(min=1e-14)) ** self.beta
        return newton_schulz(d * u, *simple)


# what bounds the largest singular value
NORMS = {"frobenius": torch.linalg.norm, "schatten4": lambda x: (x @ x.mT).norm().sqrt()}


def newton_schulz(g, steps=5, a=3.4445, b=-4.7750, c=2.0315, norm=NORMS["frobenius"]):
    """Jordan's iteration, as he writes it."""
    x = g.mT if g.shape[0] > g.shape[1] else g
    x = x / max(norm(x), 1e-7)
    for _ in range(steps):
        r = x @ x.mT
        x = a * x + (b * r + c * r @ r) @ x
    return x.mT if g.shape[0] > g.shape[1] else x
