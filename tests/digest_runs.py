# SPDX-License-Identifier: MIT
"""What ``digest`` runs: rows of optimizers and parameters, each trained through all that happens.

``ROWS`` maps names to functions of ``add(name, value)``, which takes what there is to see.
"""

import contextlib
import copy
import functools
import io
import itertools
import os

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

import emanest
from emanest import (
    GPA,
    NAG,
    NALA,
    SNOO,
    EMANesterov,
    LongHorizon,
    Lookahead,
    ScheduleFree,
    Wrap,
    schedules,
)

LR = 0.03
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
BACKENDS = ("eager", "cpp")

# every rule of a lookahead occurs within 20 steps, and the edits below fall between syncs
METHODS = {
    "none": None,
    "ema": EMANesterov(0.5, 0.9),
    "ema window": EMANesterov(-0.8, 0.7, warmup=3, rest=12, init="debias"),
    "ema copy": EMANesterov(0.7, 0.95, follow_lr=False, init="copy"),
    "nag": NAG(0.8),
    "lookahead": Lookahead(3, 0.5),
    "long horizon": LongHorizon(5, 0.5),
    "snoo": SNOO(3, 0.7, 0.5),
    "gpa": GPA(0.9, 0.7),
    "schedule free": ScheduleFree(0.9, r=1.0),
    "nala": NALA(3, 1e-2, -0.4),
}
FEW = {name: METHODS[name] for name in ("none", "ema", "lookahead", "gpa", "nala")}
# without syncs, and without a callable
ON_DEVICE = {
    name: METHODS[name] for name in ("none", "ema", "ema window", "nag", "gpa", "schedule free")
}

# ---- parameters ---------------------------------------------------------------------------------

MIXED = [(3, 5), (7,), (), (37, 3)]
MATRICES = [(3, 5), (6, 4), (5, 2, 2, 2), (4, 8)]


def drawn(shape, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    wide = torch.complex128 if dtype.is_complex else torch.float64
    return torch.randn(shape, generator=generator, dtype=wide).to(dtype)


def parameters(shapes, dtype, layout=lambda t: t):
    return [nn.Parameter(layout(drawn(shape, dtype, i))) for i, shape in enumerate(shapes)]


def channels_last(t):
    return t.to(memory_format=torch.channels_last) if t.dim() == 4 else t


def transposed(t):
    return t.mT.contiguous().mT if t.dim() > 1 else t


def with_gaps(t):
    """The same values in every other place of a larger tensor."""
    return torch.stack([t, t], -1)[..., 0]


def copied(p):
    """A parameter with the values and the strides of another."""
    whole = torch.empty_strided(p.shape, p.stride(), dtype=p.dtype)
    return nn.Parameter(whole.copy_(p.detach()), requires_grad=p.requires_grad)


# ---- a run --------------------------------------------------------------------------------------


def params_of(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def seen(optimizer):
    """All that a user sees of an optimizer."""
    params = params_of(optimizer)
    groups = [{**group, "params": len(group["params"])} for group in optimizer.param_groups]
    return {
        "params": [p.detach() for p in params],
        "grads": [p.grad for p in params],
        "state": [dict(optimizer.state.get(p, {})) for p in params],
        "groups": groups,
    }


class Run:
    """An optimizer in training, replaced by a fresh one at every load.

    Args:
        add: takes what there is to see.
        make: params -> optimizer.
        params: to begin with.
        layout: of gradients.
        every_gradient: at every step; some optimizers need them all.
        scaled: whether a GradScaler takes some of the steps.
    """

    def __init__(self, add, make, params, layout, every_gradient, scaled):
        self.add, self.make, self.layout = add, make, layout
        self.every_gradient = every_gradient
        self.scaler = torch.amp.GradScaler("cpu", init_scale=8.0) if scaled else None
        self._begin(params)

    def _begin(self, params):
        self.optimizer = self.make(params)
        # initial_lr of those that are loaded is in their groups
        self.scheduler = LambdaLR(self.optimizer, lambda t: min(1.0, (t + 1) / 4) * (1 - t / 40))

    def look(self, name):
        self.add(name, seen(self.optimizer))

    def gradients(self, t):
        for i, p in enumerate(params_of(self.optimizer)):
            if p.requires_grad:
                noise = drawn(p.shape, p.dtype, 1000 * t + i)
                p.grad = self.layout(p.detach() * 0.5 + noise)

    def step(self, t):
        self.optimizer.step()
        # all of it is seen at every event, and at some steps without one
        if t % 5 == 1:
            self.look(f"step {t}")
        else:
            self.add(f"step {t}", [p.detach() for p in params_of(self.optimizer)])
        self.scheduler.step()

    def saved(self):
        file = io.BytesIO()
        torch.save(self.optimizer.state_dict(), file)
        file.seek(0)
        state = torch.load(file, weights_only=True)
        self.add("saved", state)
        return state

    def moved(self):
        """Go on with a fresh optimizer, from a file."""
        state, schedule = self.saved(), self.scheduler.state_dict()
        self._begin([copied(p) for p in params_of(self.optimizer)])
        self.optimizer.load_state_dict(state)
        self.scheduler.load_state_dict(schedule)
        self.look("loaded")

    def found_inf(self, t):
        """What a GradScaler says to those that skip by themselves."""
        if self.every_gradient:
            return
        self.optimizer.grad_scale, self.optimizer.found_inf = torch.tensor(4.0), torch.tensor(1.0)
        try:
            self.step(t)
        finally:
            del self.optimizer.grad_scale, self.optimizer.found_inf

    def scaled(self, t, overflow):
        if self.scaler is None:
            return
        scale = float(self.scaler.scale(torch.tensor(1.0)))
        for p in params_of(self.optimizer):
            if p.grad is not None:
                p.grad *= scale
        if overflow:
            params_of(self.optimizer)[0].grad.fill_(float("inf"))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.look(f"scaled {t}")

    @torch.no_grad()
    def edited(self):
        params_of(self.optimizer)[0].mul_(0.75)

    @torch.no_grad()
    def evaluated(self, inside=lambda: None):
        self.optimizer.eval()
        self.look("eval")
        self.add("metrics", self.optimizer.metrics())
        inside()
        self.optimizer.train()
        self.look("train")

    def through(self):
        for t in range(20):
            self.gradients(t)
            self._before(t)
            self.step(t)
            self._after(t)
        self.look("end")
        self.add("metrics", self.optimizer.metrics())

    def _before(self, t):
        params = params_of(self.optimizer)
        if self.every_gradient and t in (3, 5):
            return
        if t == 3:
            params[1].grad = None
        elif t == 5:
            for p in params:
                p.grad = None
        elif t == 10:
            self.edited()
        elif t == 11:
            self.found_inf(t)
        elif t == 12:
            for overflow in (True, False):
                self.scaled(t, overflow)
                self.gradients(t)

    def _after(self, t):
        if t in (0, 4, 11):
            self.evaluated()
        elif t == 6:
            with torch.no_grad(), self.optimizer.part_of_step():
                for p in params_of(self.optimizer):
                    p.mul_(0.9)
        elif t == 7:
            with self.optimizer.at_iterate():
                self.look("at iterate")
            self.add("metrics", self.optimizer.metrics())
        elif t == 8:
            self.moved()
        elif t == 14:
            self.evaluated(self.moved)
        elif t == 16:
            self.evaluated(self.edited)
        elif t == 17:
            params_of(self.optimizer)[-1].data.mul_(1.25)
            self.optimizer.resync()


@contextlib.contextmanager
def environment(backend):
    os.environ["EMANEST_BACKEND"] = backend
    try:
        yield
    finally:
        del os.environ["EMANEST_BACKEND"]


def trained(
    add, make, shapes, dtype, *, layout=lambda t: t, grads=lambda t: t, every_gradient=False,
    backend=None, end=lambda run: None,
):  # fmt: skip
    """Train; ``backend`` is for optimizers whose groups name none, ``end`` comes at the end."""
    scaled = dtype is not torch.float16 and not dtype.is_complex and not every_gradient
    with environment(backend) if backend else contextlib.nullcontext():
        run = Run(add, make, parameters(shapes, dtype, layout), grads, every_gradient, scaled)
        run.through()
        end(run)


# ---- rows: every base, method, dtype and back end -----------------------------------------------


def _without_momentum(method, options, name, still):
    return {**options, name: still} if isinstance(method, ScheduleFree) else options


def _adamw(params, method, **options):
    options = {"lr": LR, "betas": (0.9, 0.99), "weight_decay": 0.1, **options}
    options = _without_momentum(method, options, "betas", (0.0, 0.99))
    return emanest.AdamW(params, lookahead=method, **options)


def _sgd(params, method, **options):
    return emanest.SGD(params, lookahead=method, **{"lr": LR, "weight_decay": 0.1, **options})


def _muon(params, method, cls=emanest.Muon, **options):
    options = {"lr": LR, **_without_momentum(method, {"momentum": 0.9}, "momentum", 0.0), **options}
    return cls(params, lookahead=method, **options)


def _soap(params, method, **options):
    """Bases are found, kept and turned twice within 20 steps."""
    options = {"lr": LR, "betas": (0.9, 0.95), "precondition_frequency": 7, **options}
    options = _without_momentum(method, options, "betas", (0.0, 0.95))
    return emanest.SOAP(params, lookahead=method, **options)


def _two_bases(params, method, cls=emanest.Muon, **options):
    """Matrices on Muon, the others on AdamW in the same optimizer."""
    betas = (0.0, 0.99) if isinstance(method, ScheduleFree) else (0.9, 0.99)
    groups = [
        {"params": [p for p in params if p.dim() > 1]},
        {"params": [p for p in params if p.dim() < 2], "base": "adamw", "betas": betas},
    ]
    return _muon(groups, method, cls, **options)


# name -> constructor and shapes; with Schedule-Free, momentum and nesterov are errors
BASES = {
    "adamw": (_adamw, MIXED),
    "amsgrad": (functools.partial(_adamw, amsgrad=True), MIXED),
    "sgd": (_sgd, MIXED),
    "momentum": (functools.partial(_sgd, momentum=0.8, dampening=0.3), MIXED),
    "nesterov": (functools.partial(_sgd, momentum=0.8, nesterov=True), MIXED),
    "muon": (_muon, MATRICES),
    "normuon": (functools.partial(_muon, cls=emanest.NorMuon), MATRICES),
    "aurora": (functools.partial(_muon, cls=emanest.Aurora), MATRICES),
    "soap": (_soap, [*MATRICES, *MIXED]),
    "muon+adamw": (_two_bases, MIXED),
}


def _bases():
    for (base, (make, shapes)), (method, lookahead), dtype, backend in itertools.product(
        BASES.items(), METHODS.items(), DTYPES, BACKENDS
    ):
        made = functools.partial(make, method=lookahead, backend=backend)
        name = f"{base} / {method} / {str(dtype)[6:]} / {backend}"
        yield name, functools.partial(trained, make=made, shapes=shapes, dtype=dtype)


# ---- rows: a lookahead around torch's -----------------------------------------------------------


def _wrapped(params, method, kinds):
    """The first parameters on the first optimizer, those that are left on the last."""
    made, params = [], list(params)
    for i, kind in enumerate(kinds):
        some = params[2 * i :] if i + 1 == len(kinds) else params[2 * i : 2 * i + 2]
        still = isinstance(method, ScheduleFree)
        options = {
            torch.optim.AdamW: {"betas": (0.0 if still else 0.9, 0.99)},
            torch.optim.SGD: {"momentum": 0.0 if still else 0.8},
        }[kind]
        made.append(kind(some, lr=LR, weight_decay=0.1, **options))
    return Wrap(made if len(made) > 1 else made[0], method)


WRAPPED = {
    "AdamW": (torch.optim.AdamW,),
    "SGD": (torch.optim.SGD,),
    "two": (torch.optim.SGD, torch.optim.AdamW),
}


def _wraps():
    for (inner, kinds), (method, lookahead), dtype, backend in itertools.product(
        WRAPPED.items(), METHODS.items(), DTYPES[:3], BACKENDS
    ):
        make = functools.partial(_wrapped, method=lookahead, kinds=kinds)
        name = f"Wrap {inner} / {method} / {str(dtype)[6:]} / {backend}"
        yield (
            name,
            functools.partial(trained, make=make, shapes=MIXED, dtype=dtype, backend=backend),
        )


# ---- rows: options, layouts, groups -------------------------------------------------------------

STACKED = [(3, 4, 5), (2, 6, 4), (3, 5), (2, 4, 2, 2)]
OF_MUON = {
    "split": ([(6, 4), (12, 3)], {"split": 3}),
    "stack": (STACKED, {"stack": True}),
    "stack split": (STACKED[:2], {"stack": True, "split": 2}),
    "no stack": (STACKED, {"stack": False}),
    "ambiguous": (STACKED, {}),
    "gram": (MATRICES, {"ns_form": "gram", "ns_dtype": "float32"}),
    "standard": (MATRICES, {"ns_form": "standard", "ns_steps": 3}),
    "in bfloat16": (MATRICES, {"ns_dtype": "bfloat16", "nesterov": False}),
    "polar": (MATRICES, {"ns_coefficients": "polar_express", "adjust_lr_fn": "match_rms_adamw"}),
    "spectral": (MATRICES, {"adjust_lr_fn": "spectral_norm", "maximize": True, "eps": 0.5}),
    "alike": ([(4, 6)] * 3 + [(6, 4)] * 2, {"adjust_lr_fn": "unit_rms", "foreach": True}),
}


def _of_muon():
    for cls, (option, (shapes, options)), method, backend in itertools.product(
        (emanest.Muon, emanest.NorMuon), OF_MUON.items(), ("none", "ema", "gpa"), BACKENDS
    ):
        make = functools.partial(_muon, method=METHODS[method], cls=cls, backend=backend, **options)
        name = f"{cls.__name__} {option} / {method} / {backend}"
        yield name, functools.partial(trained, make=make, shapes=shapes, dtype=torch.float32)


LAYOUTS = {
    "channels last": (channels_last, channels_last),
    "channels last, gradients not": (channels_last, torch.clone),
    "gradients channels last": (torch.clone, channels_last),
    "transposed": (transposed, torch.clone),
    "with gaps": (with_gaps, torch.clone),
    "gradients with gaps": (torch.clone, with_gaps),
    "both with gaps": (with_gaps, with_gaps),
}
LAID_OUT = [(3, 5), (7, 2), (4, 3, 2, 5)]


def _layouts():
    for (layout, (params, grads)), (base, (make, _)), method, backend in itertools.product(
        LAYOUTS.items(), BASES.items(), ("ema", "snoo"), BACKENDS
    ):
        if base not in ("adamw", "momentum", "muon", "normuon"):
            continue
        made = functools.partial(make, method=METHODS[method], backend=backend)
        name = f"{layout} / {base} / {method} / {backend}"
        yield (
            name,
            functools.partial(
                trained, make=made, shapes=LAID_OUT, dtype=torch.float32, layout=params, grads=grads
            ),
        )


def _complex():
    for base, (method, lookahead), dtype, backend in itertools.product(
        ("adamw", "amsgrad", "momentum"),
        METHODS.items(),
        (torch.complex64, torch.complex128),
        BACKENDS,
    ):
        make = functools.partial(BASES[base][0], method=lookahead, backend=backend)
        for grads in ("conj", "plain") if method == "ema" else ("plain",):
            name = f"{base} / {method} / {str(dtype)[6:]} {grads} / {backend}"
            layout = torch.conj if grads == "conj" else torch.clone
            yield (
                name,
                functools.partial(trained, make=make, shapes=MIXED, dtype=dtype, grads=layout),
            )


def _not_finite(add, make, shapes):
    """Some gradients are not finite; one that raises leaves everything as it was."""
    optimizer = make(parameters(shapes, torch.float32))
    run = Run(add, lambda params: optimizer, [], torch.clone, False, False)
    for t in range(8):
        run.gradients(t)
        if t in (0, 3, 6):
            params_of(optimizer)[t % 2].grad.view(-1)[t // 3] = (float("inf"), float("nan"))[t % 2]
        try:
            run.step(t)
        except RuntimeError as error:
            add(f"raised {t}", str(error))
            run.look(f"raised {t}")
    run.evaluated()


def _nonfinite():
    for policy, base, (method, lookahead), capturable, backend in itertools.product(
        ("propagate", "skip", "raise"), ("adamw", "momentum", "muon"), FEW.items(),
        (False, True), BACKENDS,
    ):  # fmt: skip
        if capturable and method not in ON_DEVICE:
            continue
        make, shapes = BASES[base]
        made = functools.partial(
            make, method=lookahead, backend=backend, nonfinite=policy, capturable=capturable
        )
        name = f"{base} {policy}{' capturable' * capturable} / {method} / {backend}"
        yield name, functools.partial(_not_finite, make=made, shapes=shapes)


def _capturable():
    """The clock and the numbers are tensors, as in a CUDA graph."""
    for (base, (make, shapes)), (method, lookahead), dtype, backend in itertools.product(
        BASES.items(), ON_DEVICE.items(), DTYPES[1:3], BACKENDS
    ):
        options = {"capturable": True, "backend": backend, "lr": torch.tensor(LR)}
        made = functools.partial(make, method=lookahead, **options)
        name = f"{base} capturable / {method} / {str(dtype)[6:]} / {backend}"
        yield (
            name,
            functools.partial(trained, make=made, shapes=shapes, dtype=dtype, every_gradient=True),
        )


OF_ALL = {
    "maximize": {"maximize": True},
    "tensor lr": {"lr": torch.tensor(LR)},
    "differentiable": {"differentiable": True},
    "lr zero": {"lr": 0.0},
}


def _options():
    for (option, options), (base, (make, shapes)), method, backend in itertools.product(
        OF_ALL.items(), BASES.items(), ("ema", "gpa"), BACKENDS
    ):
        given = {k: copy.deepcopy(v) for k, v in options.items()}
        made = functools.partial(make, method=METHODS[method], backend=backend, **given)
        name = f"{base} {option} / {method} / {backend}"
        yield name, functools.partial(trained, make=made, shapes=shapes, dtype=torch.float32)


def _groups_of(params, backend):
    """Groups with a method, a rate and entries of their own; one parameter is frozen."""
    first, second, third, fourth = params
    second.requires_grad_(False)
    groups = [
        {"params": [first], "lookahead": METHODS["snoo"], "user": "entry"},
        {"params": [second, third], "lookahead": None, "lr": 0.01},
        {"params": [fourth], "lookahead_decay": 0.5, "lookahead_warmup": 2, "weight_decay": 0.0},
    ]
    return emanest.AdamW(groups, lr=LR, lookahead=METHODS["ema"], backend=backend)


def _added(run):
    """A group joins; the whole is copied and goes on; the method of a group is changed."""
    late = {"params": parameters([(2, 3)], torch.float32), "lookahead": METHODS["lookahead"]}
    run.optimizer.add_param_group(late)
    for t in range(20, 24):
        run.gradients(t)
        run.optimizer.step()
        run.look(f"added {t}")
    run.optimizer = copy.deepcopy(run.optimizer)
    run.optimizer.param_groups[0]["lookahead_momentum"] = 0.25
    for t in range(24, 28):
        run.gradients(t)
        run.optimizer.step()
        run.look(f"copied {t}")
    run.evaluated()


def _mixed_dtypes(params, backend):
    dtypes = (torch.float64, torch.bfloat16, torch.float32, torch.float32)
    params = [nn.Parameter(p.detach().to(d)) for p, d in zip(params, dtypes, strict=True)]
    return _adamw(params, METHODS["ema"], backend=backend)


CALLABLES = {
    "callable": EMANesterov(lambda t: 0.5 if t % 3 else -0.25, 0.9),
    "proportional": EMANesterov(
        schedules.proportional(0.5, lambda t: LR * (1 - t / 40)), 0.9, init="debias"
    ),
}


def _others():
    for backend in BACKENDS:
        make = functools.partial(_groups_of, backend=backend)
        yield (
            f"groups / {backend}",
            functools.partial(trained, make=make, shapes=MIXED, dtype=torch.float32, end=_added),
        )
        make = functools.partial(_mixed_dtypes, backend=backend)
        yield (
            f"mixed dtypes / {backend}",
            functools.partial(trained, make=make, shapes=MIXED, dtype=torch.float64),
        )
        for name, method in CALLABLES.items():
            make = functools.partial(_adamw, method=method, backend=backend)
            yield (
                f"{name} / {backend}",
                functools.partial(trained, make=make, shapes=MIXED, dtype=torch.float32),
            )
        yield f"model / {backend}", functools.partial(_model, backend=backend)


# ---- rows: functions ----------------------------------------------------------------------------


def _probed(add, make, shapes):
    """Losses along the direction, in both modes; a method without one is an error."""
    optimizer = make(parameters(shapes, torch.float32))
    run = Run(add, lambda params: optimizer, [], torch.clone, False, False)
    for t in range(6):
        run.gradients(t)
        run.step(t)

    def loss():
        return float(sum(p.detach().double().square().sum() for p in params_of(optimizer)))

    for mode in ("train", "eval"):
        getattr(optimizer, mode)()
        add(mode, emanest.probe_lookahead(optimizer, loss, [0.0, 0.5, -1.0, 2.0]))
        add(mode, optimizer.metrics())
        run.look(mode)


def _probes():
    for (base, (make, shapes)), method, backend in itertools.product(
        BASES.items(), ("ema", "nag", "snoo"), BACKENDS
    ):
        made = functools.partial(make, method=METHODS[method], backend=backend)
        yield (
            f"probe {base} / {method} / {backend}",
            functools.partial(_probed, make=made, shapes=shapes),
        )


def _model(add, backend):
    """A model whose parameters are split by what they are; its state at the iterate."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(16, 8),
        nn.Linear(8, 5),
    )  # fmt: skip
    groups = emanest.split_params(model, verbose=False)
    optimizer = emanest.Muon(groups, lr=LR, lookahead=METHODS["ema"], backend=backend)
    batches = [drawn((4, 3, 6, 6), torch.float32, t) for t in range(6)]
    for batch in batches:
        optimizer.zero_grad()
        model(batch).square().mean().backward()
        optimizer.step()
        add("step", seen(optimizer))
    add("iterate", dict(emanest.iterate_state_dict(model, optimizer)))
    emanest.update_bn(batches, model, optimizer)
    add("model", dict(model.state_dict()))
    with emanest.at_iterate([optimizer]):
        add("at iterate", seen(optimizer))
    add("found", [type(each).__name__ for each in emanest.find_all({"one": [optimizer]})])


def _orthogonalised(add, of, **options):
    for shape in [(5, 5), (3, 8), (8, 3), (2, 3, 6), (1, 7), (0, 4), (33, 17)]:
        add(str(shape), emanest.orthogonalize(drawn(shape, of, 1), **options))
    add("zero", emanest.orthogonalize(torch.zeros(3, 4, dtype=of), **options))
    add("large", emanest.orthogonalize(drawn((4, 6), of, 2) * 100, eps=50.0, **options))


ORTHOGONAL = {
    "default": {},
    "gram": {"form": "gram", "dtype": "float32"},
    "standard": {"form": "standard", "steps": 3},
    "polar": {"coefficients": "polar_express", "steps": 8},
    "bfloat16": {"dtype": "bfloat16"},
    "triples": {"coefficients": [(3.0, -3.0, 1.0), (1.5, -0.5, 0.0)]},
}


def _orthogonal():
    for (option, options), dtype, backend in itertools.product(
        ORTHOGONAL.items(), DTYPES, BACKENDS
    ):
        yield (
            f"orthogonalize {option} / {str(dtype)[6:]} / {backend}",
            functools.partial(_orthogonalised, of=dtype, backend=backend, **options),
        )


_TABLES = (
    _bases, _wraps, _of_muon, _layouts, _complex, _nonfinite, _capturable, _options, _others,
    _probes, _orthogonal,
)  # fmt: skip
ROWS = {}
for _table in _TABLES:
    for _name, _row in _table():
        assert _name not in ROWS, _name
        ROWS[_name] = _row
