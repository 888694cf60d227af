"""Options as users give them: what a checkpoint makes of them, and what a load leaves alone."""

import copy
import decimal
import gc
import io
import threading
import weakref

import numpy
import pytest
import torch

import helpers
from emanest import EMANesterov
from helpers import METHODS, content, differing, run
from test_checkpoint import PLAIN, types_in

BASES = {"adamw": helpers.adamw, "sgd": helpers.sgd, "wrap": helpers.wrap_adamw}
few_bases = pytest.mark.parametrize("base", BASES)


@few_bases
def test_numbers_of_any_kind_are_saved_as_plain_ones(base):
    """In a method, in a group, and set by a scheduler."""
    method = EMANesterov(numpy.float64(0.5), 0.9, warmup=numpy.int64(1), rest=numpy.int64(9))
    groups = [
        {"params": helpers.parameters(), "lookahead_decay": decimal.Decimal("0.5"), "user": 1j},
        {"params": helpers.parameters(), "lookahead_stepsize": numpy.float32(0.25)},
    ]
    optimizer = BASES[base](groups, method)
    optimizer.param_groups[1]["lr"] = numpy.float64(0.125)
    run(optimizer, range(3))
    saved = optimizer.state_dict()
    assert set(types_in(saved)) <= {*PLAIN, complex}
    file = io.BytesIO()
    torch.save(saved, file)
    file.seek(0)
    optimizer.load_state_dict(torch.load(file, weights_only=True))
    assert optimizer.param_groups[0]["lookahead_rest"] == 9
    assert optimizer.param_groups[1]["lookahead_stepsize"] == 0.25


class Schedule:
    """A step size that refers to what cannot be copied, and cannot be hashed."""

    __hash__ = None

    def __init__(self):
        self.lock, self.size = threading.Lock(), 0.5

    def __call__(self, t):
        return self.size

    def method(self, t):
        return self.size


@pytest.mark.parametrize("base", ["adamw", "wrap"])
@pytest.mark.parametrize("of", [lambda s: s, lambda s: s.method], ids=["object", "method"])
def test_a_callable_step_size_stays_the_same_object(base, of):
    schedule = Schedule()
    optimizer = BASES[base](helpers.parameters(), EMANesterov(of(schedule), 0.9))
    run(optimizer, range(3))
    optimizer.load_state_dict(optimizer.state_dict())
    (group,) = optimizer.param_groups
    assert getattr(group["lookahead_stepsize"], "__self__", group["lookahead_stepsize"]) is schedule
    schedule.size = 7.0
    with pytest.raises(ValueError, match=r"stepsize\(4\) must be in .*got 7.0"):
        run(optimizer, [3])


@pytest.mark.parametrize("base", ["adamw", "wrap"])
def test_a_callable_step_size_does_not_outlive_the_optimizer(base):
    model = torch.nn.Linear(2, 2)
    optimizer = BASES[base](model.parameters(), EMANesterov(lambda t, model=model: 0.1, 0.9))
    run(optimizer, range(2))
    alive = weakref.ref(model)
    del model, optimizer
    gc.collect()
    assert alive() is None


@few_bases
def test_what_users_put_into_groups_comes_back(base):
    entries = {"layer_ids": numpy.arange(3), 3: "x", "note": [1, {"a": torch.ones(2)}]}
    optimizer = BASES[base](helpers.parameters(), METHODS["ema"])
    optimizer.param_groups[0].update(entries)
    run(optimizer, range(2))
    optimizer.load_state_dict(optimizer.state_dict())
    (group,) = optimizer.param_groups
    assert {k: str(group[k]) for k in entries} == {k: str(v) for k, v in entries.items()}


@few_bases
def test_a_learning_rate_in_a_graph_is_taken_by_its_value(base):
    lr = torch.tensor(0.1, requires_grad=True)
    optimizer = BASES[base]([{"params": helpers.parameters(), "lr": lr}], METHODS["ema"])
    run(optimizer, range(2))
    copied = copy.deepcopy(optimizer)
    optimizer.load_state_dict(copied.state_dict())
    assert differing(content(optimizer), content(copied)) == []
