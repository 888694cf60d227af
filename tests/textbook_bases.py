# SPDX-License-Identifier: MIT
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


class SOAP:
    """SOAP (arXiv 2409.11321): Adam in eigenvectors Q of L and R, the averages of GG^T and G^TG.

    At step 0 of a matrix L and R get their first term, Q is found, and the matrix stays where it
    is. From then on L and R change after its update, and Q after every ``precondition_frequency``
    updates, by a QR of L Q. With ``update_basis="before"`` all that comes before the update, at
    step 0 too, where the matrix moves as well. A vector, and a side longer than
    ``max_precond_dim``, is not rotated.

    ``first[i] = (Q_L, Q_R)``, a batch for the matrices of parameter i, replaces what step 0 finds:
    where a first L has a null space, that is spanned by rounding.
    """

    def __init__(
        self,
        betas=(0.95, 0.95),
        shampoo_beta=None,
        eps=1e-8,
        weight_decay=0.01,
        precondition_frequency=10,
        max_precond_dim=10000,
        correct_bias=True,
        update_basis="after",
        decay="after",
        split=1,
        stack=False,
        maximize=False,
    ):
        assert {update_basis, decay} <= {"before", "after"}
        self.betas, self.eps, self.correct_bias = betas, eps, correct_bias
        self.shampoo_beta = betas[1] if shampoo_beta is None else shampoo_beta
        self.weight_decay, self.decay, self.maximize = weight_decay, decay, maximize
        self.frequency, self.longest = precondition_frequency, max_precond_dim
        self.update_basis, self.split, self.stack = update_basis, split, stack
        self.first, self.state = {}, {}

    def update(self, i, p, g, lr, weight_decay=None):
        """Return parameter i after one step from p; ``weight_decay`` replaces the base's own."""
        weight_decay = self.weight_decay if weight_decay is None else weight_decay
        parts = enumerate(self.matrices(-g if self.maximize else g))
        directions = [self.direction(i, j, part) for j, part in parts]
        if directions[0] is None:
            return p
        u = -lr * torch.stack(directions).view(p.shape)
        if self.decay == "after":
            return (p + u) * (1 - lr * weight_decay)
        return p + u - lr * weight_decay * p

    def matrices(self, g):
        """The matrices of a parameter, one after the other; of a vector itself."""
        if g.dim() < 2:
            return [g]
        members = g.unbind() if self.stack and g.dim() > 2 else [g]
        return [part.flatten(1) for member in members for part in member.chunk(self.split)]

    def direction(self, i, j, g):
        """The update of matrix j of parameter i over -lr; None where step 0 moves nothing."""
        s = self.state.setdefault((i, j), _State(g))
        k, before = s.step, self.update_basis == "before"
        s.step += 1
        if k == 0:
            self.find_bases(s, g, self.first.get(i), j)
            if not before:
                return None
        elif before:
            self.follow(s, g, k)
        beta1, beta2 = self.betas
        g_turned = s.turn(g)
        s.m = beta1 * s.m + (1 - beta1) * g_turned
        s.v = beta2 * s.v + (1 - beta2) * g_turned**2
        o = s.turn_back(s.m / (s.v.sqrt() + self.eps))
        if not before:
            self.follow(s, g, k)
        count = s.step if before else k
        corrected = (1 - beta2**count) ** 0.5 / (1 - beta1**count)
        return o * corrected if self.correct_bias else o

    def find_bases(self, s, g, first, j):
        """L, R and their eigenvectors, those of the largest eigenvalues first."""
        for side, gram in enumerate(grams(g)):
            if gram is not None and len(gram) <= self.longest:
                s.averages[side] = (1 - self.shampoo_beta) * gram
                if first is None:
                    s.q[side] = torch.linalg.eigh(s.averages[side]).eigenvectors.flip(1)
                else:
                    s.q[side] = first[side].double().view(-1, *gram.shape)[j]

    def follow(self, s, g, k):
        """Average g into L and R; at some steps the bases follow, V as sorted and M turned."""
        b = self.shampoo_beta
        for side, gram in enumerate(grams(g)):
            if s.q[side] is not None:
                s.averages[side] = b * s.averages[side] + (1 - b) * gram
        if k % self.frequency:
            return
        m = s.turn_back(s.m)
        for side, (average, q) in enumerate(zip(s.averages, s.q, strict=True)):
            if q is not None:
                order = (q.T @ average @ q).diagonal().argsort(descending=True)
                s.v = s.v.index_select(side, order)
                s.q[side] = torch.linalg.qr(average @ q[:, order]).Q
        s.m = s.turn(m)


class _State:
    """What SOAP keeps of a matrix; sides that are not rotated have None."""

    def __init__(self, g):
        self.step, self.m, self.v = 0, torch.zeros_like(g), torch.zeros_like(g)
        self.averages, self.q = [None, None], [None, None]

    def turn(self, x):
        """Q_L^T x Q_R."""
        left, right = self.q
        x = x if left is None else left.T @ x
        return x if right is None else x @ right

    def turn_back(self, x):
        """Q_L x Q_R^T."""
        left, right = self.q
        x = x if left is None else left @ x
        return x if right is None else x @ right.T


def grams(g):
    """G G^T and G^T G; of a vector None."""
    return (None, None) if g.dim() < 2 else (g @ g.T, g.T @ g)


def newton_schulz(g, steps=5, a=3.4445, b=-4.7750, c=2.0315, norm=NORMS["frobenius"]):
    """Jordan's iteration, as he writes it."""
    x = g.mT if g.shape[0] > g.shape[1] else g
    x = x / max(norm(x), 1e-7)
    for _ in range(steps):
        r = x @ x.mT
        x = a * x + (b * r + c * r @ r) @ x
    return x.mT if g.shape[0] > g.shape[1] else x
