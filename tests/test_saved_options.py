# SPDX-License-Identifier: MIT
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

import emanest
import helpers
from emanest import EMANesterov
from helpers import METHODS, SEQUENCES, content, differing, run
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


BETAS, ROWS = (0.5, 0.75), ((3.0, -3.0, 1.0), (2.0, -1.5, 0.5))


def with_sequences(kind):
    """Numbers in sequences, given to a constructor, to groups, late, and between steps."""
    first, second, third, fourth = helpers.parameters(shapes=[(3, 4), (4, 2), (2, 2), (3,)])
    groups = [{"params": [first]}, {"params": [second], "ns_coefficients": kind(ROWS[0])}]
    optimizer = emanest.Muon(
        groups,
        ns_coefficients=kind([kind(row) for row in ROWS]),
        ns_steps=3,
        lookahead=METHODS["ema"],
    )
    optimizer.add_param_group({"params": [fourth], "base": "adamw", "betas": kind(BETAS)})
    run(optimizer, range(2))
    late = {"params": [third], "ns_coefficients": kind(ROWS[1]), "capturable": True}
    optimizer.add_param_group(late)
    for betas in ((0.25, 0.5), (0.75, 0.875)):
        optimizer.param_groups[2]["betas"] = kind(betas)
        optimizer.param_groups[3]["ns_coefficients"] = kind(ROWS[0])
        run(optimizer, range(2, 4))
    return optimizer


@pytest.mark.parametrize("kind", SEQUENCES.values(), ids=SEQUENCES)
def test_options_that_are_sequences_may_be_of_any_kind(kind):
    """They are kept, saved and compared as tuples of plain numbers."""
    optimizer, twin = with_sequences(kind), with_sequences(tuple)
    assert differing(content(optimizer), content(twin)) == []
    assert optimizer.defaults == twin.defaults
    optimizer.param_groups[2]["betas"] = kind(BETAS)
    optimizer.param_groups[0]["ns_coefficients"] = kind(ROWS[0])
    saved = optimizer.state_dict()
    assert set(types_in(saved)) <= set(PLAIN)
    # as read from a file that knows lists only
    saved["param_groups"][2]["betas"] = kind(saved["param_groups"][2]["betas"])
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[2]["betas"] == BETAS
    assert optimizer.param_groups[0]["ns_coefficients"] == ROWS[0]


@pytest.mark.parametrize("kind", SEQUENCES.values(), ids=SEQUENCES)
def test_sequences_of_an_inner_optimizer_are_saved_as_plain_ones(kind):
    inner = torch.optim.RAdam(helpers.parameters(), betas=kind(BETAS))
    optimizer = emanest.Wrap(inner, METHODS["ema"])
    run(optimizer, range(2))
    saved = optimizer.state_dict()
    assert set(types_in(saved)) <= set(PLAIN)
    assert saved["param_groups"][0]["betas"] == BETAS
    assert type(inner.param_groups[0]["betas"]) is type(kind(BETAS))


def test_betas_that_were_set_to_junk_are_refused_at_the_step():
    optimizer = helpers.adamw(helpers.parameters(), METHODS["ema"])
    run(optimizer, range(2))
    optimizer.param_groups[0]["betas"] = [0.9, 1.0]
    before = content(optimizer)
    with pytest.raises(ValueError, match=r"index 1: 1.0 \(betas\[1\] must be in"):
        run(optimizer, [2])
    assert differing(content(optimizer), before) == []


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
