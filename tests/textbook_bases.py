"""Textbook forms of the base optimizers, as ``torch.optim`` defines them, for real numbers.

``base.update(i, p, g, lr)`` returns the new parameter i from p, the point it is handed, and the
gradient g taken there. State, with its count of updates, belongs to the index i.
"""

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
