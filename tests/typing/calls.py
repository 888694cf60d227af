# SPDX-License-Identifier: MIT
"""Calls that type checkers must reject, each beside one that they must accept."""

from typing import NamedTuple

BEFORE = """\
from collections.abc import Callable, Iterator
from typing import Any

import emanest
import torch
from emanest import AdamW, EMANesterov, Muon, SNOO, SOAP, Wrap
from emanest.tools import analysis, compare, statistics
from torch import nn


def at_step(t: int) -> float:
    return 0.5


def number() -> float:
    return 0.5


def tensor() -> torch.Tensor:
    return loss


def make_model() -> nn.Module:
    return nn.Linear(2, 2)


def make_batches(seed: int) -> Iterator[torch.Tensor]:
    yield loss


def make_optimizer(model: nn.Module) -> AdamW:
    return AdamW(model.parameters())


model = nn.Linear(2, 2)
loss = torch.zeros(())
loader = [loss]
adam = torch.optim.AdamW(model.parameters())
opt = AdamW(model.parameters())
EMA = EMANesterov()
optimizers = {"AdamW": make_optimizer}
"""


class Row(NamedTuple):
    """A call with a mistake, one without it, and what mypy and pyright call the mistake."""

    wrong: str
    right: str
    mypy: str  # the codes of its errors
    pyright: str  # their rules


def value(wrong, right):
    """A value of a wrong type."""
    return Row(wrong, right, "arg-type", "reportArgumentType")


def argument(wrong, right):
    """An argument that is not there, or that is missing."""
    return Row(wrong, right, "call-arg", "reportCallIssue")


def adamw(wrong, right):
    """An option of AdamW."""
    return value(f"AdamW(model.parameters(), {wrong})", f"AdamW(model.parameters(), {right})")


def muon(wrong, right):
    """An option of Muon."""
    return value(f"Muon(model.parameters(), {wrong})", f"Muon(model.parameters(), {right})")


REJECTED = {
    "lr is text": adamw('lr="0.1"', "lr=torch.tensor(0.1)"),
    "no lr": adamw("lr=None", "lr=1"),
    "lr is a list": adamw("lr=[0.1]", "lr=0.1"),
    "lr is complex": adamw("lr=1j", "lr=0.1"),
    "one beta": adamw("betas=0.9", "betas=(0.9, 0.999)"),
    "betas are text": adamw('betas="09"', "betas=[0.9, 0.999]"),
    "betas are a set": adamw("betas={0.9, 0.99}", "betas=(0.9, 0.99)"),
    "betas are a dict": adamw("betas={0.9: 0, 0.99: 1}", "betas=(0.9, 0.99)"),
    "a beta is text": adamw('betas=("a", 0.9)', "betas=(0, 0.9)"),
    "a beta is a tensor": adamw("betas=(torch.tensor(0.9), 0.99)", "betas=(0.9, 0.99)"),
    "weight_decay is text": adamw('weight_decay="x"', "weight_decay=0"),
    "amsgrad is a number": adamw("amsgrad=1.0", "amsgrad=True"),
    "lookahead is a number": adamw("lookahead=0.5", "lookahead=EMANesterov(0.5)"),
    "lookahead is a class": adamw("lookahead=EMANesterov", "lookahead=None"),
    "lookahead is a list": adamw('lookahead=["nag"]', 'lookahead="nag"'),
    "lookahead is an optimizer": adamw("lookahead=opt", 'lookahead={"name": "nag"}'),
    "no such policy": adamw('nonfinite="ignore"', 'nonfinite="skip"'),
    "policies": adamw('nonfinite=["skip"]', 'nonfinite="raise"'),
    "a device for a back end": adamw('backend="cuda"', 'backend="cpp"'),
    "back ends": adamw('backend=["cpp"]', "backend=None"),
    "maximize is text": adamw('maximize="yes"', "maximize=True"),
    "foreach is text": adamw('foreach="no"', "foreach=None"),
    "capturable is a number": adamw("capturable=2", "capturable=True"),
    "differentiable": adamw("differentiable=True", "differentiable=False"),
    "a misspelt option": argument(
        "AdamW(model.parameters(), lookahed=EMA)", "AdamW(model.parameters(), lookahead=EMA)"
    ),
    "lookahead by its place": argument(
        "AdamW(model.parameters(), 1e-3, (0.9, 0.99), 1e-8, 0.01, False, EMA)",
        "AdamW(model.parameters(), 1e-3, (0.9, 0.99), 1e-8, 0.01, False, lookahead=EMA)",
    ),
    "the module": value("AdamW(model)", "AdamW(model.parameters())"),
    "a group": value('AdamW({"params": [loss]})', 'AdamW([{"params": [loss], "lr": 0.1}])'),
    "a parameter": value("AdamW([1.0])", "AdamW([loss])"),
    "no parameters": value("AdamW(None)", "AdamW(model.named_parameters())"),
    "stepsize is text": value('EMANesterov(stepsize="0.5")', "EMANesterov(stepsize=at_step)"),
    "no such setting": argument("EMANesterov(rate=0.5)", "EMANesterov(stepsize=0.5)"),
    "warmup is a share": value("EMANesterov(warmup=0.3)", "EMANesterov(warmup=300, rest=None)"),
    "no such start": value('EMANesterov(init="ones")', 'EMANesterov(init="debias")'),
    "every is missing": argument("SNOO()", "SNOO(30)"),
    "every is text": value('SNOO(every="30")', "SNOO(every=30, lr=0.7)"),
    "a Wrap without a method": argument("Wrap(adam)", "Wrap(adam, None)"),
    "a Wrap of a model": value("Wrap(model, EMA)", 'Wrap(adam, "ema_nesterov")'),
    "a Wrap of parameters": Row(
        "Wrap([loss], EMA)", "Wrap([adam], EMA)", "list-item", "reportArgumentType"
    ),
    "nesterov is text": muon('nesterov="yes"', "nesterov=False"),
    "no such form": muon('ns_form="fast"', 'ns_form="gram"'),
    "no such dtype": muon('ns_dtype="float8"', 'ns_dtype="float16"'),
    "no such norm": muon('ns_norm="nuclear"', 'ns_norm="schatten4"'),
    "no such scale": muon('adjust_lr_fn="rms"', 'adjust_lr_fn="match_rms_adamw"'),
    "no such coefficients": muon('ns_coefficients="newton"', 'ns_coefficients="cans"'),
    "one coefficient": muon("ns_coefficients=3.4445", "ns_coefficients=(3.4445, -4.775, 2.0315)"),
    "half a step": muon("ns_steps=2.5", "ns_steps=3"),
    "a captured SOAP": value(
        "SOAP(model.parameters(), capturable=True)", "SOAP(model.parameters(), capturable=False)"
    ),
    "decay at no time": value(
        'SOAP(model.parameters(), decay="never")', 'SOAP(model.parameters(), decay="before")'
    ),
    "split parameters": value(
        "emanest.split_params(model.parameters())", "Muon(emanest.split_params(model), lr=0.02)"
    ),
    "rules are a list": value(
        'emanest.split_params(model, ["qkv"])',
        'emanest.split_params(model, {"qkv": {"split": 3}, "router": "adamw"})',
    ),
    "entries are a number": value(
        "emanest.split_params(model, muon=0.02)", 'emanest.split_params(model, muon={"lr": 0.02})'
    ),
    "a loss for a closure": Row(
        "opt.step(loss)",
        "opt.step(number)",
        "call-overload",
        "reportCallIssue reportArgumentType",
    ),
    "at_iterate of a step": argument("opt.at_iterate(3)", "opt.at_iterate()"),
    "no such method": Row(
        "opt.evaluate()", "opt.eval()", "attr-defined", "reportAttributeAccessIssue"
    ),
    "a path for a state": value(
        'opt.load_state_dict("model.pt")', "opt.load_state_dict(opt.state_dict())"
    ),
    "parameters for a group": value(
        "opt.add_param_group([loss])", 'opt.add_param_group({"params": [loss]})'
    ),
    "a list is no matrix": value(
        "emanest.orthogonalize([[1.0]])", "emanest.orthogonalize(loss, 3, [(2, -1.5, 0.5)])"
    ),
    "a loss for a function": value(
        "emanest.probe_lookahead(opt, loss, [0.5])", "emanest.probe_lookahead(opt, tensor, [0.5])"
    ),
    "torch's optimizer probed": value(
        "emanest.probe_lookahead(adam, number, [0.5])",
        "emanest.probe_lookahead(emanest.find(opt), number, [0.5])",
    ),
    "model before loader": value(
        "emanest.update_bn(model, loader, opt)", 'emanest.update_bn(loader, model, opt, "cpu")'
    ),
    "optimizer before model": value(
        "emanest.iterate_state_dict(opt, model)", "emanest.iterate_state_dict(model, opt)"
    ),
    "one seed": value(
        "compare(make_model, make_batches, optimizers, 3, 80)",
        "compare(make_model, make_batches, optimizers, range(3), 80)",
    ),
    "an optimizer to compare": Row(
        'compare(make_model, make_batches, {"AdamW": opt}, range(3), 80)',
        'compare(make_model, make_batches, {"AdamW": make_optimizer}, [1], 80, progress=print)',
        "dict-item",
        "reportArgumentType",
    ),
    "values are a number": value("statistics.mean(0.5)", "statistics.mean([0.5]).error"),
    "curvature is text": value(
        'analysis.spectral_radius(EMA, 0.1, "1")', "analysis.spectral_radius(None, 0.1, loss)"
    ),
    "a peak for a schedule": value(
        "emanest.schedules.proportional(0.5, 1.0)",
        "EMANesterov(stepsize=emanest.schedules.proportional(0.5, at_step))",
    ),
}

# what else must be accepted: of everything that a type says, the spellings that differ
ACCEPTED = """\
AdamW(list(model.parameters()))
AdamW(dict(model.named_parameters()).items())
groups = [{"params": [loss], "lr": 0.1}, {"params": [loss], "lookahead": EMA}]
AdamW(groups)
AdamW(emanest.split_params(model))
AdamW([p for p in model.parameters() if p.requires_grad], foreach=True, fused=None)
given: dict[str, Any] = {"lr": 0.1, "lookahead": EMA}
AdamW(model.parameters(), **given)
setting: emanest.Optimizer = AdamW(model.parameters(), lookahead={"name": "nag", "momentum": 0.9})
adams = [adam]
Wrap(adams, EMA)
Wrap((adam, torch.optim.SGD(model.parameters())), EMA)
value: float = opt.step(number)
same: torch.Tensor = opt.step(tensor)
opt.step()
base: torch.optim.Optimizer = opt
torch.optim.lr_scheduler.CosineAnnealingLR(opt, 10).step()
with opt.at_iterate() as it, opt.part_of_step(), emanest.at_iterate([opt]) as held:
    own: AdamW = it
    both: list[AdamW] = held
rates: list[float] = [group["lr"] for group in opt.param_groups]
figures: dict[str, float] = {name: figure.item() for name, figure in opt.metrics().items()}
every: list[emanest.Optimizer] = emanest.find_all(opt)
made: Callable[..., emanest.Optimizer] = AdamW
classes: list[type[emanest.Optimizer]] = [AdamW, emanest.SGD, Muon, emanest.NorMuon, SOAP]
methods: list[emanest.methods.method.MethodLike] = [EMA, None, "nag", {"name": "nag"}]
Muon(model.parameters(), ns_dtype=torch.float16, ns_coefficients=[[2.0, -1.5, 0.5]])


class Scaled(AdamW):
    _step_supports_amp_scaling = False

    def __init__(self, params: Any, scale: float, **options: Any) -> None:
        super().__init__(params, **options)
        self.scale = scale
"""
