"""The operators: in a compiled graph they are complete, outside of one they cost nothing."""

import subprocess
import sys
from collections import Counter

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode

import emanest
from emanest import eager, ops

SHAPES = [(3, 4), (5,), ()]
ADAMW = (1e-2, 1e-3, 0.1, 0.01, 1.1, 1e-8)
EMA = (0.1, 0.5, 0.4)


def tensors(seed, low=0.0):
    """Values above ``low``, transposed so that not all are contiguous."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(s, generator=generator).add_(low).t() for s in SHAPES]


def state(seed, names):
    return [tensors(10 * seed + i, low=0.1) for i in range(names)]


ROWS = (3, 5)


def matrices(seed):
    torch.manual_seed(seed)
    return [torch.rand(n, 4) for n in ROWS]


# name -> arguments of a back end's function; the numbers are tuples, as the optimizers give them
CALLS = {
    "step_": lambda: (
        *("adamw", "ema_nesterov", tensors(1), tensors(2), state(3, 2), state(4, 1)),
        *((-1.0, *ADAMW, *EMA), torch.float32),
    ),
    "follow_": lambda: ("snoo", tensors(1), tensors(2), state(3, 2), (0.7, 0.9), torch.float32),
    "move_": lambda: ("x_along", tensors(1), state(3, 1), (0.5,), torch.float32),
    "momentum_": lambda: (
        *("ema", tensors(1), tensors(2), state(3, 1), torch.zeros(3, dtype=torch.float64)),
        *((-1.0, 0.1, 0.2), torch.float32),
    ),
    "rows_": lambda: (
        *("normuon", matrices(1), [[torch.rand(n, 1) for n in ROWS]]),
        *([torch.ones(1)] * 2, [torch.zeros(n) for n in ROWS], (0.1, 1e-8), torch.float32),
    ),
    "nonfinite": lambda: (tensors(1),),
}
SKIPPABLE = ("step_", "follow_", "momentum_", "rows_")
# what follows the flag
REST = {"step_": ([],)}


def flat(value):
    """All tensors in nested sequences."""
    if isinstance(value, torch.Tensor):
        return [value]
    return [t for v in value for t in flat(v)] if isinstance(value, (list, tuple)) else []


def with_numbers(args, change):
    return tuple(change(a) if isinstance(a, tuple) else a for a in args)


def vector(numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def packed(name, args, skip=None):
    """The operator's arguments."""
    given = (*args, *([skip] * (name in SKIPPABLE)), *REST.get(name, ()))
    named = zip(ops._NAMES[name][:-1], given, strict=True)
    return (*(ops._pack(n, a) for n, a in named), "eager")


def operator(name):
    return getattr(torch.ops.emanest, name).default


class Spy(TorchDispatchMode):
    """Counts what passes through the dispatcher."""

    def __init__(self):
        super().__init__()
        self.seen = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen[func.namespace] += 1
        return func(*args, **(kwargs or {}))


def compiled(function, backend="eager"):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend(backend)
    return torch.compile(function, fullgraph=True, backend=counter), counter


def test_every_function_of_a_back_end_is_an_operator():
    assert set(ops.ARGUMENTS) == set(CALLS)
    assert all(callable(getattr(eager, name)) for name in CALLS)


@pytest.mark.parametrize(
    ("name", "skip"),
    [*((name, None) for name in CALLS), *((name, flag) for name in SKIPPABLE for flag in (0, 1))],
)
def test_operators_keep_what_their_schemas_promise(name, skip):
    flag = None if skip is None else torch.tensor([float(skip)])
    results = torch.library.opcheck(operator(name), packed(name, CALLS[name](), flag))
    assert set(results.values()) == {"SUCCESS"}
    assert len(results) == 4


@pytest.mark.parametrize("name", CALLS)
def test_the_operator_equals_the_back_end_bitwise(name):
    ours, theirs = CALLS[name](), CALLS[name]()
    found, expected = operator(name)(*packed(name, ours)), getattr(eager, name)(*theirs)
    assert found == expected if expected is None else torch.equal(found, expected)
    for a, b in zip(flat(ours), flat(theirs), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", CALLS)
def test_without_a_compiler_the_dispatcher_does_not_see_the_operator(name, monkeypatch):
    monkeypatch.delenv("EMANEST_BACKEND", raising=False)
    spy = Spy()
    with spy:
        getattr(ops, name)(*CALLS[name](), backend="eager")
    # what the eager back end does is seen, so the spy would have seen the operator
    assert spy.seen["aten"] > 0
    assert spy.seen["emanest"] == 0
    with spy:
        operator(name)(*packed(name, CALLS[name]()))
    assert spy.seen["emanest"] == 1


def test_the_dispatcher_sees_no_operator_in_a_step_of_an_optimizer():
    spy, p = Spy(), torch.nn.Parameter(torch.ones(3))
    optimizer = emanest.AdamW([p], lookahead=emanest.EMANesterov(), backend="eager")
    with spy:
        for _ in range(2):
            p.grad = torch.ones(3)
            optimizer.step()
            with optimizer.at_iterate():
                pass
    assert spy.seen["emanest"] == 0


# ---- gradients ----------------------------------------------------------------------------------


def requiring(args, which):
    for t in flat(args[which]):
        t.requires_grad_()
    return args


# name -> position of a list of tensors that it reads or writes
DIFFERENTIATED = [
    *(("step_", 2), ("step_", 3), ("step_", 4), ("follow_", 2), ("move_", 1)),
    *(("momentum_", 2), ("momentum_", 3), ("rows_", 1), ("rows_", 2)),
]


WAYS = {
    "direct": lambda name, args: getattr(ops, name)(*args, backend="eager"),
    "operator": lambda name, args: operator(name)(*packed(name, args)),
    "compiled": lambda name, args: compiled(getattr(ops, name), "aot_eager")[0](*args),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("name", "which"), DIFFERENTIATED)
def test_a_gradient_through_an_operator_is_an_error(name, which, way):
    args = requiring(CALLS[name](), which)
    before = [t.detach().clone() for t in flat(args)]
    with pytest.raises(Exception, match=rf"{name} cannot be differentiated, .* torch\.no_grad"):
        WAYS[way](name, args)
    assert all(map(torch.equal, before, flat(args)))


@pytest.mark.parametrize("way", WAYS)
def test_parameters_may_require_a_gradient_where_none_is_recorded(way):
    args, plain = requiring(CALLS["step_"](), 2), CALLS["step_"]()
    versions = [t._version for t in args[2]]
    with torch.no_grad():
        WAYS[way]("step_", args)
        eager.step_(*plain)
    assert all(map(torch.equal, flat(args), flat(plain)))
    # autograd sees that they changed, and so do edits from outside
    assert all(t._version > v for t, v in zip(args[2], versions, strict=True))


# ---- in compiled graphs -------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("name", CALLS)
def test_a_graph_is_one_node_and_serves_all_numbers_bitwise(name, backend, monkeypatch):
    monkeypatch.setenv("EMANEST_BACKEND", "eager")
    run, counter = compiled(getattr(ops, name), backend)
    ours, theirs = CALLS[name](), CALLS[name]()
    with torch.no_grad():
        for k in range(3):
            scale = 1 - k / 8
            found = run(*with_numbers(ours, lambda n, s=scale: vector([s * x for x in n])))
            scaled = with_numbers(theirs, lambda n, s=scale: [s * x for x in n])
            expected = getattr(eager, name)(*scaled)
            assert found is expected is None or torch.equal(found, expected)
    assert all(map(torch.equal, flat(ours), flat(theirs)))
    assert counter.frame_count == 1


def test_the_flag_works_in_a_graph(monkeypatch):
    monkeypatch.setenv("EMANEST_BACKEND", "eager")
    run, counter = compiled(ops.step_, "aot_eager")
    before, args = CALLS["step_"](), CALLS["step_"]()
    args = with_numbers(args, vector)
    with torch.no_grad():
        run(*args, skip=torch.ones(1))
        assert all(map(torch.equal, flat(args[2:6]), flat(before[2:6])))
        run(*args, skip=torch.zeros(1))
    assert not any(map(torch.equal, args[2], before[2]))
    assert counter.frame_count == 1


def test_an_exported_program_holds_the_operator():
    class Step(torch.nn.Module):
        def forward(self, y, g, numbers):
            ops.step_("sgd", "none", [y], [g], [], [], numbers, torch.float32)
            return y

    args = torch.ones(3), torch.ones(3), torch.zeros(3)
    with torch.no_grad():
        program = torch.export.export(Step(), args)
    assert torch.ops.emanest.step_.default in [node.target for node in program.graph.nodes]


def lr_of(optimizer, t):
    for group in optimizer.param_groups:
        group["lr"] = 0.1 / (t + 1)


OPTIMIZERS = {
    "adamw": lambda p: emanest.AdamW(p, lookahead=emanest.EMANesterov(0.5, 0.9)),
    "sgd": lambda p: emanest.SGD(p, momentum=0.9, lookahead=emanest.SNOO(3, 0.7, 0.9)),
    "wrap": lambda p: emanest.Wrap(torch.optim.AdamW(p), emanest.NAG(0.5)),
}


# dynamo's own, about the loss that the function returns
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_compiled_training_step_is_not_compiled_again(name, monkeypatch):
    monkeypatch.setenv("EMANEST_BACKEND", "eager")

    def train(wrapper):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
        optimizer = OPTIMIZERS[name](model.parameters())

        @wrapper
        def step(x):
            optimizer.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            optimizer.step()
            return loss

        for t in range(8):
            lr_of(optimizer, t)
            frames.append(counter.frame_count)
            yield step(torch.full((2, 4), 1.0 + t)).item()

    torch._dynamo.reset()
    frames, counter = [], CompileCounterWithBackend("eager")
    losses = list(train(lambda f: torch.compile(f, backend=counter)))
    assert counter.frame_count == frames[2] > 0
    assert losses == list(train(lambda f: f))


# ---- registration -------------------------------------------------------------------------------


def test_registration_imports_no_compiler():
    code = "import sys, emanest.ops; print('torch._dynamo' in sys.modules)"
    command = [sys.executable, "-W", "error", "-c", code]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "False\n"


@pytest.mark.parametrize("again", ["importlib.reload(ops)", "sys.modules.pop('emanest.ops')"])
def test_the_module_may_be_imported_twice(again):
    code = f"""if True:
        import gc, importlib, sys, torch
        from emanest import ops
        old = ops
        {again}
        new = importlib.import_module("emanest.ops")
        for finalized in (False, True):
            y = torch.ones(2)
            args = ("sgd", "none", [y], [y], [], [], torch.tensor([1, 0.5, 0]), y.dtype, None)
            torch.ops.emanest.step_(*args, [], "eager")
            print(y.tolist())
            del old, ops
            gc.collect()
            old = ops = None
    """
    command = [sys.executable, "-W", "error", "-c", code]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert printed == "[0.5, 0.5]\n" * 2
