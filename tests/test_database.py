# SPDX-License-Identifier: MIT
"""Every optimizer with every lookahead and option: what torch asks of its own in test_optim."""

import inspect

import pytest
import torch
from torch import nn

import emanest
from emanest import NALA
from helpers import (
    bits,
    content,
    differing,
    params_of,
    set_gradients,
    values,
)
from optimizer_database import (
    DATABASE,
    Problem,
    each_entry,
    each_lookahead,
    elementwise,
    train,
)

pytestmark = pytest.mark.filterwarnings("error")


def losses(problem, optimizer):
    """At y and at x."""
    y = problem.loss().item()
    with optimizer.at_iterate():
        return y, problem.loss().item()


def assert_right_direction(problem, optimizer, first):
    up = optimizer.param_groups[0].get("maximize", False)
    for loss in losses(problem, optimizer):
        assert (loss > first) if up else (loss < first)


def test_the_database_holds_every_optimizer():
    exported = [getattr(emanest, name) for name in emanest.__all__]
    optimizers = {
        cls for cls in exported if inspect.isclass(cls) and issubclass(cls, emanest.Optimizer)
    }
    assert optimizers - {emanest.Optimizer} == {entry.optim_cls for entry in DATABASE.values()}
    assert all(len(list(entry.inputs(None))) >= 4 for entry in DATABASE.values())


# ---- direction ----------------------------------------------------------------------------------


@each_entry
@each_lookahead
@pytest.mark.parametrize("rows", ["some", pytest.param("all", marks=pytest.mark.slow)])
def test_it_goes_in_the_right_direction(entry, lookahead, rows):
    for row in {"some": entry.some_inputs, "all": entry.inputs}[rows](lookahead):
        problem = Problem()
        optimizer = entry.make(problem.params, lookahead, **row.kwargs)
        first = problem.loss().item()
        train(problem, optimizer, 6)
        assert_right_direction(problem, optimizer, first)


LAYOUTS = {
    "transposed": lambda t: t.t().contiguous().t(),
    "strided": lambda t: t.repeat_interleave(2, 1)[:, ::2],
}


@each_entry
@each_lookahead
def test_the_layout_of_parameters_does_not_matter(entry, lookahead):
    plain = Problem()
    expected = entry.make(plain.params, lookahead)
    train(plain, expected, 6)
    for layout in LAYOUTS.values():
        problem = Problem(layout=layout)
        assert not problem.weight.is_contiguous()
        optimizer = entry.make(problem.params, lookahead)
        # the same gradients: a product rounds by the layout of its factors
        other = Problem()
        for _ in range(6):
            with torch.no_grad():
                for p, q in zip(other.params, problem.params, strict=True):
                    p.copy_(q)
            other.backward()
            for p, q in zip(other.params, problem.params, strict=True):
                q.grad = layout(p.grad)
            optimizer.step()
        tolerance = 1e-5 if not entry.supports_complex else 0
        torch.testing.assert_close(
            values(optimizer), values(expected), rtol=tolerance, atol=tolerance
        )


@elementwise
@each_lookahead
def test_complex_parameters_go_in_the_right_direction(entry, lookahead):
    for row in entry.some_inputs(lookahead):
        problem = Problem(torch.complex64)
        optimizer = entry.make(problem.params, lookahead, **row.kwargs)
        first = problem.loss().item()
        train(problem, optimizer, 4)
        assert_right_direction(problem, optimizer, first)


@elementwise
@each_lookahead
def test_a_complex_parameter_is_its_two_parts(entry, lookahead):
    """Bit for bit; torch's own loops round complex products in another way than real ones."""
    tolerance = 1e-6 if entry.wraps else 0
    whole, parts = Problem(torch.complex64), Problem(torch.complex64)
    views = [nn.Parameter(torch.view_as_real(p.detach()).clone()) for p in parts.params]
    optimizer, other = entry.make(whole.params, lookahead), entry.make(views, lookahead)
    for t in range(6):
        set_gradients(whole.params, t)
        for view, p in zip(views, whole.params, strict=True):
            view.grad = torch.view_as_real(p.grad).clone()
        optimizer.step()
        other.step()
        found = [torch.view_as_real(p) for p in values(optimizer)]
        torch.testing.assert_close(found, values(other), rtol=tolerance, atol=tolerance)


# ---- groups -------------------------------------------------------------------------------------


def grouped(problem, *entries):
    return [{"params": [p], **more} for p, more in zip(problem.params, entries, strict=True)]


def of_rate(lr, lookahead):
    # NALA's own step has a rate of its own
    return {"lr": lr, "lookahead_lr": lr} if isinstance(lookahead, NALA) else {"lr": lr}


@each_entry
@each_lookahead
def test_every_group_has_its_own_rate(entry, lookahead):
    """At a rate of 0 nothing moves, bit for bit; the other group moves as it does alone."""
    for rates in ((0.01, 0.0), (0.0, 0.002)):
        problem = Problem()
        groups = grouped(problem, *(of_rate(lr, lookahead) for lr in rates))
        optimizer = entry.make(groups, lookahead)
        before = [bits(p) for p in problem.params]
        for t in range(5):
            set_gradients(problem.params, t)
            optimizer.step()
        for i, (lr, p) in enumerate(zip(rates, problem.params, strict=True)):
            if lr == 0.0:
                assert bits(p) == before[i]
                continue
            twin = Problem()
            alike = entry.make(grouped(twin, *[of_rate(lr, lookahead)] * 2), lookahead)
            for t in range(5):
                set_gradients(twin.params, t)
                alike.step()
            assert bits(p) == bits(twin.params[i])


@each_entry
@each_lookahead
def test_decay_shrinks_the_group_that_has_it_and_no_other(entry, lookahead):
    """Towards 0, where the loss does not depend on the parameters at all."""
    problem = Problem()
    groups = grouped(problem, {"weight_decay": 0.5}, {"weight_decay": 0.0})
    optimizer = entry.make(groups, lookahead, lr=0.01)
    weight, bias = values(optimizer)
    for _ in range(8):
        for p in problem.params:
            p.grad = torch.zeros_like(p)
        optimizer.step()
    with optimizer.at_iterate():
        assert bits(problem.bias) == bits(bias)
        assert problem.weight.norm() < weight.norm()
        # decoupled decay leaves the direction; SGD's and Adam's L2 penalty does not concern us
        cosine = torch.nn.functional.cosine_similarity(
            problem.weight.detach().flatten(), weight.flatten(), dim=0
        )
        assert cosine > 1 - 1e-6


# ---- gradients that are missing, or zero --------------------------------------------------------


@each_entry
@each_lookahead
def test_without_any_gradient_a_step_changes_nothing(entry, lookahead):
    for row in entry.some_inputs(lookahead):
        problem = Problem()
        optimizer = entry.make(problem.params, lookahead, **row.kwargs)
        for steps in (0, 2):
            train(problem, optimizer, steps)
            before = content(optimizer)
            for p in problem.params:
                p.grad = None
            assert optimizer.step() is None
            assert optimizer.step(lambda: 3.0) == 3.0
            assert differing(content(optimizer), before) == []


@each_entry
@each_lookahead
def test_a_first_step_on_zero_gradients_moves_nothing(entry, lookahead):
    for row in entry.some_inputs(lookahead):
        problem = Problem()
        optimizer = entry.make(problem.params, lookahead, **{**row.kwargs, "weight_decay": 0.0})
        before = [bits(p) for p in problem.params]
        for _ in range(2):
            for p in problem.params:
                p.grad = torch.zeros_like(p)
            optimizer.step()
        assert [bits(p) for p in problem.params] == before
        # the state is there nevertheless, and of plain finite numbers
        assert all(len(optimizer.state[p]) > 0 for p in problem.params)
        entries = [v for p in problem.params for v in optimizer.state[p].values()]
        assert all(torch.as_tensor(v).isfinite().all() for v in entries)


@each_entry
@each_lookahead
def test_parameters_without_gradients_take_part_when_they_have_one(entry, lookahead):
    """And the others do not notice."""
    late, always = Problem(), Problem()
    optimizer, other = entry.make(late.params, lookahead), entry.make(always.params, lookahead)
    for t in range(9):
        set_gradients(late.params, t)
        set_gradients(always.params, t)
        if t < 4:
            late.bias.grad = None
        optimizer.step()
        other.step()
        if t == 3:
            assert bits(late.bias) == bits(Problem().bias)
        assert bits(late.weight) == bits(always.weight)
    assert bits(late.bias) != bits(Problem().bias)
    assert params_of(optimizer) == late.params
