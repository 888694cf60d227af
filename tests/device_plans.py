# SPDX-License-Identifier: MIT
"""Steps whose numbers a device finds, beside the same steps planned on the host.

As a script it runs the Triton kernel; Triton decides when it is imported whether it interprets, so
``test_plan_kernel`` starts this file with TRITON_INTERPRET set. It writes JSON.
"""

import json
import sys

import torch

import helpers
from emanest import EMANesterov, ScheduleFree, rules
from emanest.methods.given import group_entries
from emanest.methods.method import NO_LOOKAHEAD
from emanest.optimizers.adamw import ADAMW
from emanest.optimizers.sgd import BASE as SGD
from emanest.state.clock import Clock, planned
from emanest.step.on_device import DevicePlan, Found, trace

METHODS = {
    "none": NO_LOOKAHEAD,
    **{name: method for name, method in helpers.METHODS.items() if method.capturable},
    "ema copy": EMANesterov(0.5, 0.99, warmup=4, init="copy"),
    "ema constant": EMANesterov(0.3, 0.95, rest=20, follow_lr=False),
    "ema from 0": EMANesterov(0.5, 0.0, warmup=0, rest=1),
    "weighted schedule free": ScheduleFree(0.8, r=0.7, weight_lr_power=1.3),
}
_ADAM = {"weight_decay": 0.1, "eps": 1e-8}
_SGD = {"weight_decay": 0.1, "nesterov": False}
BASES = {
    "adamw": (ADAMW, {**_ADAM, "betas": (0.9, 0.999), "amsgrad": False}),
    "amsgrad": (ADAMW, {**_ADAM, "betas": (0.0, 0.99), "amsgrad": True}),
    "sgd": (SGD, {**_SGD, "momentum": 0.0, "dampening": 0.0}),
    "momentum": (SGD, {**_SGD, "momentum": 0.9, "dampening": 0.5}),
    "nesterov": (SGD, {**_SGD, "momentum": 0.9, "dampening": 0.0, "nesterov": True}),
}
PAIRS = [(method, base) for method in METHODS for base in BASES]

STEPS = 30
# among them the first and two in a row
SKIPPED = (0, 7, 8, 20)
GRAD_SCALE = 1024.0


def rate(t):
    """A learning rate that starts at 0, is 1 at times, rises above its first peak, and falls."""
    return (0.0, 0.05, 0.02, 1.0, 0.01, 1e-7)[t % 6]


def group_of(method, base, **more):
    """A parameter group as far as formulas look at it."""
    return {**BASES[base][1], "maximize": True, **group_entries(METHODS[method]), **more}


class Host:
    """A bucket of one parameter, planned as ``Optimizer`` does without a device."""

    def __init__(self, method, base):
        self.method, self.base, self.group = METHODS[method], base, group_of(method, base)
        names = "lookahead_t", *self.method.memory_entries
        self.entries = {name: self.group.get(name, 0) for name in names}
        self.entries |= {"step": 0.0, "lookahead": 0.0}

    def step(self, lr, skip):
        """The numbers of a step, with which it moves on."""
        now, group = self.entries, self.group
        clock = Clock(now["lookahead_t"], lr, {})
        memory = {name: now[f"lookahead_{name}"] for name in self.method.memory}
        clock = clock._replace(memory=self.method.remember(clock.t, lr, 0.03, memory))
        base, step, ahead = BASES[self.base][0], now["step"], now["lookahead"]
        own = group, self.method, base, clock
        plan, rule, numbers = planned(*own, step, ahead, GRAD_SCALE)
        self.rules = rule, plan.rule
        if not skip:
            step = {"step": now["step"] + 1, "lookahead": plan.ahead}
            self.entries = {**now, **step, **clock.after(self.method)}
        return [*numbers]


class Device:
    """The same with everything in tensors."""

    def __init__(self, method, base, backend="eager"):
        self.method, self.base, self.group = METHODS[method], base, group_of(method, base)
        self.backend = backend
        entries = Host(method, base).entries
        self.entries = {k: torch.tensor(v, dtype=torch.float64) for k, v in entries.items()}
        self.entries["step"] = self.entries["step"].float().view(1)
        self.plan = DevicePlan(torch.device("cpu"))

    def traced(self):
        return self.plan.trace(self.group, self.method, BASES[self.base][0], scaled=True)

    def step(self, lr, skip):
        traced = self.traced()
        self.rules = traced.base, traced.lookahead
        scale, skip = torch.tensor([GRAD_SCALE]), torch.tensor([float(skip)])
        inputs = {**self.entries, "lr": lr, "initial_lr": 0.03, "grad_scale": scale}
        self.found = Found(self.plan, traced, inputs, skip, self.backend)
        return self.found.run().tolist()


def error(found, expected):
    """The largest difference, relative to what is expected."""
    pairs = zip(found, expected, strict=True)
    return max(abs(a - b) / abs(b) if b else abs(a) for a, b in pairs)


def largest_error(method, base, backend="eager"):
    """Of numbers and of what moves on, over some steps, those that are skipped among them."""
    host, device, worst = Host(method, base), Device(method, base, backend), 0.0
    for t in range(STEPS):
        # a learning rate may be a tensor as well
        lr = rate(t) if t % 2 else torch.tensor(rate(t), dtype=torch.float64)
        before = {name: value.item() for name, value in device.entries.items()}
        numbers = device.step(lr, t in SKIPPED), host.step(rate(t), t in SKIPPED)
        after = {name: value.item() for name, value in device.entries.items()}
        assert host.rules == device.rules
        assert t not in SKIPPED or after == before
        worst = max(worst, error(*numbers), error(after.values(), host.entries.values()))
    return worst


# ---- the kernel ---------------------------------------------------------------------------------


def programs(pairs):
    """Of some pairs: those that differ, by name."""
    found = {}
    for method, base in pairs:
        group = group_of(method, base)
        traced = trace(group, METHODS[method], BASES[base][0], scaled=True)
        found.setdefault(traced.program, (f"{method} {base}", traced))
    return dict(found.values())


def interpret():

    # SGD's variants have the numbers of "momentum", AMSGrad those of AdamW
    pairs = [(m, b) for m in METHODS for b in ("adamw", "sgd", "momentum")]
    return {f"{m} {b}": largest_error(m, b, "triton") for m, b in pairs}


def signature(traced, hosts=("lr", "initial_lr")):
    """The kernel's signature and constants for a program."""
    from emanest.kernels import plan

    program = traced.program
    on_device = tuple(name not in hosts for name in program.inputs)
    constants = plan.compiled_for(program, on_device)
    singles = ("step", "grad_scale")
    pointers = ["*fp32" if n in singles else "*fp64" for n in program.inputs if n not in hosts]
    count = len(on_device) - sum(on_device) + len(traced.constants)
    types = {
        "pointers": tuple(pointers),
        "halves": ("i64",) * (2 * max(count, 1)),
        "out": "*fp64",
        "skip": "*fp32",
    }
    return {**types, **dict.fromkeys(constants, "constexpr")}, constants


def compile(what="some"):
    """Assembly for two targets, and Triton's own form; or the message of an error."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from emanest.kernels import plan

    targets = {
        "sm_90": (GPUTarget("cuda", 90, 32), "ptx"),
        "gfx942": (GPUTarget("hip", "gfx942", 64), "amdgcn"),
    }
    some = [p for p in PAIRS if p[1] == "adamw" or p[0] == "none"]
    found = {}
    for name, traced in programs(PAIRS if what == "all" else some).items():
        for target, (arguments, kind) in targets.items():
            source = ASTSource(plan.plan_kernel, *signature(traced))
            try:
                forms = triton.compile(source, arguments, plan.OPTIONS).asm
                found[f"{name} {target}"] = forms[kind], forms["ttir"]
            except Exception as problem:
                found[f"{name} {target}"] = f"{type(problem).__name__}: {problem}", ""
    return found


def specialized():
    """For several values of the numbers of the host, what Triton compiles the kernel for."""
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia.compiler import CUDABackend
    from triton.runtime.jit import create_function_from_signature

    from emanest.kernels import plan

    backend = CUDABackend(GPUTarget("cuda", 90, 32))
    kernel = plan.plan_kernel
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    device = Device("ema", "adamw")
    found = []
    values = [0.05, 0.0, -0.0, 1.0, 2.0, 16.0, 1e-300, 5e-324, 1e300, float("inf"), -0.05]
    for number in values:
        device.group["weight_decay"] = number if number not in (0.0, 1.0) else 0.3
        traced = device.traced()
        pointers = tuple(device.entries[n] for n in ("lookahead_t", "step", "lookahead"))
        out, skip = torch.empty(9, dtype=torch.float64), torch.zeros(1)
        constants = plan.compiled_for(traced.program, (True,) * 7)
        halves = plan.packed([number, *traced.constants])
        found.append(repr(bind(pointers, halves, out, skip, **constants)[1]))
    return found


if __name__ == "__main__":
    assert set(BASES) == set(rules.BASES) - {"direction"}
    run = {"interpret": interpret, "compile": compile, "specialized": specialized}[sys.argv[1]]
    json.dump(run(*sys.argv[2:]), sys.stdout)
