# SPDX-License-Identifier: MIT
"""What is timed of SOAP, ours and others', and of the products and LAPACK calls of its step."""

import torch

import emanest
from emanest import backends

from .variants import Stepper, Variant, ours, plain

SOAP = {"lr": 1e-3, "betas": (0.9, 0.95), "weight_decay": 0.1}
# the first step finds bases; from then on none is turned, or one at every step
NEVER = 10**9


def square(shape):
    """Whether a first gradient defines both bases, and not rounding the larger one."""
    return len(shape) == 2 and shape[0] == shape[1]


def emanest_soap(frequency, **options):
    def make(params, capturable):
        soap = emanest.SOAP(params, **SOAP, precondition_frequency=frequency, **options)
        return ours(soap, params)

    return make


def pytorch_optimizer_soap(frequency):
    def make(params, capturable):
        import pytorch_optimizer

        peer = pytorch_optimizer.SOAP(params, **SOAP, precondition_frequency=frequency)
        return plain(peer, params)

    return make


class Parts:
    """The products and LAPACK calls of a step with a QR, on matrices that stay as they are.

    Those of one size go together, as in our step; nothing else is done.
    """

    def __init__(self, params):
        self.params, self.batches = params, []
        generator = torch.Generator().manual_seed(0)
        for size in dict.fromkeys(p.shape for p in params):
            at = [i for i, p in enumerate(params) if p.shape == size]
            g = torch.stack([params[i].grad for i in at])
            sides = [self._side(len(at), n, generator).to(g.dtype) for n in size]
            self.batches.append((at, g, sides))
        self.found = [torch.zeros_like(p, requires_grad=False) for p in params]

    def _side(self, count, n, generator):
        """A well-conditioned symmetric batch, whose rows stand for bases, too."""
        a = torch.randn(count, n, n, generator=generator, dtype=torch.float64)
        return a @ a.mT / n + torch.eye(n, dtype=torch.float64)

    @torch.no_grad()
    def step(self):
        """The calls."""
        for at, g, (left, right) in self.batches:
            its = backends.pick(g.device.type).products(g.device.type)
            p = its.mm(its.mm(left.mT, g), right)
            its.mm(its.mm(left, p), right.mT)
            for side, x in ((left, g), (right, g.mT)):
                its.sym_mm(x, side, 0.95, 0.05)
            first = its.mm(its.mm(left, p), right.mT)
            turned = []
            for side in (left, right):
                reflections = torch.geqrf(its.mm(side.mT, side).mT)
                turned.append(torch.linalg.householder_product(*reflections))
            left, right = turned
            for i, each in zip(at, its.mm(its.mm(left.mT, first), right), strict=True):
                self.found[i] = each


def parts(params, capturable):
    made = Parts(params)
    return Stepper(made.step, lambda: made.found)


OURS_SOAP = "emanest SOAP, no basis turned"
OURS_SOAP_QR = "emanest SOAP, every basis turned"
PYTORCH_OPTIMIZER_SOAP = "pytorch_optimizer SOAP, no basis turned"
PYTORCH_OPTIMIZER_SOAP_QR = "pytorch_optimizer SOAP, every basis turned"
PARTS = "products and LAPACK calls of SOAP"

# its QR is in float32, whatever the parameters: it is 2e-6 to 8e-6 off
_FLOAT32_QR = 3e4

VARIANTS = {
    OURS_SOAP: Variant("soap", emanest_soap(NEVER), own=True),
    OURS_SOAP_QR: Variant("soap qr", emanest_soap(1), own=True),
    PYTORCH_OPTIMIZER_SOAP: Variant(
        "soap", pytorch_optimizer_soap(NEVER), needs="pytorch_optimizer"
    ),
    PYTORCH_OPTIMIZER_SOAP_QR: Variant(
        "soap qr", pytorch_optimizer_soap(1), needs="pytorch_optimizer", slack=_FLOAT32_QR
    ),
    PARTS: Variant("soap's calls", parts, flat=True),
}

ORACLES = {
    "soap": emanest_soap(NEVER, backend="eager"),
    "soap qr": emanest_soap(1, backend="eager"),
    "soap's calls": parts,
}
