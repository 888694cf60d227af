# SPDX-License-Identifier: MIT
"""Small deterministic training runs, and bit for bit comparison of all that they leave behind."""

import collections
import collections.abc
import contextlib
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import emanest
import textbook
import textbook_bases
from emanest import GPA, NAG, NALA, SNOO, EMANesterov, LongHorizon, Lookahead, ScheduleFree, Wrap


@contextlib.contextmanager
def host_never_waits():
    """What waits for the GPU inside is an error; tests that follow may wait again."""
    with warnings.catch_warnings():
        # torch says that it does not see all of them yet
        warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype")
        try:
            torch.cuda.set_sync_debug_mode("error")
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")


LR = 0.05
SHAPES = [(3, 5), (7,), ()]

METHODS = {
    "ema": EMANesterov(0.5, 0.9),
    "ema window": EMANesterov(-0.8, 0.7, warmup=2, rest=6, init="debias"),
    "nag": NAG(0.8),
    "lookahead": Lookahead(3, 0.5),
    "long horizon": LongHorizon(5, 0.5),
    "snoo": SNOO(3, 0.7, 0.5),
    "gpa": GPA(0.9, 0.7),
    "schedule free": ScheduleFree(0.9),
    "nala": NALA(3, 1e-2, -0.4),
}


class Indexed:
    """What has a length and items, and says no more about itself."""

    def __init__(self, items):
        self._items = list(items)

    def __getitem__(self, i):
        return self._items[i]

    def __len__(self):
        return len(self._items)


class Items(Indexed, collections.abc.Sequence):
    """A list as configuration libraries have it, which is neither a list nor a tuple."""


SEQUENCES = {
    "list": list,
    "array": np.array,
    "array of float32": lambda items: np.array(items, dtype=np.float32),
    "of a configuration": Items,
    "indexed": Indexed,
    "deque": collections.deque,
}

# methods whose y is ahead of x along a direction; the others keep positions
ALONG = ("ema", "ema window", "nag")


def _adam(method):
    # Schedule-Free brings the momentum, and without decay GPA's z and every y have the same
    beta1 = 0.0 if isinstance(method, ScheduleFree) else 0.9
    return {"lr": LR, "betas": (beta1, 0.99), "weight_decay": 0.0}


def _sgd(method):
    momentum = 0.0 if isinstance(method, ScheduleFree) else 0.6
    return {"lr": LR, "momentum": momentum, "weight_decay": 0.0}


def adamw(params, method, **options):
    return emanest.AdamW(params, **_adam(method), lookahead=method, **options)


def amsgrad(params, method):
    return adamw(params, method, amsgrad=True)


def sgd(params, method, **options):
    return emanest.SGD(params, **_sgd(method), lookahead=method, **options)


def wrap_adamw(params, method, **options):
    return Wrap(torch.optim.AdamW(params, **_adam(method), **options), method)


def wrap_two(params, method):
    """The first parameter on SGD, the others on AdamW."""
    params = list(params)
    inner = [
        torch.optim.SGD(params[:1], **_sgd(method)),
        torch.optim.AdamW(params[1:], **_adam(method)),
    ]
    return Wrap(inner, method)


# base -> name of its class, here, in torch.optim and in textbook_bases; options
BASES = {
    "adamw": ("AdamW", {"weight_decay": 0.1}),
    "amsgrad": ("AdamW", {"amsgrad": True}),
    "sgd": ("SGD", {}),
    "momentum": ("SGD", {"momentum": 0.8, "dampening": 0.3, "weight_decay": 0.1}),
    "nesterov": ("SGD", {"momentum": 0.8, "nesterov": True}),
}


def on(base, method, dtype=torch.float64, wrapped=False, shapes=SHAPES):
    """A method on one of ``BASES``, ours or torch's; without a method the base itself."""
    name, options = BASES[base]
    params = parameters(dtype, shapes)
    if not wrapped:
        return getattr(emanest, name)(params, lr=LR, **options, lookahead=method)
    inner = getattr(torch.optim, name)(params, lr=LR, **options)
    return inner if method is None else Wrap(inner, method)


def textbook_base(base):
    name, options = BASES[base]
    return getattr(textbook_bases, name)(**options)


def published(method, params, base):
    """The textbook form of a method, given the textbook form of its base."""
    if method is None:
        return textbook.Plain(params, base)
    # GPA moves the decay of the base to z
    moved = {"weight_decay": base.weight_decay} if isinstance(method, GPA) else {}
    return getattr(textbook, type(method).__name__)(params, base, **vars(method), **moved)


def textbook_adamw(name, params):
    """The textbook form of ``METHODS[name]`` on the base of ``adamw`` and ``wrap_adamw``."""
    options = _adam(METHODS[name])
    del options["lr"]
    return published(METHODS[name], params, textbook_bases.AdamW(**options))


def parameters(dtype=torch.float32, shapes=SHAPES):
    generator = torch.Generator().manual_seed(1)
    wide = torch.complex128 if dtype.is_complex else torch.float64
    return [
        nn.Parameter(torch.randn(shape, generator=generator, dtype=wide).to(dtype))
        for shape in shapes
    ]


def gradients(points, t):
    """Gradients at some points, with noise of step t: whoever was elsewhere gets others."""
    generator = torch.Generator().manual_seed(t)
    found = []
    for point in points:
        point = point.detach()
        wide = torch.complex128 if point.is_complex() else torch.float64
        noise = torch.randn(point.shape, generator=generator, dtype=wide)
        found.append((point * 0.5 + noise).to(point.dtype))
    return found


def set_gradients(params, t):
    for p, g in zip(params, gradients(params, t), strict=True):
        p.grad = g


def params_of(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def values(optimizer):
    return [p.detach().clone() for p in params_of(optimizer)]


def flat(tensors):
    """All values of some tensors as one vector."""
    return torch.cat([t.detach().flatten() for t in tensors])


def same(a, b):
    """Whether two optimizers hold the same parameters, bit for bit."""
    return [bits(p) for p in params_of(a)] == [bits(p) for p in params_of(b)]


def run(optimizer, steps, each=lambda: None):
    """Take the steps of a range, calling ``each`` after every one."""
    for t in steps:
        set_gradients(params_of(optimizer), t)
        optimizer.step()
        each()


def content(optimizer):
    """All that a run depends on, path -> comparable value: parameters, state, options."""
    values = {"values": [p.detach() for p in params_of(optimizer)], **optimizer.state_dict()}
    return dict(_flat("", values))


def differing(a, b):
    """Where two contents are not the same, bit for bit."""
    return sorted(k for k in a.keys() | b.keys() if (k in a, a.get(k)) != (k in b, b.get(k)))


def _flat(path, value):
    if isinstance(value, dict):
        for k, v in value.items():
            yield from _flat(f"{path}/{k}", v)
    elif isinstance(value, (list, tuple)):
        yield f"{path}/len", len(value)
        for i, v in enumerate(value):
            yield from _flat(f"{path}/{i}", v)
    else:
        yield path, bits(value) if isinstance(value, torch.Tensor) else value


def bits(tensor):
    """Dtype, shape and bytes of a tensor: equal only if every bit is, NaN and -0.0 included."""
    real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    # contiguous() would leave an empty tensor with its strides
    whole = real.detach().clone(memory_format=torch.contiguous_format)
    raw = whole.flatten().view(torch.uint8).cpu().numpy().tobytes()
    return str(tensor.dtype), tuple(tensor.shape), raw


def memory(t):
    """All of the memory that a tensor lies in, as elements of its dtype."""
    return torch.empty(0, dtype=t.dtype, device=t.device).set_(t.untyped_storage())


def moved(t, device):
    """A copy of a tensor with the same strides, gaps included, and the same offset."""
    whole = memory(t).to(device, copy=True)
    return whole.as_strided(t.shape, t.stride(), t.storage_offset())


def ulp(tensor):
    """The distance from each value to the next larger one of its dtype."""
    _, exponent = torch.frexp(tensor)
    return torch.ldexp(torch.ones_like(tensor), exponent - 1) * torch.finfo(tensor.dtype).eps


@pytest.fixture
def one_thread():
    """For thousands of small operations: with two threads every ``sqrt`` waits for the other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
