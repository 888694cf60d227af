# SPDX-License-Identifier: MIT
"""Steps that a CUDA graph captures: emulated on the CPU, and on a GPU.

``triton_kernels`` makes the claims of Triton's interpreter, where every launch can be replayed.
"""

import contextlib

import pytest
import torch

import emanest
import helpers
import test_capturable
from bench.no_gpu.graph import Graph
from emanest import backends
from emanest.backends import capture
from emanest.state.bucket import _MEMOS, Bucket
from helpers import METHODS, content, differing, params_of

SHAPES = [(3, 5), (7,)]
# after one that warms up: replays and steps in turn
STEPS = range(1, 5)


def gpa(params, _, **options):
    """Whose state says where x is: it starts afresh from parameters that were written."""
    return test_capturable.adamw(params, METHODS["gpa"], **options)


# name -> how an optimizer is made, and its options
CASES = {
    "adamw": (test_capturable.adamw, {}),
    "gpa": (gpa, {}),
    "skip": (test_capturable.adamw, {"nonfinite": "skip"}),
    "muon": (test_capturable.muon, {"ns_steps": 1}),
    "normuon": (test_capturable.normuon, {"ns_steps": 1}),
}


class OnGpu:
    """A graph of a GPU, as ``Graph``."""

    def __init__(self, readable):
        self._graph, self._stack = torch.cuda.CUDAGraph(), contextlib.ExitStack()
        self.replay = self._graph.replay

    def __enter__(self):
        self._stack.enter_context(torch.cuda.graph(self._graph))
        return self

    def __exit__(self, *error):
        return self._stack.__exit__(*error)


GRAPHS = {"cpu": Graph, "cuda": OnGpu}


def side_stream(device):
    """Where a graph is warmed up."""
    if device == "cpu":
        return contextlib.nullcontext()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    return torch.cuda.stream(stream)


def made(case, backend, device="cpu"):
    """An optimizer, and its learning rates."""
    make, options = CASES[case]
    starts = helpers.parameters(shapes=SHAPES)
    params = [torch.nn.Parameter(p.detach().to(device)) for p in starts]
    options = {**options, "capturable": True, "backend": backend}
    lr = torch.tensor(0.05, device=device)
    optimizer = make(params, METHODS["ema"], lr=lr, **options)
    return optimizer, [group["lr"] for group in optimizer.param_groups]


def gradients(optimizer, t, case):
    """Those of a step; one of them may be one that is skipped."""
    found = helpers.gradients([p.cpu() for p in params_of(optimizer)], t)
    if case == "skip" and t in (2, 3):
        found[0][1, 1] = torch.nan
    return [g.to(params_of(optimizer)[0].device) for g in found]


def stepped(optimizer, t, case, step):
    """Take a step with gradients at addresses of their own."""
    for p, g in zip(params_of(optimizer), gradients(optimizer, t, case), strict=True):
        p.grad = g
    step()


def graph_equals_steps(backend, case, moved, device="cpu"):
    """Replays and steps in turn, with a learning rate that moves, are the run without a graph.

    Args:
        backend: by name.
        case: a row of ``CASES``.
        moved: whether the graph has gradients of its own, as those of a captured backward pass.
        device: "cpu", where the graph is emulated, or "cuda".

    Returns:
        The graph.
    """
    (captured, rates), (plain, plain_rates) = (made(case, backend, device) for _ in range(2))
    params = params_of(captured)
    with side_stream(device):
        for t in range(STEPS.start):
            stepped(captured, t, case, captured.step)
    for t in range(STEPS.start):
        stepped(plain, t, case, plain.step)
    if device == "cuda":
        torch.cuda.synchronize()
    before, chosen = content(captured), dict(backends._picked)
    read = [p.grad for p in params]
    with GRAPHS[device](rates) as graph:
        if moved:
            for p in params:
                p.grad = p.grad.clone()
        captured.step()
    assert differing(content(captured), before) == []
    assert backends._picked == chosen
    for t in STEPS:
        for rate in (*rates, *plain_rates):
            rate.fill_(0.05 / t)
        if t % 2 == 0:
            stepped(captured, t, case, captured.step)
        else:
            for g, new in zip(read, gradients(captured, t, case), strict=True):
                g.copy_(new)
            graph.replay()
        stepped(plain, t, case, plain.step)
        assert differing(content(captured), content(plain)) == []
    skipped = [int(each.metrics()["skipped_steps"]) for each in (captured, plain)]
    assert skipped == [2 * (case == "skip")] * 2
    return graph


# what torch computes can be replayed here, what C++ does cannot
ON_GPU = [pytest.param("cuda", name, marks=pytest.mark.gpu) for name in ("triton", "cpp", "eager")]


@pytest.mark.parametrize(("device", "backend"), [("cpu", "eager"), *ON_GPU])
@pytest.mark.parametrize("case", CASES)
def test_a_graph_between_steps_is_the_run_without(device, backend, case):
    for moved in (False, True):
        graph_equals_steps(backend, case, moved, device)


# ---- what cannot be captured --------------------------------------------------------------------


@pytest.fixture
def capturing(monkeypatch):
    """A context in which work counts as recorded."""

    @contextlib.contextmanager
    def context():
        with monkeypatch.context() as patch:
            patch.setattr(capture, "capturing", lambda device_type: True)
            yield

    return context


NAMES = [name for name in backends.BACKENDS if backends.find(name, "cpu")[0]]


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("case", ["adamw", "muon"])
def test_a_first_step_in_a_capture_is_an_error_that_asks_for_a_warm_up(capturing, case, backend):
    (optimizer, _), (plain, _) = (made(case, backend) for _ in range(2))
    before = content(optimizer)
    message = "a CUDA graph is being captured: .* has taken no step so far.* a warm-up with the"
    with capturing(), pytest.raises(RuntimeError, match=message):
        stepped(optimizer, 0, case, optimizer.step)
    assert differing(content(optimizer), before) == []
    assert not optimizer.state
    for each in (optimizer, plain):
        stepped(each, 0, case, each.step)
    assert differing(content(optimizer), content(plain)) == []


def _load(optimizer):
    optimizer.load_state_dict(optimizer.state_dict())


def _set(**options):
    def change(optimizer):
        for group in optimizer.param_groups:
            group.update(options)

    return change


def _write(optimizer):
    with torch.no_grad():
        params_of(optimizer)[0].mul_(0.5)


def _flag(optimizer):
    optimizer.found_inf = torch.zeros(1)


def _late(optimizer):
    optimizer.add_param_group({"params": helpers.parameters(shapes=[(2,)])})


# case, method, options; what comes between a step and the capture, and what is said of it
REFUSED = [
    ("adamw", "ema", {}, _load, "take a step outside of it first"),
    ("adamw", "ema", {}, _late, "take a step outside of it first"),
    ("adamw", "ema", {}, _set(amsgrad=True), "take a step outside of it first"),
    ("adamw", "ema", {}, _flag, "no step left its flag on the device so far; take a step"),
    ("muon", "ema", {}, _set(adjust_lr_fn="match_rms_adamw"), "shapes and scales so far; take a"),
    ("adamw", "ema", {"capturable": False}, None, "set capturable=True, which group 0 lacks"),
    ("adamw", "ema", {"capturable": False}, _set(capturable=True), "AdamW is on the host; take"),
    ("adamw", "ema", {}, _set(lookahead_t=9), "clock of group 0 of AdamW is on the host; take a"),
    ("adamw", "ema", {"nonfinite": "raise"}, None, "nonfinite='raise' of group 0 of AdamW reads"),
    ("adamw", "gpa", {}, _write, "1 parameters were written .* would restart GPA"),
]


@pytest.mark.parametrize(("case", "method", "options", "change", "message"), REFUSED)
def test_what_a_graph_would_not_hold_is_an_error(capturing, case, method, options, change, message):
    options = {"capturable": True, "lr": torch.tensor(0.05), **options}
    optimizer = CASES[case][0](helpers.parameters(shapes=SHAPES), METHODS[method], **options)
    helpers.run(optimizer, range(2))
    if change is not None:
        change(optimizer)
    helpers.set_gradients(params_of(optimizer), 2)
    before = content(optimizer)
    with capturing(), pytest.raises(RuntimeError, match=f"graph is being captured: .*{message}"):
        optimizer.step()
    assert differing(content(optimizer), before) == []


def test_a_wrapped_optimizer_needs_a_warm_up_too(capturing):
    optimizer = helpers.wrap_adamw(helpers.parameters(), METHODS["ema"])
    with capturing(), pytest.raises(RuntimeError, match="Wrap has taken no step so far"):
        helpers.run(optimizer, [0])
    assert not optimizer.state


def test_a_flag_of_the_host_is_no_copy():
    """A GradScaler without gradients has 0 for a flag; ``to`` would copy it to the GPU."""
    flag = emanest.step.nonfinite._placed(torch.ones(1), torch.device("meta"))
    assert (flag.device.type, flag.dtype, flag.shape) == ("meta", torch.float32, (1,))


def test_the_memo_of_all_parameters_stays():
    """A graph reads what is in it, whatever else falls out of step."""
    bucket = Bucket(helpers.parameters(shapes=[(1,)] * 5), {}, str)
    kept = bucket.memo((bucket, range(5)))
    for bits in range(1, 2 * _MEMOS):
        assert bucket.memo((bucket, [i for i in range(4) if bits >> i & 1])) == {}
    assert bucket.memo((bucket, range(5))) is kept
    assert len(bucket._memos) <= _MEMOS
