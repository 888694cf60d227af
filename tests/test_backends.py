# SPDX-License-Identifier: MIT
"""The choice of a back end: preference, fallback, and clear errors."""

import sys
import types
import warnings

import pytest
import torch

import emanest
from emanest import backends
from emanest.backends import Backend, eager

FUNCTIONS = ("apply_", "nonfinite")

MISSING = Backend("emanest.no_such_module", ())
ELSEWHERE = Backend("emanest.backends.eager", ("cuda",))
ANYWHERE = Backend("emanest.backends.eager", ())
REASON = (
    "No module named 'emanest.no_such_module'; emanest is not installed: run `pip install -e .` in "
    "its source tree"
)


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    monkeypatch.delenv("EMANEST_BACKEND", raising=False)


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """No back end has been picked yet."""
    monkeypatch.setattr(backends, "_picked", {})


@pytest.fixture
def table(monkeypatch):
    """Put other rows into the table of back ends."""
    return lambda **rows: monkeypatch.setattr(backends, "BACKENDS", rows)


@pytest.fixture
def stub(monkeypatch):
    """Make a back end of eager's functions, but for some attributes; returns its row."""

    def make(name, devices=(), asked=(), **attributes):
        module = types.ModuleType(f"stub_{name}")
        vars(module).update({f: getattr(eager, f) for f in FUNCTIONS}, **attributes)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        return Backend(module.__name__, devices, asked)

    return make


@pytest.fixture
def silent():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def raises(error):
    def function(*args, **kwargs):
        raise error

    return function


def parameter():
    p = torch.nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    return p


def step(choice=None, gradient=None, y=None):
    """One step of the back end; what the parameter becomes."""
    y = torch.ones(3) if y is None else y
    gs = [torch.ones(3) if gradient is None else gradient]
    numbers = (1.0, 0.25, 0.0)
    backends.call(
        "apply_", "cpu", choice, "step", ("sgd", "none"), [y], gs, [], numbers, torch.float32
    )
    return y


STEPPED = torch.full((3,), 0.75)

# ---- the table ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", backends.BACKENDS)
def test_every_back_end_that_loads_has_the_four_functions(name):
    device = (*backends.BACKENDS[name].devices, "cpu")[0]
    module, reason = backends.find(name, device)
    if module is None:
        pytest.skip(reason)
    assert all(callable(getattr(module, f)) for f in FUNCTIONS)


@pytest.mark.parametrize(
    ("device_type", "names"),
    [("cpu", ["cpp", "eager"]), ("cuda", ["triton", "cpp", "eager"]), ("mps", ["eager"])],
)
def test_automatic_choice_looks_among_those_of_the_device_in_order(device_type, names):
    assert backends.automatic(device_type) == names


@pytest.mark.parametrize("value", [None, "0", "1"])
def test_triton_serves_the_cpu_only_in_its_interpreter_and_on_request(monkeypatch, value):
    monkeypatch.setitem(sys.modules, "emanest.kernels.backend", eager)
    monkeypatch.setitem(sys.modules, "emanest.backends.cpp", eager)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    if value is not None:
        monkeypatch.setenv("TRITON_INTERPRET", value)
    if value == "1":
        assert backends.pick("cpu", "triton") is sys.modules["emanest.kernels.backend"]
    else:
        with pytest.raises(
            RuntimeError, match=r"'triton' serves 'cpu' .* where TRITON_INTERPRET=1"
        ):
            backends.pick("cpu", "triton")


def test_a_module_says_which_devices_it_was_built_for(table, stub, silent):
    table(built=stub("built", ("cpu", "cuda"), DEVICES=("cpu",)), eager=ANYWHERE)
    assert backends.pick("cpu").__name__ == "stub_built"
    assert backends.pick("cpu", "built").__name__ == "stub_built"
    with pytest.raises(
        RuntimeError, match="backend='built' serves only 'cpu' tensors as it is here"
    ):
        backends.pick("cuda", "built")


def test_a_row_with_another_device_is_not_even_imported(table, silent):
    table(broken=MISSING._replace(devices=("cuda",)), eager=ANYWHERE)
    assert backends.pick("cpu") is eager
    assert backends.find("broken", "cpu") == (None, "does not serve 'cpu' tensors")
    assert backends.find("broken", "cuda") == (None, f"cannot be loaded: {REASON}")


# ---- back ends that do not load -----------------------------------------------------------------


def test_the_first_that_serves_the_device_is_chosen(table, silent):
    table(other=ELSEWHERE, first=ANYWHERE, second=MISSING)
    assert backends.pick("cpu") is eager


def test_automatic_choice_falls_back_with_one_warning_that_names_the_reason(table):
    table(broken=MISSING, eager=ANYWHERE)
    optimizer = emanest.AdamW([parameter()])
    message = f"back end 'broken' cannot be loaded: {REASON}; 'cpu' tensors use 'eager'"
    with pytest.warns(UserWarning, match=message) as caught:
        optimizer.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()
        emanest.SGD([parameter()]).step()
    assert len(caught) == 1


def test_one_warning_tells_of_all_that_do_not_load(table):
    table(one=MISSING, two=MISSING, eager=ANYWHERE)
    with pytest.warns(UserWarning, match="'one' cannot be .*; back end 'two' cannot be") as caught:
        backends.pick("cpu")
    assert len(caught) == 1


@pytest.mark.parametrize("error", [OSError("undefined symbol"), RuntimeError("bad build")])
def test_a_module_may_fail_to_load_in_any_way(table, monkeypatch, error):
    table(broken=MISSING, eager=ANYWHERE)
    load = backends.importlib.import_module
    rows = {MISSING.module: raises(error)}
    monkeypatch.setattr(backends.importlib, "import_module", lambda m: rows.get(m, load)(m))
    with pytest.warns(UserWarning, match=f"{type(error).__name__}: {error}"):
        assert backends.pick("cpu") is eager
    with pytest.raises(RuntimeError, match=f"{type(error).__name__}: {error}"):
        backends.pick("cpu", "broken")


def test_without_any_back_end_there_is_an_error(table):
    table(other=ELSEWHERE)
    with pytest.raises(RuntimeError, match="no back end serves 'cpu' tensors"):
        backends.pick("cpu")


ERRORS = {
    "broken": (
        RuntimeError,
        f"(backend='broken'|EMANEST_BACKEND=broken) cannot be loaded: {REASON}",
    ),
    "other": (RuntimeError, "(backend='other'|EMANEST_BACKEND=other) does not serve 'cpu' tensors"),
    "fast": (
        ValueError,
        r"(backend must be None or|EMANEST_BACKEND must be) one of \['broken', .*\], got 'fast'",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_a_choice_that_cannot_be_had_is_an_error(table, monkeypatch, name):
    table(broken=MISSING, other=ELSEWHERE, eager=ANYWHERE)
    kind, message = ERRORS[name]
    with pytest.raises(kind, match=message):
        backends.pick("cpu", name)
    with pytest.raises(kind, match=message):
        emanest.AdamW([parameter()], backend=name)
    monkeypatch.setenv("EMANEST_BACKEND", name)
    for function in (backends.pick, backends.require):
        with pytest.raises(kind, match=message):
            function("cpu")


def test_require_loads_nothing_unless_a_back_end_is_asked_for(table, silent):
    table(broken=MISSING, eager=ANYWHERE)
    backends.require("cpu")
    backends.require("cpu", "eager")
    assert list(backends._picked) == [("cpu", "eager")]


@pytest.mark.parametrize("name", ERRORS)
def test_a_step_without_its_back_end_changes_nothing(table, monkeypatch, name):
    table(broken=MISSING, other=ELSEWHERE, eager=ANYWHERE)
    p, q = parameter(), parameter()
    optimizer = emanest.AdamW([p], lookahead=emanest.NAG(0.5), backend="eager")
    monkeypatch.setenv("EMANEST_BACKEND", name)
    with pytest.raises(ERRORS[name][0], match=ERRORS[name][1]):
        optimizer.step()
    assert torch.equal(p, q)
    monkeypatch.setenv("EMANEST_BACKEND", "eager")
    for each in (optimizer, emanest.AdamW([q], lookahead=emanest.NAG(0.5))):
        each.step()
    assert torch.equal(p, q)
    assert optimizer.param_groups[0]["lookahead_t"] == 1


def test_the_environment_overrides_every_choice(table, stub, monkeypatch, silent):
    table(broken=MISSING, other=stub("other"), eager=ANYWHERE)
    monkeypatch.setenv("EMANEST_BACKEND", "eager")
    assert backends.pick("cpu") is eager
    assert backends.pick("cpu", "other") is eager


def test_a_wrong_name_is_an_error_even_if_the_environment_overrides_it(table, monkeypatch):
    table(eager=ANYWHERE)
    monkeypatch.setenv("EMANEST_BACKEND", "eager")
    with pytest.raises(ValueError, match="got 'fast'"):
        backends.require("cpu", "fast")


def test_an_empty_environment_variable_is_none(table, monkeypatch):
    table(eager=ANYWHERE)
    monkeypatch.setenv("EMANEST_BACKEND", "")
    assert backends.pick("cpu") is eager


def test_a_group_may_have_a_back_end_of_its_own(table, stub):
    calls = []

    def spy(*args, **kwargs):
        calls.append(args)
        eager.apply_(*args, **kwargs)

    table(other=stub("other", apply_=spy), eager=ANYWHERE)
    groups = [{"params": [parameter()], "backend": "eager"}, {"params": [parameter()]}]
    emanest.AdamW(groups[:1]).step()
    assert not calls
    emanest.AdamW(groups).step()
    assert len(calls) == 1


# ---- back ends that fail when they run ----------------------------------------------------------


def test_a_back_end_that_fails_is_replaced_with_one_warning_then_and_from_then_on(table, stub):
    calls = []

    def launch(*args, **kwargs):
        calls.append(args)
        raise RuntimeError("out of shared memory")

    table(broken=stub("broken", apply_=launch), eager=ANYWHERE)
    message = "'broken' failed: RuntimeError: out of shared memory; 'cpu' tensors use 'eager'"
    with pytest.warns(UserWarning, match=message) as caught:
        assert torch.equal(step(), STEPPED)
    assert torch.equal(step(), STEPPED)
    assert len(caught) == len(calls) == 1
    assert backends.pick("cpu") is eager


def test_one_after_the_other_may_fail(table, stub):
    rows = {name: stub(name, apply_=raises(RuntimeError(name))) for name in ("one", "two")}
    table(**rows, missing=MISSING, eager=ANYWHERE)
    with pytest.warns(UserWarning, match="failed") as caught:
        assert torch.equal(step(), STEPPED)
    assert [str(w.message).partition(": ")[2] for w in caught] == [
        "back end 'one' failed: RuntimeError: one; 'cpu' tensors use 'two'",
        "back end 'two' failed: RuntimeError: two; back end 'missing' cannot be loaded: "
        f"{REASON}; 'cpu' tensors use 'eager'",
    ]


def test_a_failure_on_one_device_type_does_not_matter_to_another(table, stub):
    table(broken=stub("broken", apply_=raises(RuntimeError("no"))), eager=ANYWHERE)
    with pytest.warns(UserWarning, match="'cpu' tensors use 'eager'"):
        step()
    assert backends.pick("cuda").__name__ == "stub_broken"


@pytest.mark.parametrize("how", ["argument", "environment"])
def test_the_failure_of_an_explicit_choice_is_raised_as_it_is(
    table, stub, monkeypatch, silent, how
):
    error = RuntimeError("no")
    table(broken=stub("broken", apply_=raises(error)), eager=ANYWHERE)
    if how == "environment":
        monkeypatch.setenv("EMANEST_BACKEND", "broken")
    with pytest.raises(RuntimeError) as caught:
        step("broken" if how == "argument" else None)
    assert caught.value is error


@pytest.mark.parametrize("picked", [True, False])
def test_a_failure_while_a_graph_is_captured_is_raised_and_changes_no_choice(
    table, stub, monkeypatch, silent, picked
):
    error = RuntimeError("operation not permitted when stream is capturing")
    table(first=stub("first", apply_=raises(error)), eager=ANYWHERE)
    if picked:
        backends.pick("cuda")
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        with pytest.raises(RuntimeError) as caught:
            backends.run(lambda backend: backend.apply_(), "cuda", None)
    assert caught.value is error
    assert backends.pick("cuda").__name__ == "stub_first"


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("full"), MemoryError("full"), KeyboardInterrupt()]
)
def test_running_out_of_memory_and_control_c_are_not_failures(table, stub, silent, error):
    table(full=stub("full", apply_=raises(error)), eager=ANYWHERE)
    with pytest.raises(type(error)) as caught:
        step()
    assert caught.value is error
    assert backends.pick("cpu").__name__ == "stub_full"


def test_input_that_no_back_end_takes_does_not_count_against_the_first(table, stub):
    def strict(*args, **kwargs):
        raise ValueError("strict")

    table(first=stub("first", apply_=strict), eager=ANYWHERE)
    with pytest.warns(UserWarning, match="strict"), pytest.raises(RuntimeError, match="size"):
        step(gradient=torch.ones(2))
    assert backends.pick("cpu").__name__ == "stub_first"


def test_the_last_back_end_fails_without_a_warning(table, silent):
    table(eager=ANYWHERE)
    with pytest.raises(RuntimeError, match="size"):
        step(gradient=torch.ones(2))
    assert backends.pick("cpu") is eager


def test_a_warning_made_an_error_changes_nothing(table, stub, silent):
    table(broken=stub("broken", apply_=raises(RuntimeError("no"))), eager=ANYWHERE)
    y = torch.ones(3)
    for _ in range(2):
        with pytest.raises(UserWarning, match="'broken' failed"):
            step(y=y)
    assert torch.equal(y, torch.ones(3))


def train(optimizer, p, steps=3):
    for t in range(steps):
        p.grad = torch.full_like(p, 1.0 + t)
        optimizer.step()
        with optimizer.at_iterate():
            pass
    return p


OPTIMIZERS = {
    "fused": lambda p: emanest.AdamW([p], lookahead=emanest.EMANesterov(0.5, 0.9)),
    "wrap": lambda p: emanest.Wrap(torch.optim.AdamW([p]), emanest.NAG(0.5)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_run_goes_on_as_if_the_back_end_had_not_been_tried(table, stub, name):
    p, q = parameter(), parameter()
    failing = {function: raises(RuntimeError("no")) for function in FUNCTIONS}
    table(broken=stub("broken", **failing), eager=ANYWHERE)
    with pytest.warns(UserWarning, match="'broken' failed") as caught:
        train(OPTIMIZERS[name](p), p)
    assert len(caught) == 1
    assert torch.equal(p, train(OPTIMIZERS[name](q), q))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_function_falls_back(table, stub, function):
    ones = [torch.ones(3)]
    calls = {
        "apply_": ("step", ("sgd", "none"), ones, ones, [], (1.0, 0.25, 0.0), torch.float32),
        "nonfinite": (ones,),
    }
    table(broken=stub("broken", **{function: raises(RuntimeError("no"))}), eager=ANYWHERE)
    with pytest.warns(UserWarning, match="'broken' failed"):
        backends.call(function, "cpu", None, *calls[function])
    assert backends.pick("cpu") is eager
