# SPDX-License-Identifier: MIT
"""Tensors whose values are not at their ``data_ptr()``: waited for, stepped rightly, or refused.

Everything runs in another process: what reads an address that is none crashes it.
"""

import contextlib
import time

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as collectives
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate
from torch.testing._internal.two_tensor import TwoTensor

import emanest
from bad_input import EMA, EVERY, goes_on, make, matrices, refused
from emanest import backends
from helpers import METHODS, bits, params_of, run, same, set_gradients
from ranks import ranks

SHAPE = 4, 3


class Marked(torch.Tensor):
    """A subclass that owns its memory and sees functions only."""


class Listening(torch.Tensor):
    """A subclass that owns its memory and is asked about every operation on it."""

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        with torch._C._DisableTorchDispatch():
            return func(*args, **(kwargs or {}))


class Scaled(torch.Tensor):
    """Codes and their scale, as quantised weights are kept."""

    @staticmethod
    def __new__(cls, t):
        return torch.Tensor._make_wrapper_subclass(cls, t.shape, dtype=t.dtype)

    def __init__(self, t):
        self.codes, self.scale = t.detach().sign().to(torch.int8), t.detach().abs().mean()

    def __tensor_flatten__(self):
        return ["codes", "scale"], None

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.detach.default:
            return args[0]
        raise NotImplementedError(func)


def two(t):
    # at an offset, which the wrapper has as well: its data_ptr() is not 0
    return TwoTensor(*(torch.stack((t.detach(), k * t.detach()))[1] for k in (1, 2)))


def fake(t):
    with FakeTensorMode():
        return torch.ones(t.shape, dtype=t.dtype)


def on_mesh(t):
    return DTensor.from_local(t, init_device_mesh("cpu", (1,)), [Replicate()], run_check=False)


def freed(t):
    # with an offset: its data_ptr() is not 0
    t = torch.stack((t.detach(), t.detach()))[1]
    t.untyped_storage().resize_(0)
    return t


def two_on_mesh(t):
    return on_mesh(two(t))


# how a tensor becomes one whose class is not for us -> how a message calls it
WRAPPERS = {
    "two tensors": (two, "class TwoTensor"),
    "codes": (Scaled, "class Scaled"),
    "with memory": (lambda t: t.detach().clone().as_subclass(Listening), "class Listening"),
    "on a mesh": (two_on_mesh, "class TwoTensor"),
}
# the same of what may come as a gradient to a parameter that is plain
GRADIENTS = {
    **WRAPPERS,
    "on a mesh": (two_on_mesh, "class DTensor"),
    "spread": (on_mesh, r"class DTensor.* full_tensor\(\)"),
    "fake": (fake, "class FakeTensor"),
    "freed": (freed, "no memory for its 12 values"),
}


def in_process(function, *args):
    ranks()(1, function, *args)


# ---- functional collectives ---------------------------------------------------------------------


def give_sums(params, t, late):
    """Gradients of step t that are still being summed over the processes, or are there."""
    set_gradients(params, t)
    if not late:
        for p in params:
            p.grad = p.grad + p.grad
        return
    mine = [p.grad for p in params]
    if dist.get_rank() == 1:
        time.sleep(0.02)
    for p, g in zip(params, mine, strict=True):
        found = collectives.all_reduce(g, "sum", dist.group.WORLD)
        assert type(found) is collectives.AsyncCollectiveTensor
        p.grad = found


def spread_sums(parts, params):
    """The gradients of whole parameters, at parameters that are on a mesh."""
    for part, p in zip(parts, params, strict=True):
        part.grad = DTensor.from_local(p.grad, part.device_mesh, part.placements, run_check=False)


def check_waiting(name, options):
    """A run with gradients that are late, some of its steps, is one with gradients that are not."""
    plain, late, on = matrices(), matrices(), matrices()
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    on = [
        nn.Parameter(DTensor.from_local(p.detach(), mesh, [Replicate()], run_check=False))
        for p in on
    ]
    runs = [make(name, params, **options) for params in (plain, late, on)]
    for t, is_late in enumerate([True, False, True, True]):
        give_sums(plain, t, late=False)
        give_sums(late, t, late=is_late)
        spread_sums(on, late)
        # each in its turn is the first to wait
        for each in reversed(runs) if t % 2 else runs:
            each.step()
        assert list(map(bits, late)) == list(map(bits, plain))
        if name not in ("Muon", "NorMuon"):
            # those exchange their updates, and find norms in another way
            assert [bits(p.to_local()) for p in on] == list(map(bits, plain))
        for p, q in zip(on, plain, strict=True):
            torch.testing.assert_close(p.to_local(), q)


@pytest.mark.parametrize("name", EVERY)
def test_a_gradient_that_a_collective_is_still_writing_is_waited_for(name):
    ranks()(2, check_waiting, name, {})


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("AdamW", {"backend": "eager"}),
        ("AdamW", {"nonfinite": "raise"}),
        # whose own steps take the gradients of the inner optimizer
        ("Wrap", {"lookahead": METHODS["nala"]}),
    ],
    ids=["eager", "nonfinite", "nala"],
)
def test_whatever_reads_it_waits(name, options):
    ranks()(2, check_waiting, name, options)


def check_flags():
    """A GradScaler's flag and scale may be late as well."""
    late, plain = (make("AdamW", matrices()) for _ in range(2))
    for found in (0.0, 1.0, 0.0):
        for each, wait in ((late, False), (plain, True)):
            set_gradients(params_of(each), 0)
            each.grad_scale = collectives.all_reduce(torch.ones(1), "sum", dist.group.WORLD)
            flag = torch.full((1,), found)
            each.found_inf = collectives.all_reduce(flag, "max", dist.group.WORLD)
            if wait:
                each.found_inf, each.grad_scale = each.found_inf.wait(), each.grad_scale.wait()
            each.step()
        assert same(late, plain)


def test_the_flag_of_a_scaler_is_waited_for():
    ranks()(2, check_flags)


def check_orthogonalized():
    g = torch.randn(3, 5)
    late = collectives.all_reduce(g, "sum", dist.group.WORLD)
    assert torch.equal(emanest.orthogonalize(late), emanest.orthogonalize(g + g))


def test_a_late_matrix_is_orthogonalised_when_it_is_there():
    ranks()(2, check_orthogonalized)


# ---- parameters ---------------------------------------------------------------------------------


def check_constructor(name):
    for change, called in WRAPPERS.values():
        p = change(torch.ones(SHAPE)).requires_grad_()
        with pytest.raises(TypeError, match=f"parameter 0 of group 0 is .*{called}"):
            make(name, [p])
        optimizer = make(name, matrices())
        run(optimizer, range(2))
        with refused(optimizer, TypeError, f"parameter 0 of group 1 is .*{called}"):
            optimizer.add_param_group({"params": [p]})
    late = collectives.all_reduce(torch.ones(SHAPE), "sum", dist.group.WORLD)
    with pytest.raises(TypeError, match=r"class AsyncCollectiveTensor.*wait\(\) for it"):
        make(name, [nn.Parameter(late)])


@pytest.mark.parametrize("name", EVERY)
def test_a_parameter_of_another_class_is_refused_at_construction(name):
    in_process(check_constructor, name)


def replaced(optimizer, p, q):
    params = optimizer.param_groups[0]["params"]
    params[0] = q
    yield
    params[0] = p


def swapped(optimizer, p, q):
    # only what nothing else refers to can be swapped
    del optimizer
    p.grad = q.grad = None
    torch.utils.swap_tensors(p, q)
    p.grad = p.detach().clone()
    yield


def without_memory(optimizer, p, q):
    kept = p.detach().clone()
    p.data = q.detach()
    yield
    p.data = kept


def freed_in_place(optimizer, p, q):
    kept = p.detach().clone()
    size = p.untyped_storage().nbytes()
    p.untyped_storage().resize_(0)
    yield
    p.untyped_storage().resize_(size)
    p.detach().copy_(kept)


def check_replaced(name, how, error, match):
    optimizer, twin = (make(name, matrices()) for _ in range(2))
    for each in (optimizer, twin):
        run(each, range(2))
        set_gradients(params_of(each), 2)
    first, *others = params_of(optimizer)
    q = nn.Parameter(two(first))
    q.grad = two(first.grad)
    before = [*map(bits, others)], optimizer.param_groups[0].get("lookahead_t")
    undo = how(optimizer, first, q)
    next(undo)
    with pytest.raises(error, match=match):
        optimizer.step()
    assert before == ([*map(bits, others)], optimizer.param_groups[0].get("lookahead_t"))
    with contextlib.suppress(StopIteration):
        next(undo)
    if how is not swapped:
        # a replacement leaves the parameter's state to find again
        assert same(optimizer, twin)


@pytest.mark.parametrize("name", ["AdamW", "Muon", "Wrap"])
@pytest.mark.parametrize(
    ("how", "match"),
    [
        (replaced, "parameter 0 of group 0 is of class TwoTensor"),
        (swapped, "parameter 0 of group 0 is of class TwoTensor"),
        (without_memory, "parameter 0 of group 0 has no memory for its 12 values"),
        (freed_in_place, "parameter 0 of group 0 has no memory for its 12 values"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_parameter_that_becomes_one_later_is_refused_at_the_step(name, how, match):
    in_process(check_replaced, name, how, TypeError, match)


# ---- gradients ----------------------------------------------------------------------------------


def check_gradients(name, options):
    """At the first step and later; nothing changes, and training goes on with gradients."""
    for steps in (0, 2):
        optimizer, twin = (make(name, matrices(), **options) for _ in range(2))
        for each in (optimizer, twin):
            run(each, range(steps))
            set_gradients(params_of(each), steps)
        last = params_of(optimizer)[0]
        for change, called in GRADIENTS.values():
            kept = last.grad
            last.grad = change(kept)
            with refused(optimizer, TypeError, f"gradient of parameter 0 of group 0 .*{called}"):
                optimizer.step()
            last.grad = kept
        goes_on(optimizer, twin, range(steps, steps + 2))


@pytest.mark.parametrize("name", EVERY)
def test_a_gradient_of_another_class_is_refused_before_anything_changes(name):
    in_process(check_gradients, name, {})


@pytest.mark.parametrize("options", [{"backend": "eager"}, {"nonfinite": "skip"}], ids=str)
def test_by_every_back_end_and_before_it_is_looked_for_infinities(options):
    in_process(check_gradients, "AdamW", options)


def check_part_of_a_gradient(name, steps):
    params = [nn.Parameter(on_mesh(p.detach())) for p in matrices()]
    optimizer = make(name, params)
    for t in range(steps + 1):
        for p, q in zip(params, matrices(), strict=True):
            p.grad = on_mesh(q.detach() + t)
        if t < steps:
            optimizer.step()
    before = [bits(p.to_local()) for p in params]
    params[1].grad._local_tensor = two(params[1].grad.to_local())
    with pytest.raises(
        TypeError,
        match="local part of the gradient of parameter 1 of group 0 is of class TwoTensor",
    ):
        optimizer.step()
    assert [bits(p.to_local()) for p in params] == before
    params[1].grad = None
    params[1]._local_tensor = two(params[1].to_local())
    params[1].grad = two_on_mesh(torch.ones(params[1].shape))
    with pytest.raises(
        TypeError, match="local part of parameter 1 of group 0 is of class TwoTensor"
    ):
        optimizer.step()


@pytest.mark.parametrize("name", ["AdamW", "Muon", "Wrap"])
@pytest.mark.parametrize("steps", [0, 2])
def test_so_is_the_local_part_of_one(name, steps):
    in_process(check_part_of_a_gradient, name, steps)


# ---- state, numbers, matrices -------------------------------------------------------------------


def check_state(name):
    optimizer, twin = (make(name, matrices()) for _ in range(2))
    for each in (optimizer, twin):
        run(each, range(2))
        set_gradients(params_of(each), 2)
    p = params_of(optimizer)[0]
    ours = [key for key in optimizer.state[p] if name != "Wrap" or key.startswith("lookahead")]
    for key in ours:
        kept = optimizer.state[p][key]
        optimizer.state[p][key] = two(kept)
        with pytest.raises(TypeError, match=f"state '{key}' of .* is of class TwoTensor"):
            optimizer.step()
        optimizer.state[p][key] = kept
        saved = optimizer.state_dict()
        saved["state"][0] = {**saved["state"][0], key: two(kept)}
        with refused(
            optimizer, TypeError, f"'{key}' of parameter 0 of group 0 is of class TwoTensor"
        ):
            optimizer.load_state_dict(saved)
        # a step sees no state that it has not looked at
        optimizer.step()
        twin.step()
        assert same(optimizer, twin)


@pytest.mark.parametrize("name", EVERY)
def test_state_of_another_class_is_refused(name):
    in_process(check_state, name)


def set_attribute(name):
    def give(optimizer, value):
        setattr(optimizer, name, value)
        yield
        delattr(optimizer, name)

    return give


def set_lr(optimizer, value):
    group = optimizer.param_groups[0]
    kept, group["lr"] = group["lr"], value
    yield
    group["lr"] = kept


NUMBERS = {
    "found_inf": set_attribute("found_inf"),
    "grad_scale": set_attribute("grad_scale"),
    "lr of group 0": set_lr,
}


def check_numbers(options):
    optimizer = make("AdamW", matrices(), **options)
    run(optimizer, range(2))
    set_gradients(params_of(optimizer), 2)
    for called, give in NUMBERS.items():
        undo = give(optimizer, two(torch.ones(1)))
        next(undo)
        before = [*map(bits, params_of(optimizer))]
        with pytest.raises(TypeError, match=f"{called} is of class TwoTensor"):
            optimizer.step()
        assert before == [*map(bits, params_of(optimizer))]
        with contextlib.suppress(StopIteration):
            next(undo)
    with pytest.raises(TypeError, match="lr is of class TwoTensor"):
        make("AdamW", matrices(), lr=two(torch.ones(1)), **options)


@pytest.mark.parametrize("options", [{}, {"capturable": True}], ids=["on the host", "capturable"])
def test_numbers_of_another_class_are_refused(options):
    in_process(check_numbers, options)


def check_spread_numbers(options):
    """What lies on a mesh is taken as a whole."""
    plain, spread = (make("AdamW", matrices(), **options) for _ in range(2))
    for found in (0.0, 1.0, 0.0):
        for each, change in ((plain, lambda t: t), (spread, on_mesh)):
            set_gradients(params_of(each), 0)
            each.param_groups[0]["lr"] = change(torch.full((1,), 0.01))
            each.found_inf = change(torch.full((1,), found))
            each.grad_scale = change(torch.full((1,), 2.0))
            each.step()
        assert same(plain, spread)


@pytest.mark.parametrize("options", [{}, {"capturable": True}], ids=["on the host", "capturable"])
def test_numbers_on_a_mesh_are_read(options):
    in_process(check_spread_numbers, options)


def check_matrices():
    for change, called in GRADIENTS.values():
        for backend in (None, "eager"):
            with pytest.raises(TypeError, match=f"g .*{called}"):
                emanest.orthogonalize(change(torch.ones(SHAPE)), backend=backend)


def test_a_matrix_of_another_class_is_not_orthogonalised():
    in_process(check_matrices)


def check_kernels():
    """What reaches a back end all the same is an error of the call: no other one takes over."""

    def launch(*args):
        backends.call("apply_", "cpu", None, *args)

    wide = torch.float32
    calls = (
        lambda a, b, c: launch("step", ("momentum", "none"), [a], [b], [[c]], (1.0,) * 5, wide),
        lambda a, b, c: launch("follow", ("lookahead",), [a], [b], [[c]], (0.5,), wide),
        lambda a, b, c: (
            launch("move", ("x_along",), [a], (), [[b]], (0.5,), wide)
            or backends.call("nonfinite", "cpu", None, [c])
        ),
    )
    for call in calls:
        call(*(torch.ones(SHAPE) for _ in range(3)))
        for change, called in GRADIENTS.values():
            for i in range(3):
                each = [torch.ones(SHAPE) for _ in range(3)]
                each[i] = change(each[i])
                with pytest.raises(TypeError, match=called), torch.no_grad():
                    call(*each)
    assert backends.pick("cpu").__name__ == "emanest.backends.cpp"


def test_no_address_that_is_none_reaches_a_kernel():
    in_process(check_kernels)


# ---- fake tensors -------------------------------------------------------------------------------


def shapes(optimizer):
    return {
        key: (tuple(value.shape), value.dtype, value.device, value.stride())
        for i, p in enumerate(params_of(optimizer))
        for key, value in ((f"{i} {k}", v) for k, v in optimizer.state[p].items())
    }


def check_fake(name, method, inside):
    """State has the shapes that it has after a step, and is fake, inside the mode and outside."""
    real = make(name, matrices(), METHODS[method])
    run(real, range(2))
    mode = FakeTensorMode()
    with mode:
        params = [nn.Parameter(torch.empty(p.shape)) for p in matrices()]
        optimizer = make(name, params, METHODS[method])
        for p in params_of(optimizer):
            p.grad = torch.ones(p.shape)
    with mode if inside else contextlib.nullcontext():
        optimizer.step()
        optimizer.step()
    assert shapes(optimizer) == shapes(real)
    found = [v for p in params_of(optimizer) for v in optimizer.state[p].values()]
    if inside:
        assert all(type(v).__name__ == "FakeTensor" for v in found)
    with mode, pytest.raises(TypeError, match="a fake tensor holds no values"):
        optimizer.eval()


@pytest.mark.parametrize("inside", [True, False], ids=["inside", "outside"])
@pytest.mark.parametrize("name", EVERY)
def test_a_step_of_fake_parameters_makes_their_state(name, inside):
    in_process(check_fake, name, "ema", inside)


@pytest.mark.parametrize("method", ["lookahead", "snoo"])
def test_also_state_that_starts_as_a_copy(method):
    in_process(check_fake, "AdamW", method, True)


def check_tracked():
    """Torch's estimator sees the bytes of our state: 3 float32 of AdamW with EMA-Nesterov."""
    with FakeTensorMode(), MemTracker() as tracker:
        model = nn.Linear(64, 32, bias=False)
        optimizer = emanest.AdamW(model.parameters(), lookahead=EMA)
        tracker.track_external(model, optimizer)
        model(torch.ones(8, 64)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        found = tracker.get_tracker_snapshot("current")[torch.device("cpu")]
    state = next(n for kind, n in found.items() if "Optstate" in str(getattr(kind, "value", kind)))
    scalars = 4 + 8
    assert state - 3 * 4 * 64 * 32 in range(scalars, 64)


def test_a_memory_tracker_counts_it():
    in_process(check_tracked)


def check_mixed():
    params = [matrices()[0], nn.Parameter(fake(matrices()[1]))]
    for p in params:
        p.grad = p.detach().clone()
    optimizer = emanest.AdamW(params)
    before = bits(params[0])
    with pytest.raises(TypeError, match="some parameters are fake tensors and others are not"):
        optimizer.step()
    assert bits(params[0]) == before
    assert not optimizer.state


def test_fake_parameters_beside_others_are_an_error():
    in_process(check_mixed)


def check_real_under_a_mode():
    """As torch's optimizers, and without a trace; also where they would be brought to x."""
    for options in ({}, {"nonfinite": "skip"}):
        for steps in (0, 2):
            optimizer, twin = (make("AdamW", matrices(), EMA, **options) for _ in range(2))
            for each in (optimizer, twin):
                run(each, range(steps))
                set_gradients(params_of(each), steps)
            for work in (optimizer.step, *([optimizer.eval] if steps else [])):
                with pytest.raises(TypeError, match="inside a FakeTensorMode"), FakeTensorMode():
                    work()
            goes_on(optimizer, twin, range(steps, steps + 2))


def test_a_mode_around_real_parameters_is_an_error():
    in_process(check_real_under_a_mode)


# ---- what goes on working -----------------------------------------------------------------------


def check_harmless(name):
    plain, marked = matrices(), [p.detach().clone().as_subclass(Marked) for p in matrices()]
    for p in marked:
        p.requires_grad_()
    both = [make(name, params) for params in (plain, marked)]
    for t in range(3):
        for params in (plain, marked):
            set_gradients(params, t)
        for p in marked:
            p.grad = p.grad.as_subclass(Marked)
        for each in both:
            each.step()
        assert [bits(p) for p in plain] == [bits(p.as_subclass(torch.Tensor)) for p in marked]


@pytest.mark.parametrize("name", EVERY)
def test_subclasses_that_own_their_memory_are_stepped(name):
    in_process(check_harmless, name)
