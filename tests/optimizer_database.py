# SPDX-License-Identifier: MIT
"""Our optimizers as a table, in the shape of the one that PyTorch tests its own optimizers with.

The classes of the rows, torch's options for its optimizers, and its bad inputs are PyTorch's own.
"""

import ast
import functools
import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler, swa_utils

import emanest
from emanest import ScheduleFree, Wrap
from helpers import METHODS


def _of_torch():
    """The definitions of torch.testing._internal.common_optimizers that stand by themselves.

    They are read, not imported: the rest of torch.testing needs packages that are no dependency of
    torch, and freezes torch.backends' flags for the whole process.
    """
    folder = importlib.util.find_spec("torch").submodule_search_locations[0]
    source = Path(folder, "testing/_internal/common_optimizers.py").read_text()
    wanted = [
        node
        for node in ast.parse(source).body
        if isinstance(node, (ast.FunctionDef, ast.Import))
        or (isinstance(node, ast.ImportFrom) and not node.module.startswith("torch.testing"))
        or (isinstance(node, ast.ClassDef) and node.name.startswith(("Optimizer", "ErrorOpt")))
        or (isinstance(node, ast.Assign) and node.targets[0].id == "CUDA_CONFIG_GPUS")
    ]
    namespace = {}
    exec(compile(ast.Module(wanted, []), "common_optimizers.py", "exec"), namespace)
    return namespace


TORCH = _of_torch()
OptimizerInput, ErrorOptimizerInput = TORCH["OptimizerInput"], TORCH["ErrorOptimizerInput"]


def rows(table):
    return [OptimizerInput(params=None, kwargs=kwargs, desc=desc) for desc, kwargs in table.items()]


# beside the rows of torch's namesake
MORE = {
    "AdamW": {
        "betas": {"betas": (0.5, 0.9)},
        "eps": {"eps": 1e-4},
        "tensor lr": {"lr": torch.tensor(0.001)},
        "all": {"lr": 0.01, "weight_decay": 0.1, "amsgrad": True, "maximize": True},
    },
    "SGD": {"all": {"momentum": 0.9, "dampening": 0.1, "weight_decay": 0.1, "maximize": True}},
    "Muon": {
        "maximize": {"maximize": True, "weight_decay": 0.0},
        "no nesterov": {"nesterov": False},
        "scale": {"adjust_lr_fn": "match_rms_adamw"},
        "polar": {"ns_coefficients": "polar_express"},
    },
    "NorMuon": {"beta2": {"beta2": 0.5}, "eps": {"eps": 1e-6}},
    # whose other options are Muon's own
    "Aurora": {
        "default": {},
        "all": {"lr": 0.01, "weight_decay": 0.1, "pp_iterations": 3, "pp_beta": 0.25},
        "schatten4": {"ns_norm": "schatten4"},
    },
    "SOAP": {
        "default": {},
        "often": {"precondition_frequency": 2, "max_precond_dim": 5, "lr": torch.tensor(0.001)},
        "before": {"update_basis": "before", "decay": "before", "maximize": True},
    },
    "two": {
        "default": {},
        "tensor lr": {"lr": torch.tensor(0.001)},
        "weight_decay": {"weight_decay": 0.1},
        "maximize": {"lr": 0.01, "maximize": True},
    },
}
OURS = {"skip": {"nonfinite": "skip"}, "eager": {"backend": "eager"}}
CAPTURABLE = {"capturable": {"capturable": True}}

SCHEDULERS = {
    "step": lambda o: lr_scheduler.StepLR(o, 3, 0.5),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 8),
    "one cycle": lambda o, **options: lr_scheduler.OneCycleLR(o, 0.002, total_steps=30, **options),
    "plateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, factor=0.5, patience=1),
    "warm-up, cosine": lambda o: lr_scheduler.SequentialLR(
        o,
        [
            lr_scheduler.LinearLR(o, 0.1, total_iters=4),
            lr_scheduler.CosineAnnealingLR(o, 10),
        ],
        [4],
    ),
    "swa": lambda o: swa_utils.SWALR(o, swa_lr=1e-4, anneal_epochs=5),
}


class Entry(TORCH["OptimizerInfo"]):
    """A row: an optimizer, the options that it is tested with, and what it takes.

    ``make(params, lookahead, **kwargs)`` constructs it; params are tensors, pairs or groups.
    """

    name = ""  # torch's has that of the class

    def __init__(
        self, name, cls, make, inputs, *, errors, still, reference, waits=0, few=False, **attributes
    ):
        super().__init__(
            cls,
            optim_inputs_func=lambda device: inputs(),
            scheduler_inputs=SCHEDULERS,
            optim_error_inputs_func=errors,
            **attributes,
        )
        self.name, self._make = name, make
        self.still = still  # the options without momentum
        self.reference = reference  # the optimizer of torch with the same options
        self.waits = waits  # first steps of a parameter that do not move it
        self.few = few  # tests that take a lookahead are slow ones but for EMA-Nesterov

    def __repr__(self):
        return self.name

    @property
    def wraps(self):
        """Whether the base update is torch's."""
        return self.optim_cls is Wrap

    def slow(self, lookahead):
        """Whether a test with a lookahead, or one of that name, is a slow test."""
        return self.few and lookahead not in (METHODS["ema"], "ema")

    def make(self, params, lookahead, **kwargs):
        still = self.still if isinstance(lookahead, ScheduleFree) else {}
        return self._make(list(params), lookahead, {**still, **kwargs})

    def inputs(self, lookahead):
        """The rows that a lookahead goes with; kwargs are copies."""
        for row in self.optim_inputs_func("cpu"):
            kwargs = {
                k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in row.kwargs.items()
            }
            with_momentum = self.still.keys() & kwargs.keys()
            if isinstance(lookahead, ScheduleFree) and with_momentum:
                continue
            if kwargs.get("capturable") and lookahead is not None and not lookahead.capturable:
                continue
            yield OptimizerInput(None, kwargs, row.desc)

    def some_inputs(self, lookahead):
        """Every row without a lookahead and with EMA-Nesterov; with the others the first one."""
        for row in self.inputs(lookahead):
            yield row
            if lookahead not in (None, METHODS["ema"]):
                break


def _fused(cls, **own):
    return lambda params, lookahead, kwargs: cls(params, lookahead=lookahead, **{**own, **kwargs})


def _wrapped(cls):
    return lambda params, lookahead, kwargs: Wrap(cls(params, **kwargs), lookahead)


def _wrapped_two(params, lookahead, kwargs):
    """The first parameter, or group, on SGD with momentum, the others on AdamW."""
    betas = kwargs.pop("betas", None)
    still = betas is not None
    inner = [
        torch.optim.SGD(params[:1], momentum=0.0 if still else 0.9, **kwargs),
        torch.optim.AdamW(params[1:], betas=betas or (0.9, 0.999), **kwargs),
    ]
    return Wrap(inner, lookahead)


ADAMW = {
    "errors": TORCH["optim_error_inputs_func_adamw"],
    "still": {"betas": (0.0, 0.999)},
    "reference": torch.optim.AdamW,
}
SGD = {
    "errors": TORCH["optim_error_inputs_func_sgd"],
    "still": {"momentum": 0.0},
    "reference": torch.optim.SGD,
}
MUON = {
    "errors": TORCH["optim_error_inputs_func_muon"],
    "still": {"momentum": 0.0},
    "reference": torch.optim.Muon,
    "supports_complex": False,
}
SOAP = {
    **ADAMW,
    "still": {"betas": (0.0, 0.95)},
    "supports_complex": False,
    "waits": 1,
    "few": True,
}


def _inputs(name, *tables):
    def inputs():
        found = TORCH[f"optim_inputs_func_{name}"]("cpu")
        return [*found, *(row for table in tables for row in rows(table))]

    return inputs


DATABASE = {
    entry.name: entry
    for entry in (
        Entry(
            *("AdamW", emanest.AdamW, _fused(emanest.AdamW)),
            _inputs("adamw", MORE["AdamW"], OURS, CAPTURABLE),
            **ADAMW,
            has_capturable_arg=True,
        ),
        Entry(
            *("SGD", emanest.SGD, _fused(emanest.SGD)),
            _inputs("sgd", MORE["SGD"], OURS, CAPTURABLE),
            **SGD,
            has_capturable_arg=True,
        ),
        Entry(
            *("Muon", emanest.Muon, _fused(emanest.Muon)),
            _inputs("muon", MORE["Muon"], OURS, CAPTURABLE),
            **MUON,
            has_capturable_arg=True,
        ),
        Entry(
            *("NorMuon", emanest.NorMuon, _fused(emanest.NorMuon)),
            _inputs("muon", MORE["Muon"], MORE["NorMuon"], OURS, CAPTURABLE),
            **MUON,
            has_capturable_arg=True,
        ),
        Entry(
            # the default of 12 takes the suite as long as three other optimizers
            *("Aurora", emanest.Aurora, _fused(emanest.Aurora, ns_steps=2)),
            lambda: rows({**MORE["Aurora"], **OURS, **CAPTURABLE}),
            **MUON,
            # lookaheads come in the pass after the direction, which is Muon's
            few=True,
            has_capturable_arg=True,
        ),
        Entry(
            *("SOAP", emanest.SOAP, _fused(emanest.SOAP)),
            lambda: rows({**MORE["SOAP"], **OURS}),
            **SOAP,
        ),
        Entry(
            *("Wrap AdamW", Wrap, _wrapped(torch.optim.AdamW)),
            _inputs("adamw", MORE["AdamW"]),
            **ADAMW,
            supports_sparse=True,
        ),
        Entry(
            *("Wrap SGD", Wrap, _wrapped(torch.optim.SGD)),
            _inputs("sgd", MORE["SGD"]),
            **SGD,
            supports_sparse=True,
        ),
        Entry(
            *("Wrap two", Wrap, _wrapped_two, lambda: rows(MORE["two"])),
            **ADAMW,
            supports_param_groups=False,
        ),
    )
}
LOOKAHEADS = {"no lookahead": None, **METHODS}

each_entry = pytest.mark.parametrize("entry", DATABASE.values(), ids=DATABASE)
each_lookahead = pytest.mark.parametrize("lookahead", LOOKAHEADS.values(), ids=LOOKAHEADS)
elementwise = pytest.mark.parametrize(
    "entry", [entry for entry in DATABASE.values() if entry.supports_complex], ids=repr
)


class Problem:
    """Two matrices, and a convex loss of them: the squared error of a linear model."""

    def __init__(self, dtype=torch.float32, layout=torch.Tensor.clone):
        generator = torch.Generator().manual_seed(2)
        draw = functools.partial(torch.randn, generator=generator, dtype=dtype)
        self.weight = nn.Parameter(layout(draw(10, 5)))
        self.bias = nn.Parameter(layout(draw(10, 1)))
        self.input = draw(5, 1)

    @property
    def params(self):
        return [self.weight, self.bias]

    @property
    def named(self):
        return [("weight", self.weight), ("bias", self.bias)]

    def loss(self):
        return (self.weight @ self.input + self.bias).abs().square().sum()

    def backward(self):
        """Gradients at the parameters as they are; returns the loss."""
        for p in self.params:
            p.grad = None
        loss = self.loss()
        loss.backward()
        return loss


def train(problem, optimizer, steps, schedulers=()):
    for _ in range(steps):
        loss = problem.backward().detach()
        optimizer.step()
        for scheduler in schedulers:
            measured = isinstance(scheduler, lr_scheduler.ReduceLROnPlateau)
            scheduler.step(*[loss] * measured)
