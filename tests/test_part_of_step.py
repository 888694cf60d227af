# SPDX-License-Identifier: MIT
"""``part_of_step``: projections and perturbations of the weights that belong to every step."""

import collections
import contextlib
import copy

import pytest
import torch
from torch import nn

import helpers
from helpers import ALONG, METHODS, adamw, bits, content, differing, params_of, run, same, values
from test_edits import WEIGHTS, shift

BASES = {"adamw": adamw, "wrap": helpers.wrap_adamw}
POSITIONS = [name for name in METHODS if name not in ALONG]

each_method = pytest.mark.parametrize("method", METHODS)
each_base = pytest.mark.parametrize("base", BASES)
each_position = pytest.mark.parametrize("method", POSITIONS)


def make(base, method, dtype=torch.float32):
    return BASES[base](helpers.parameters(dtype), METHODS[method])


@torch.no_grad()
def clamp(optimizer, to=0.5):
    for p in params_of(optimizer):
        p.clamp_(-to, to)


@torch.no_grad()
def there_and_back(optimizer):
    """As SAM goes up to where it takes gradients."""
    params, before = params_of(optimizer), values(optimizer)
    for p in params:
        p.add_(1)
    for p, value in zip(params, before, strict=True):
        p.copy_(value)


def after(optimizer, t, write):
    run(optimizer, [t])
    with optimizer.part_of_step() as inside:
        assert inside is optimizer
        write(optimizer)


def before(optimizer, t, write):
    with optimizer.part_of_step():
        write(optimizer)
    run(optimizer, [t])


def around(optimizer, t, write):
    with optimizer.part_of_step():
        write(optimizer)
        run(optimizer, [t])
        write(optimizer)


def one_in_another(optimizer, t, write):
    with optimizer.part_of_step():
        with optimizer.part_of_step():
            write(optimizer)
        write(optimizer)
        run(optimizer, [t])


def evaluated_inside(optimizer, t, write):
    with optimizer.part_of_step():
        write(optimizer)
        with optimizer.at_iterate():
            pass
        run(optimizer, [t])
        write(optimizer)


WHERE = [after, before, around, one_in_another, evaluated_inside]


@each_method
@each_base
@pytest.mark.parametrize("where", WHERE)
def test_writes_that_change_nothing_change_no_run(method, base, where):
    optimizer, plain = make(base, method), make(base, method)
    for t in range(7):
        where(optimizer, t, there_and_back)
        run(plain, [t])
    assert differing(content(optimizer), content(plain)) == []


@each_method
@each_base
def test_projections_move_y_and_leave_positions(method, base):
    """And x with y where it follows from it; against the textbook, which ends where it is ahead."""
    optimizer = make(base, method, torch.float64)
    expected = helpers.textbook_adamw(method, params_of(optimizer))
    clamped = 0
    for t in range(10):
        expected.step(helpers.gradients(expected.y, t), helpers.LR)
        by = [y.clamp(-0.5, 0.5) - y for y in expected.y]
        clamped += sum(change.count_nonzero().item() for change in by)
        if method in ALONG:
            shift(expected, by)
        else:
            expected.y = [y + change for y, change in zip(expected.y, by, strict=True)]
        if method in WEIGHTS:
            pairs = zip(expected.x, by, strict=True)
            expected.x = [x + change / WEIGHTS[method] for x, change in pairs]
        after(optimizer, t, clamp)
        torch.testing.assert_close(values(optimizer), expected.y, rtol=0, atol=1e-12)
    assert clamped > 10
    with optimizer.at_iterate():
        torch.testing.assert_close(values(optimizer), expected.x, rtol=0, atol=1e-12)


@each_position
def test_without_it_the_lookahead_restarts_and_the_warning_names_it(method):
    optimizer, plain = make("adamw", method), make("adamw", method)
    run(optimizer, range(5))
    run(plain, range(5))
    there_and_back(optimizer)
    with pytest.warns(UserWarning, match=r"restarts .* `with opt\.part_of_step\(\):`"):
        run(optimizer, range(5, 11))
    run(plain, range(5, 11))
    assert not same(optimizer, plain)


@each_position
@pytest.mark.filterwarnings("ignore:emanest. .* restarts from their new values")
@pytest.mark.parametrize("first", [True, False])
def test_writes_before_and_after_the_block_are_edits(method, first):
    optimizer, plain = make("adamw", method), make("adamw", method)
    for each in (optimizer, plain):
        run(each, range(5))
        with each.part_of_step() if each is optimizer and not first else contextlib.nullcontext():
            there_and_back(each)
        if first:
            with each.part_of_step() if each is optimizer else contextlib.nullcontext():
                there_and_back(each)
        else:
            there_and_back(each)
        run(each, range(5, 9))
    assert differing(content(optimizer), content(plain)) == []


@each_position
@pytest.mark.parametrize("steps", [4, 5])
def test_weights_that_are_loaded_at_x_inside_are_the_new_x(method, steps):
    """Whether ``train()`` comes before the end of the block or after it."""
    first, second = make("adamw", method), make("adamw", method)
    best = {str(i): torch.full_like(p, 3.0) for i, p in enumerate(params_of(first))}
    for each in (first, second):
        run(each, range(steps))
    with first.part_of_step():
        first.eval()
        nn.ParameterList(params_of(first)).load_state_dict(best)
        first.train()
    with second.part_of_step():
        second.eval()
        nn.ParameterList(params_of(second)).load_state_dict(best)
    second.train()
    for each in (first, second):
        assert all(bool((p == 3.0).all()) for p in params_of(each))
    assert differing(content(first), content(second)) == []


@each_position
def test_what_is_written_counts_where_the_block_raises(method):
    optimizer, plain = make("adamw", method), make("adamw", method)
    run(optimizer, range(5))
    run(plain, range(5))
    with contextlib.suppress(ZeroDivisionError), optimizer.part_of_step():
        there_and_back(optimizer)
        raise ZeroDivisionError
    run(optimizer, range(5, 9))
    run(plain, range(5, 9))
    assert differing(content(optimizer), content(plain)) == []


def load(optimizer):
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


def replace(optimizer):
    params = optimizer.param_groups[0]["params"]
    optimizer.state.pop(params[1])
    params[1] = nn.Parameter(params[1].detach().clone())


def start_afresh(optimizer):
    optimizer.state = collections.defaultdict(dict)


@each_position
@pytest.mark.parametrize("meanwhile", [load, replace, start_afresh])
def test_it_holds_through_what_happens_meanwhile(method, meanwhile):
    optimizer, plain = make("adamw", method), make("adamw", method)
    for each in (optimizer, plain):
        run(each, range(3))
        with each.part_of_step() if each is optimizer else contextlib.nullcontext():
            for t in range(3, 9):
                if t == 5:
                    meanwhile(each)
                if each is optimizer and t != 5:
                    there_and_back(each)
                run(each, [t])
    assert differing(content(optimizer), content(plain)) == []


@each_method
@each_base
def test_in_eval_mode_it_is_an_error_once_there_is_state(method, base):
    optimizer = make(base, method)
    with optimizer.at_iterate(), optimizer.part_of_step():
        pass
    run(optimizer, range(5))
    optimizer.eval()
    with (
        pytest.raises(RuntimeError, match=r"part_of_step\(\) in eval mode.*train\(\)"),
        optimizer.part_of_step(),
    ):
        pytest.fail("the block was entered")


@torch.no_grad()
def sam_step(optimizer, t, walk):
    """Gradients are taken a little uphill; whoever does not walk is told what they are there."""
    params = params_of(optimizer)
    helpers.set_gradients(params, t)
    to = [0.05 * p.grad / p.grad.norm() for p in params]
    points = [p + e for p, e in zip(params, to, strict=True)]
    if walk:
        for p, e in zip(params, to, strict=True):
            p.add_(e)
    for p, g in zip(params, helpers.gradients(points, t), strict=True):
        p.grad = g
    if walk:
        for p, e in zip(params, to, strict=True):
            p.sub_(e)
    optimizer.step()


@each_position
@each_base
@pytest.mark.filterwarnings("ignore:emanest. .* restarts from their new values")
def test_under_sam_a_method_acts_as_if_nobody_had_walked(method, base):
    """To the rounding of there and back; without the block it does not."""
    plain, inside, without = (make(base, method, torch.float64) for _ in range(3))
    for t in range(12):
        sam_step(plain, t, walk=False)
        with inside.part_of_step():
            sam_step(inside, t, walk=True)
        sam_step(without, t, walk=True)
    torch.testing.assert_close(values(inside), values(plain), rtol=0, atol=1e-12)
    assert all((a - b).norm() > 1e-3 for a, b in zip(*map(values, (without, plain)), strict=True))


@each_base
@each_position
def test_a_parameter_whose_bucket_was_taken_apart_is_covered_too(base, method):
    """None but the one that came in its place has a gradient: the rest is not yet housed anew."""
    found = []
    for replaced in (False, True):
        params = helpers.parameters()
        optimizer = BASES[base](params, METHODS[method])
        for t in range(6):
            if replaced and t == 3:
                group = optimizer.param_groups[0]["params"]
                old, group[1] = group[1], nn.Parameter(group[1].detach().clone())
                optimizer.state.pop(old)
            helpers.set_gradients(params_of(optimizer), t)
            if t == 3:
                for p in params[:1] + params[2:]:
                    p.grad = None
            optimizer.step()
            with optimizer.part_of_step():
                clamp(optimizer)
        optimizer.eval()
        found.append([bits(p) for p in params[:1] + params[2:]])
    assert found[0] == found[1]


@each_base
@each_method
def test_evaluations_on_the_way_change_nothing(base, method):
    """Of weights that were walked somewhere, which are no slow weights even at a sync."""
    found = []
    for evaluated in (False, True):
        optimizer = make(base, method)
        for t in range(6):
            run(optimizer, [t])
            with torch.no_grad(), optimizer.part_of_step():
                for p in params_of(optimizer):
                    p.add_(0.5)
                if evaluated:
                    optimizer.eval()
                    optimizer.train()
                for p in params_of(optimizer):
                    p.sub_(0.5)
        found.append(content(optimizer))
    assert differing(*found) == []
