"""The optimizers whose whole step is one pass: AdamW and SGD."""

from typing import ClassVar

from . import bases
from .optimizer import Optimizer
from .options import suggesting


class AdamW(Optimizer):
    """AdamW, with any lookahead in the same pass.

        exp_avg = beta1 * exp_avg + (1 - beta1) * g
        exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * g * g
        u = -lr * (exp_avg / (1 - beta1^k)) / (sqrt(exp_avg_sq / (1 - beta2^k)) + eps)
            - lr * weight_decay * y

    With ``lookahead=None`` a drop-in for ``torch.optim.AdamW``: same options, defaults and state
    names. Memory: state is float32 (float64 for float64 parameters), 2 values per parameter, 3
    with ``amsgrad``, plus those of the lookahead method.

    With a lookahead the parameters hold y, the gradient point, while training: evaluate and save
    between ``eval()`` and ``train()``, or inside ``with opt.at_iterate():``.

    A second moment beyond the range of float32 (gradients above 5e20) gives NaN, where torch gives
    updates of 0 from then on.

    Args:
        params: parameters, (name, parameter) pairs, or groups (dicts); real or complex, dense.
        lr: step size, at least 0; a float or a 1-element tensor (copied for each group).
        betas: decay of the two averages, each in [0, 1).
        eps: added to the square root, at least 0.
        weight_decay: decoupled decay per unit of lr, at least 0; it acts at y (GPA: on z).
        amsgrad: divide by the largest second moment so far.
        lookahead: a method (``EMANesterov``, ``NAG``, ``Lookahead``, ``LongHorizon``, ``SNOO``,
            ``GPA``, ``ScheduleFree``, ``NALA``) or None; groups may override it.
        backend: name of a back end, or None for the best that works on the parameters' device.
        maximize: ascend.
        foreach, fused: accepted for compatibility and recorded; the step is one pass anyway.
        capturable: keep clock and numbers on the device, so that a CUDA graph can capture the step
            (not the first one, nor one after a load, which allocate and compile: RuntimeError);
            every parameter then needs a gradient at every step. Replays see an ``lr`` that moves if
            it was given as a tensor on the device: fill ``group["lr"]``, which is a copy of it.
        differentiable: must be False.
        nonfinite: ``"propagate"`` NaN and Inf as torch does, ``"skip"`` the whole step, or
            ``"raise"`` a RuntimeError that names the parameters; the last two read all gradients.

    Raises:
        TypeError, ValueError, RuntimeError: an argument is of the wrong kind or out of range; the
            message names it.

    Source: Loshchilov and Hutter, arXiv:1711.05101.
    """

    bases: ClassVar = {"adamw": bases.ADAMW}

    @suggesting
    def __init__(
        self,
        params,
        lr=1e-3,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=1e-2,
        amsgrad=False,
        *,
        lookahead=None,
        backend=None,
        maximize=False,
        foreach=None,
        fused=None,
        capturable=False,
        differentiable=False,
        nonfinite="propagate",
    ):
        """See the class."""
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "backend": backend,
            "maximize": maximize,
            "foreach": foreach,
            "fused": fused,
            "capturable": capturable,
            "differentiable": differentiable,
            "nonfinite": nonfinite,
        }
        super().__init__(params, defaults, lookahead)


class SGD(Optimizer):
    """SGD with momentum, with any lookahead in the same pass.

        g = g + weight_decay * y
        buf = momentum * buf + (1 - dampening) * g          first step: buf = g
        u = -lr * (g + momentum * buf if nesterov else buf)

    With ``lookahead=None`` a drop-in for ``torch.optim.SGD``. Memory: state is float32 (float64 for
    float64 parameters), 1 value per parameter with momentum, none without, plus those of the
    lookahead method.

    Args:
        params, lr, lookahead, backend, maximize, foreach, fused, capturable, differentiable,
            nonfinite: as in ``AdamW``.
        momentum: at least 0.
        dampening: of the gradient in the buffer, finite; not of the first one, if momentum is on
            from the first step.
        weight_decay: L2 penalty, at least 0, added to the gradient at y (GPA: decoupled, on z).
        nesterov: PyTorch's form, which holds the lookahead point in the parameters and has no
            iterate to evaluate; ``lookahead=NAG(momentum)`` is the canonical form.

    Raises:
        TypeError, ValueError, RuntimeError: as in ``AdamW``.

    Source: ``torch.optim.SGD``; Sutskever et al. 2013, where lr is inside the buffer.
    """

    bases: ClassVar = {"sgd": bases.SGD}

    @suggesting
    def __init__(
        self,
        params,
        lr=1e-3,
        momentum=0.0,
        dampening=0.0,
        weight_decay=0.0,
        nesterov=False,
        *,
        lookahead=None,
        backend=None,
        maximize=False,
        foreach=None,
        fused=None,
        capturable=False,
        differentiable=False,
        nonfinite="propagate",
    ):
        """See the class."""
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "backend": backend,
            "maximize": maximize,
            "foreach": foreach,
            "fused": fused,
            "capturable": capturable,
            "differentiable": differentiable,
            "nonfinite": nonfinite,
        }
        super().__init__(params, defaults, lookahead)
