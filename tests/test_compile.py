# SPDX-License-Identifier: MIT
"""torch.compile around steps, modes and whole training steps: equal to eager, compiled once."""

import functools
import itertools

import pytest
import torch
import torch._dynamo
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.optim import lr_scheduler

from helpers import content, differing
from optimizer_database import DATABASE, LOOKAHEADS, Problem, each_entry, train

# dynamo's own, about losses that a compiled function returns
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")

EMA = LOOKAHEADS["ema"]
FAST = [
    *((entry, "ema") for entry in DATABASE.values()),
    *((DATABASE["AdamW"], name) for name in ("no lookahead", "lookahead", "gpa", "nala")),
]
# every optimizer, and lookaheads of every kind; in the slow tests each with each
around = pytest.mark.parametrize(
    ("entry", "name"),
    [
        pytest.param(*pair, marks=[] if pair in FAST else [pytest.mark.slow])
        for pair in itertools.product(DATABASE.values(), LOOKAHEADS)
    ],
    ids=str,
)


@pytest.fixture(autouse=True)
def afresh():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def frames():
    """How many frames were compiled, those without a graph too."""
    return torch._dynamo.utils.counters["frames"]["total"]


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.problem = Problem()
        self.weight, self.bias = self.problem.params

    def forward(self, x):
        return (self.weight @ x + self.bias).square().sum()


class Loop:
    """A training loop with a scheduler, whose step a wrapper may compile."""

    def __init__(self, make, wrapper=lambda step: step, of_model=lambda model: model):
        self.problem = (model := Model()).problem
        self.optimizer = make(self.problem.params)
        forward = of_model(model)

        def step(x):
            loss = forward(x)
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            return loss

        self.step = wrapper(step)
        self.frames, self.losses = [], []

    def run(self, steps=8, schedule=True):
        clock = lr_scheduler.CosineAnnealingLR(self.optimizer, 20) if schedule else None
        for _ in range(steps):
            self.losses.append(self.step(self.problem.input).item())
            self.frames.append(frames())
            if clock is not None:
                clock.step()
        return self


@around
def test_a_compiled_training_step_is_compiled_once_and_equals_eager(entry, name):
    make = functools.partial(entry.make, lookahead=LOOKAHEADS[name], lr=0.01)
    counter = CompileCounterWithBackend("eager")
    compiled, eager = Loop(make, torch.compile(backend=counter)).run(), Loop(make).run()
    assert counter.frame_count >= 1
    assert compiled.losses == eager.losses
    assert differing(content(compiled.optimizer), content(eager.optimizer)) == []
    assert compiled.frames[1] == compiled.frames[-1]


@pytest.mark.parametrize("name", ["AdamW", "Wrap AdamW"])
def test_a_scheduler_may_be_made_after_the_step_was_compiled(name):
    """It replaces the optimizer's step: that is noticed once."""
    make = functools.partial(DATABASE[name].make, lookahead=EMA, lr=0.01)
    compiled, eager = Loop(make, torch.compile(backend="aot_eager")), Loop(make)
    for loop in (compiled, eager):
        loop.run(3, schedule=False).run(6)
    assert compiled.losses == eager.losses
    assert differing(content(compiled.optimizer), content(eager.optimizer)) == []
    assert compiled.frames[1] == compiled.frames[2] < compiled.frames[4] == compiled.frames[-1]


def test_torchs_own_is_compiled_again_where_ours_is_not():
    """For another rate: the count notices what it is to notice."""
    entry = DATABASE["AdamW"]
    theirs = Loop(entry.reference, torch.compile(backend="eager")).run(4)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    ours = Loop(functools.partial(entry.make, lookahead=EMA), torch.compile(backend="eager")).run(4)
    assert theirs.frames[0] < theirs.frames[-1]
    assert ours.frames[0] == ours.frames[-1]


@around
def test_a_compiled_model_is_trained_as_the_model_is(entry, name):
    make = functools.partial(entry.make, lookahead=LOOKAHEADS[name], lr=0.01)
    compiled = Loop(make, of_model=functools.partial(torch.compile, backend="aot_eager")).run()
    eager = Loop(make).run()
    assert compiled.losses == eager.losses
    assert differing(content(compiled.optimizer), content(eager.optimizer)) == []
    assert compiled.frames[0] == compiled.frames[-1] > 0


@around
def test_a_compiled_step_equals_eager(entry, name):
    found = []
    for wrapper in (lambda step: step, functools.partial(torch.compile, backend="eager")):
        problem = Problem()
        optimizer = entry.make(problem.params, LOOKAHEADS[name])
        step, counts = wrapper(optimizer.step), []
        for t in range(5):
            optimizer.param_groups[0]["lr"] = 0.01 / (t + 1)
            problem.backward()
            assert step() is None
            counts.append(frames())
        found.append(content(optimizer))
    assert differing(*found) == []
    assert counts[0] == counts[-1] > 0


def toggled(optimizer, problem):
    optimizer.eval()
    loss = problem.loss()
    optimizer.train()
    return loss


def inside(optimizer, problem):
    with optimizer.at_iterate():
        return problem.loss()


@around
@pytest.mark.parametrize("evaluate", [toggled, inside])
def test_modes_change_inside_of_compiled_functions(entry, name, evaluate):
    """Without a warning; the loss is that of x, and training goes on as if nothing had been."""
    problem = Problem()
    optimizer = entry.make(problem.params, LOOKAHEADS[name], lr=0.01)
    train(problem, optimizer, 4)
    before = content(optimizer)
    at_y, at_x = problem.loss().item(), evaluate(optimizer, problem).item()
    compiled = torch.compile(evaluate, backend="eager")
    counts = []
    for _ in range(3):
        assert compiled(optimizer, problem).item() == at_x
        assert problem.loss().item() == at_y
        assert differing(content(optimizer), before) == []
        counts.append(frames())
    assert counts[1] == counts[2] > 0
    if name == "ema":
        assert at_x != at_y


@each_entry
def test_a_compiled_evaluation_sees_the_mode_that_is(entry):
    """Compiled once, called at y and at x in turn."""
    problem = Problem()
    optimizer = entry.make(problem.params, EMA, lr=0.01)
    compiled = torch.compile(problem.loss, backend="aot_eager")
    for _ in range(4):
        train(problem, optimizer, 1)
        for mode in (optimizer.eval, optimizer.train):
            mode()
            assert compiled().item() == problem.loss().item()
    assert frames() == 1


@pytest.mark.slow
@pytest.mark.parametrize(("entry", "name"), FAST, ids=str)
def test_inductor_trains_as_eager_does(entry, name):
    """Its own products round in another way."""
    make = functools.partial(entry.make, lookahead=LOOKAHEADS[name], lr=0.001)
    compiled, eager = Loop(make, torch.compile).run(), Loop(make).run()
    assert compiled.losses == pytest.approx(eager.losses, rel=1e-4)
    assert compiled.frames[1] == compiled.frames[-1]
