# SPDX-License-Identifier: MIT
"""What we compare with and have to write ourselves.

The eager two-phase form is transcribed from Algorithm 1 of EMA-Nesterov (arXiv 2605.25395): the
same operations and the same two buffers as in the authors' wrapper, four eager operations per
tensor. The flat formulas are what an expert would write and compile in its place.
"""

import math

import torch

LR = 1e-3
BETAS = (0.9, 0.999)
EPS = 1e-8
WEIGHT_DECAY = 0.1
MOMENTUM = 0.9
# of EMA-Nesterov: step size (the paper's beta) and decay (gamma)
STEPSIZE = 0.5
DECAY = 0.99
# of Muon: with a step that leaves more than rounding errors of the parameters to be compared
MUON_LR = 0.02
MUON_MOMENTUM = 0.95
MUON_WEIGHT_DECAY = 0.1
# of Newton-Schulz: everybody's, torch's included
NS_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
NS_STEPS = 5


class TwoPhase:
    """EMA-Nesterov around an optimizer, eager: 44 bytes per float32 parameter on top of it."""

    def __init__(self, inner, params):
        self.inner, self.params = inner, list(params)
        self.previous = [p.detach().clone() for p in self.params]
        self.average = [torch.zeros_like(p, requires_grad=False) for p in self.params]

    @torch.no_grad()
    def extrapolate(self):
        """Before the gradient: y = x + stepsize m."""
        for p, m in zip(self.params, self.average, strict=True):
            p.add_(m, alpha=STEPSIZE)

    @torch.no_grad()
    def advance(self):
        """After the gradient: x' from the inner optimizer, m from x' - x."""
        self.inner.step()
        for p, previous, m in zip(self.params, self.previous, self.average, strict=True):
            delta = p - previous
            m.lerp_(delta, 1 - DECAY)
            previous.copy_(p)

    def step(self):
        """Both phases; the parameters hold x afterwards."""
        self.extrapolate()
        self.advance()


class Master:
    """Parameters of 16 bits trained through a float32 copy of them, which ``build`` steps."""

    def __init__(self, params, build):
        self.params = list(params)
        self.gradients = [p.grad for p in self.params]
        self.copies = [p.detach().float().requires_grad_() for p in self.params]
        for copy in self.copies:
            copy.grad = torch.zeros_like(copy)
        self.inner = build(self.copies)

    @torch.no_grad()
    def step(self):
        """Cast the gradients, step, cast the parameters back."""
        torch._foreach_copy_([copy.grad for copy in self.copies], self.gradients)
        self.inner.step()
        torch._foreach_copy_(self.params, self.copies)


class Idle(torch.optim.Optimizer):
    """An optimizer whose step does nothing, so that what is around it can be timed alone.

    Its first ``moves`` steps are plain SGD, so that no average is zero when timing starts.
    """

    def __init__(self, params, moves=3):
        super().__init__(params, {"lr": LR})
        self.moves = moves

    @torch.no_grad()
    def step(self, closure=None):
        """As the class says."""
        assert closure is None
        if self.moves > 0:
            self.moves -= 1
            for group in self.param_groups:
                for p in group["params"]:
                    p.add_(p.grad, alpha=-group["lr"])


def adamw(p, g, m, v, step_size, scale):
    """The AdamW update u, one pass over flat tensors; the last two are 1-element tensors."""
    m.lerp_(g, 1 - BETAS[0])
    v.mul_(BETAS[1]).add_((1 - BETAS[1]) * g * g)
    return -step_size * m / (v.sqrt() * scale + EPS) - LR * WEIGHT_DECAY * p


def flat_adamw(p, g, m, v, step_size, scale):
    """One AdamW step, in place."""
    p.add_(adamw(p, g, m, v, step_size, scale))


def flat_ema_adamw(p, g, m, v, e, step_size, scale):
    """One step of AdamW with EMA-Nesterov in its one-buffer form, in place: p holds y."""
    u = adamw(p, g, m, v, step_size, scale)
    e.add_((1 - DECAY) * (STEPSIZE * e + u - e))
    p.add_(u + STEPSIZE * e)


class Flat:
    """A flat formula, compiled, on one tensor that holds all parameters."""

    def __init__(self, params, formula, buffers):
        self.shapes, self.formula = [p.shape for p in params], formula
        self.gradients = [p.grad for p in params]
        self.p = torch.cat([p.detach().flatten() for p in params])
        self.g = torch.cat([g.flatten() for g in self.gradients])
        self.buffers = [torch.zeros_like(self.p) for _ in range(buffers)]
        # on the device, so that neither a new step nor a CUDA graph recompiles or freezes it; found
        # outside the compiled pass, which would take the powers anew for every parameter
        self.t = torch.zeros((), dtype=torch.float64, device=self.p.device)
        self.betas = torch.tensor(BETAS, dtype=torch.float64, device=self.p.device)
        self.factors = torch.ones(2, device=self.p.device)
        self.compiled = torch.compile(formula, dynamic=False, fullgraph=True)

    @torch.no_grad()
    def step(self):
        """One compiled pass, after the few numbers that it needs."""
        self.t.add_(1)
        bias = 1 - self.betas**self.t
        self.factors[:1] = LR / bias[:1]
        self.factors[1:] = bias[1:] ** -0.5
        self.compiled(self.p, self.g, *self.buffers, self.factors[:1], self.factors[1:])

    def take_gradients(self):
        """Copy the gradients again, which are not in one tensor."""
        self.g.copy_(torch.cat([g.flatten() for g in self.gradients]))

    def iterate(self):
        """x, shaped as the parameters."""
        ahead = STEPSIZE * self.buffers[2] if self.formula is flat_ema_adamw else 0
        pieces = (self.p - ahead).split([math.prod(shape) for shape in self.shapes])
        return [x.view(shape) for x, shape in zip(pieces, self.shapes, strict=True)]
