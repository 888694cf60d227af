# SPDX-License-Identifier: MIT
"""Textbook forms of every published method, the oracle that shipped code is compared with.

Plain float64 torch, every buffer kept, straight from the publications; nothing of emanest is used.
A method holds a list of parameters and a base from ``textbook_bases``; after each
``step(grads, lr)``

    y[i] is where the next gradient is taken (what a training loop's parameter would hold),
    x[i] is the iterate to evaluate.

``lr`` may change every step. All parameters share the clock t = number of ``step`` calls so far; a
parameter whose gradient is None is left exactly as it is, and one that misses a sync has it at the
next sync time at which it has a gradient. Tensors are never changed in place. Real numbers only.
"""

import torch


class Plain:
    """No lookahead, and what all methods share: the clock, the lists, the skipping."""

    def __init__(self, params, base):
        self.base = base
        self.t = 0
        self.y = [p.detach().clone().double() for p in params]
        self.x = [y.clone() for y in self.y]

    @torch.no_grad()
    def step(self, grads, lr):
        """Advance every parameter that has a gradient; ``grads`` were taken at ``y``."""
        self._plan(lr)
        assert len(grads) == len(self.y)
        for i, g in enumerate(grads):
            if g is not None:
                self._advance(i, g.double(), lr)
        self.t += 1

    def _plan(self, lr):
        """Compute what the whole group shares at step t."""

    def _advance(self, i, g, lr):
        """Move parameter i, given its gradient g at ``y[i]``."""
        self.x[i] = self.y[i] = self.base.update(i, self.y[i], g, lr)


class EMANesterov(Plain):
    """EMA-Nesterov (arXiv 2605.25395, Algorithm 1), two-phase, ``prev`` and ``m`` kept apart.

    The step size is the paper's beta and the decay its gamma. b of step t + 1 is fixed at the end
    of step t: ``stepsize * lr_t / peak_t`` for ``warmup <= t + 1 < rest``, else 0, where peak_t is
    the largest of ``initial_lr`` and the learning rates so far (0/0 is 1). A callable ``stepsize``
    gives b(t + 1) itself and follows no learning rate. ``init``: m starts at zero, starts as a copy
    of the parameter's first delta, or is bias-corrected by the parameter's number of updates.
    """

    def __init__(
        self,
        params,
        base,
        stepsize,
        decay,
        warmup=0,
        rest=None,
        follow_lr=True,
        init="zero",
        initial_lr=0.0,
    ):
        super().__init__(params, base)
        assert init in ("zero", "copy", "debias")
        self.stepsize, self.decay, self.warmup, self.rest = stepsize, decay, warmup, rest
        self.follow_lr, self.init, self.peak = follow_lr, init, initial_lr
        self.prev = [x.clone() for x in self.x]
        self.m = [torch.zeros_like(x) for x in self.x]  # raw average, before any bias correction
        self.updates = [0 for _ in self.x]
        self.b = [0.0 for _ in self.x]  # the coefficient inside each y

    def _plan(self, lr):
        self.peak = max(self.peak, lr)
        resting = self.rest is not None and self.t + 1 >= self.rest
        if self.t + 1 < self.warmup or resting:
            self.next_b = 0.0
        elif callable(self.stepsize):
            self.next_b = self.stepsize(self.t + 1)
        elif self.follow_lr and self.peak != 0:
            self.next_b = self.stepsize * (lr / self.peak)
        else:
            self.next_b = self.stepsize

    def _advance(self, i, g, lr):
        self.x[i] = self.base.update(i, self.y[i], g, lr)
        delta = self.x[i] - self.prev[i]
        self.prev[i] = self.x[i]
        self.updates[i] += 1
        if self.init == "copy" and self.updates[i] == 1:
            self.m[i] = delta
        else:
            self.m[i] = self.decay * self.m[i] + (1 - self.decay) * delta
        m = self.m[i]
        if self.init == "debias":
            m = m / (1 - self.decay ** self.updates[i])
        self.b[i] = self.next_b
        self.y[i] = self.x[i] + self.b[i] * m


class NAG(Plain):
    """Nesterov's accelerated gradient, canonical form (C): y = x + momentum (x - x_prev)."""

    def __init__(self, params, base, momentum):
        super().__init__(params, base)
        self.momentum = momentum

    def _advance(self, i, g, lr):
        x_prev = self.x[i]
        self.x[i] = self.base.update(i, self.y[i], g, lr)
        self.y[i] = self.x[i] + self.momentum * (self.x[i] - x_prev)


class Periodic(Plain):
    """Base steps on the fast weights y, and ``sync`` after every ``every`` of them.

    x is the slow weights (the initial parameters before the first sync).
    """

    def __init__(self, params, base, every):
        super().__init__(params, base)
        self.every = every

    def _advance(self, i, g, lr):
        self.y[i] = self.base.update(i, self.y[i], g, lr)
        if (self.t + 1) % self.every == 0:
            self._sync(i)


class Lookahead(Periodic):
    """Lookahead (Zhang et al. 2019): the slow weights go ``alpha`` of the way to the fast ones."""

    def __init__(self, params, base, every, alpha):
        super().__init__(params, base, every)
        self.alpha = alpha

    def _sync(self, i):
        self.x[i] = self.x[i] + self.alpha * (self.y[i] - self.x[i])
        self.y[i] = self.x[i]


class LookaheadReversed(Periodic):
    """Lookahead as a pessimistic extrapolation: y = x + (alpha - 1)(x - y of the last sync).

    The x of this formula, the end of the inner steps, is passed over; its y is the slow weights.
    """

    def __init__(self, params, base, every, alpha):
        super().__init__(params, base, every)
        self.alpha = alpha

    def _sync(self, i):
        end, start = self.y[i], self.x[i]
        self.x[i] = self.y[i] = end + (self.alpha - 1) * (end - start)


class LongHorizon(Periodic):
    """Long-horizon lookahead (eq. 6 of EMA-Nesterov): y = x + stepsize (x - x of the last sync).

    x is the fast weights between syncs and, after a sync, the point before the extrapolation.
    """

    def __init__(self, params, base, every, stepsize):
        super().__init__(params, base, every)
        self.stepsize = stepsize
        self.last = [x.clone() for x in self.x]

    def _advance(self, i, g, lr):
        self.x[i] = self.y[i] = self.base.update(i, self.y[i], g, lr)
        if (self.t + 1) % self.every == 0:
            self.y[i] = self.x[i] + self.stepsize * (self.x[i] - self.last[i])
            self.last[i] = self.x[i]


class SNOO(Periodic):
    """SNOO (Kallusky et al. 2025): PyTorch's Nesterov SGD on the pseudo-gradient w - w~.

    It is DiLoCo with one worker.
    """

    def __init__(self, params, base, every, lr, momentum):
        super().__init__(params, base, every)
        self.outer_lr, self.momentum = lr, momentum
        self.buffer = [torch.zeros_like(x) for x in self.x]

    def _sync(self, i):
        s = self.x[i] - self.y[i]
        self.buffer[i] = self.momentum * self.buffer[i] + s
        self.x[i] = self.x[i] - self.outer_lr * (self.momentum * self.buffer[i] + s)
        self.y[i] = self.x[i]


class MuLoCo(SNOO):
    """MuLoCo's form of the same step: the outer learning rate inside the buffer."""

    def _sync(self, i):
        s = self.x[i] - self.y[i]
        self.buffer[i] = self.momentum * self.buffer[i] + self.outer_lr * s
        self.x[i] = self.x[i] - self.momentum * self.buffer[i] - self.outer_lr * s
        self.y[i] = self.x[i]


class DiLoCo:
    """DiLoCo (arXiv 2311.08105): ``outer``, Nesterov SGD, steps on the workers' mean of w - w_k.

    One base per worker; ``step`` takes one list of gradients per worker, none missing. ``y[k][i]``
    is worker k's parameter i, ``x[i]`` the shared one. With one worker it is SNOO.
    """

    def __init__(self, params, bases, outer, every, lr):
        self.workers = [Plain(params, base) for base in bases]
        self.outer = outer
        self.every, self.outer_lr, self.t = every, lr, 0
        self.x = [p.detach().clone().double() for p in params]
        self.y = [worker.y for worker in self.workers]

    @torch.no_grad()
    def step(self, grads, lr):
        """Every worker steps alone; at a sync time all restart from the new x."""
        for worker, worker_grads in zip(self.workers, grads, strict=True):
            worker.step(worker_grads, lr)
        self.t += 1
        if self.t % self.every == 0:
            for i, w in enumerate(self.x):
                mean = sum(w - worker.y[i] for worker in self.workers) / len(self.workers)
                self.x[i] = self.outer.update(i, w, mean, self.outer_lr)
                for worker in self.workers:
                    worker.y[i] = self.x[i]


class GPA(Plain):
    """Generalized Primal Averaging (arXiv 2512.17131) with explicit x, y and z.

    The base's own decay is off; ``weight_decay`` shrinks z, decoupled, whatever the base.
    """

    def __init__(self, params, base, mu_x, mu_y, weight_decay=0.0):
        super().__init__(params, base)
        self.mu_x, self.mu_y, self.weight_decay = mu_x, mu_y, weight_decay
        self.z = [x.clone() for x in self.x]

    def _advance(self, i, g, lr):
        d = self.base.update(i, self.y[i], g, lr, weight_decay=0.0) - self.y[i]
        self.z[i] = (1 - lr * self.weight_decay) * self.z[i] + d
        self.x[i] = self.mu_x * self.x[i] + (1 - self.mu_x) * self.z[i]
        self.y[i] = self.mu_y * self.x[i] + (1 - self.mu_y) * self.z[i]


class ScheduleFree(Plain):
    """Schedule-Free (arXiv 2405.15682) with explicit x, y and z; decay at y, inside the base.

    ``momentum`` is the paper's beta (GPA's mu_y); the base has none of its own. The weights
    ``(t + 1)**r * lr_max**weight_lr_power`` follow the shared clock.
    """

    def __init__(self, params, base, momentum=0.9, r=0.0, weight_lr_power=2.0):
        super().__init__(params, base)
        self.momentum, self.r, self.weight_lr_power = momentum, r, weight_lr_power
        self.lr_max, self.weight_sum = 0.0, 0.0
        self.z = [x.clone() for x in self.x]

    def _plan(self, lr):
        self.lr_max = max(self.lr_max, lr)
        weight = (self.t + 1) ** self.r * self.lr_max**self.weight_lr_power
        self.weight_sum += weight
        self.c = weight / self.weight_sum if self.weight_sum != 0 else 0.0

    def _advance(self, i, g, lr):
        self.z[i] = self.z[i] + (self.base.update(i, self.y[i], g, lr) - self.y[i])
        self.x[i] = self.x[i] + self.c * (self.z[i] - self.x[i])
        self.y[i] = (1 - self.momentum) * self.z[i] + self.momentum * self.x[i]


class NALA(Plain):
    """NALA (Zuo et al. 2024): ``every`` inner steps, then one raw gradient step from between.

    After them y = (1 + mu) theta - mu phi; the parameter's next gradient, whenever it comes, is
    taken there and steps without the base (nor decay): phi = y - lr grad(y), theta = phi. A cycle
    has ``every + 1`` gradients. x is phi.
    """

    def __init__(self, params, base, every, lr, mu):
        super().__init__(params, base)
        self.every, self.raw_lr, self.mu = every, lr, mu
        self.awaits_raw = [False for _ in self.x]

    def _advance(self, i, g, lr):
        if self.awaits_raw[i]:
            ascent = -1 if self.base.maximize else 1
            self.x[i] = self.y[i] = self.y[i] - self.raw_lr * ascent * g
            self.awaits_raw[i] = False
            return
        self.y[i] = self.base.update(i, self.y[i], g, lr)
        if self.t % (self.every + 1) == self.every - 1:
            self.y[i] = (1 + self.mu) * self.y[i] - self.mu * self.x[i]
            self.awaits_raw[i] = True


class NAGSutskever(Plain):
    """Form (S) of NAG, on plain gradient steps: v = mu v - lr g(theta + mu v); theta += v.

    Equals (C) under any learning-rate schedule.
    """

    def __init__(self, params, momentum):
        super().__init__(params, None)
        self.momentum = momentum
        self.v = [torch.zeros_like(x) for x in self.x]

    def _advance(self, i, g, lr):
        self.v[i] = self.momentum * self.v[i] - lr * g
        self.x[i] = self.x[i] + self.v[i]
        self.y[i] = self.x[i] + self.momentum * self.v[i]


class NAGPyTorch(NAGSutskever):
    """Form (P): v = mu v + g; p -= lr (g + mu v), p being y. Equals (C) for a constant lr only."""

    def _advance(self, i, g, lr):
        self.v[i] = self.momentum * self.v[i] + g
        self.y[i] = self.y[i] - lr * (g + self.momentum * self.v[i])
        self.x[i] = self.y[i] + lr * self.momentum * self.v[i]


class NAGVelocity(NAGSutskever):
    """Form (P), lr in the velocity: v = mu v - lr g; p += mu v - lr g. Equals (C) always."""

    def _advance(self, i, g, lr):
        self.v[i] = self.momentum * self.v[i] - lr * g
        self.y[i] = self.y[i] + self.momentum * self.v[i] - lr * g
        self.x[i] = self.y[i] - self.momentum * self.v[i]
